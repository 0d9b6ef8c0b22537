"""A claim of a paper beside what we measure."""

import dataclasses
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A stated value, the measured one, and how far apart they may be. With `kind="at most"` the
    stated value is an upper bound. What could not be measured, NaN, does not hold."""

    id: str
    claim: str
    stated: float | int
    measured: float | int
    tolerance: float | int
    why: str  # where the tolerance comes from
    kind: Literal["equal", "at most"] = "equal"

    @property
    def holds(self) -> bool:
        excess = self.measured - self.stated
        return bool((excess if self.kind == "at most" else abs(excess)) <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, and the function that measures it; `None` for a figure without rows."""

    id: str
    statement: str
    measure: Callable[[], list[Measurement]] | None
