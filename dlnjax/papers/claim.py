"""The types of the ledger: a claim of a paper, and a measured value beside the stated one."""

import dataclasses
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A stated value, the measured one, and how far apart they may be.

    **Attributes:**

    - `id`: of the claim, such as `"B25-monotone"`; `claim`: what was measured, in words.
    - `stated`, `measured`, `tolerance`: numbers in the same units.
    - `why`: the argument for the tolerance.
    - `kind`: `"equal"`, or `"at most"` if the stated value is an upper bound.
    """

    id: str
    claim: str
    stated: float | int
    measured: float | int
    tolerance: float | int
    why: str
    kind: Literal["equal", "at most"] = "equal"

    @property
    def holds(self) -> bool:
        """Whether the measured value is within the tolerance of the stated one."""
        # Written so that NaN, which a failed solve gives, does not hold.
        excess = self.measured - self.stated
        return bool((excess if self.kind == "at most" else abs(excess)) <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper, and the function that measures it (`None` for a figure alone)."""

    id: str
    statement: str
    measure: Callable[[], list[Measurement]] | None
