"""A claim of a paper beside what we measure."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A stated value, the measured one, and how far apart they may be."""

    id: str
    claim: str
    stated: float
    measured: float
    tolerance: float
    why: str  # where the tolerance comes from

    @property
    def holds(self) -> bool:
        return abs(self.measured - self.stated) <= self.tolerance
