"""How far a sweep is, on stderr: a bar on a terminal, a line every half minute elsewhere."""

import sys
import time
from collections import Counter, defaultdict

from .store import need

INTERVAL = 30.0  # seconds between lines


class Progress:
    """Counts what is done, of what `begin` says."""

    def __init__(self, shown: bool):
        self._left = Counter[int]()  # instances of each cell that are to be computed
        self._known = Counter[int]()  # those that are, and the seconds that they took
        self._seconds: dict[int, float] = defaultdict(float)
        self._blocks = self._done = self._failed = 0  # blocks, blocks, solves
        self._since: float | None = None  # when work began, compiling left out
        terminal = sys.stderr.isatty()
        self._bar = need("tqdm").tqdm(
            desc="compiling … ",
            unit=" instances",
            unit_scale=True,
            file=sys.stderr,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}{postfix}]",
            disable=not (shown and terminal),
        )
        self._is_log = shown and not terminal
        self._last_line = time.monotonic()

    def begin(self, left: Counter[int], blocks: int) -> None:
        """Of each cell, `left` instances are to be computed; in all, `blocks`."""
        self._left, self._blocks = left, blocks
        self._bar.reset(total=left.total())

    def update(self, cell: int, instances: int, seconds: float, failed: int) -> None:
        """A block is done."""
        if self._since is None:
            self._since = time.monotonic() - seconds
            self._bar.set_description_str("")
        self._left[cell] -= instances
        self._known[cell] += instances
        self._seconds[cell] += seconds
        self._done += 1
        self._failed += failed
        self._bar.set_postfix_str(f"{self._remaining()}, {self._failed} failed", refresh=False)
        self._bar.update(instances)

    def tick(self) -> None:
        """Write a line if half a minute has passed. To be called often."""
        if self._is_log and time.monotonic() - self._last_line >= INTERVAL:
            self._write()

    def close(self) -> None:
        self._bar.close()

    def seconds_left(self) -> float | None:
        """By what instances of each cell have cost so far, and how many run at a time; `None` while
        a cell is not known."""
        if self._since is None or any(n and not self._known[c] for c, n in self._left.items()):
            return None
        cost = sum(n * self._seconds[c] / self._known[c] for c, n in self._left.items() if n)
        return cost * (time.monotonic() - self._since) / sum(self._seconds.values())

    def _remaining(self) -> str:
        seconds = self.seconds_left()
        if seconds is None:
            return "time left not known yet"
        return f"{self._bar.format_interval(seconds)} left"

    def _write(self) -> None:
        self._last_line = time.monotonic()
        line = "compiling …"
        if self._since is not None:
            known = self._known.total()
            line = (
                f"{self._done} of {self._blocks} blocks, {known} of {known + self._left.total()} "
                f"instances, {known / (self._last_line - self._since):.3g} instances/s, "
                f"{self._remaining()}, {self._failed} failed"
            )
        print(line, file=sys.stderr, flush=True)
