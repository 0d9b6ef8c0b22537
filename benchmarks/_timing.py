"""The one way in which everything is timed: interleaved repetitions, medians, and ratios of
neighbours in time, which survive a machine whose speed drifts."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

SHORT = 0.05  # seconds: below this, a sample is the mean of several calls
LONG = 10.0  # seconds: above this, one repetition is enough


class Contender(NamedTuple):
    """A solver on a piece of work."""

    name: str
    run: Callable[[], Any]
    share: float = 1.0  # the part of the work that `run` does: its times are scaled by 1/share
    compiles: bool = True  # whether the first run is a warm-up that does not count
    note: str = ""


class Measured(NamedTuple):
    contender: Contender
    output: Any
    seconds: list[float]  # of the whole work
    ratios: list[float]  # to the run of ours just before

    def record(self, error: float, ours: "Measured", note: str = "") -> dict[str, Any]:
        """What the JSON keeps of it. The ratio of least times is there because a busy machine
        only ever adds time: where it is far from the median, trust neither."""
        notes = [self.contender.note, note]
        if self.contender.share < 1:
            notes.insert(0, f"timed on {100 * self.contender.share:.3g} % of the work, scaled")
        return {
            "name": self.contender.name,
            "seconds": statistics.median(self.seconds),
            "seconds_range": [min(self.seconds), max(self.seconds)],
            "repetitions": len(self.seconds),
            "share": self.contender.share,
            "error": error,
            "ratio": statistics.median(self.ratios),
            "ratio_of_least": min(self.seconds) / min(ours.seconds),
            "ratio_range": [min(self.ratios), max(self.ratios)],
            "note": "; ".join(n for n in notes if n),
        }


def once(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its output, computed to the end."""
    start = time.perf_counter()
    output = jax.block_until_ready(run())
    return time.perf_counter() - start, output


def sample(run: Callable[[], Any]) -> float:
    """Seconds of a call, the mean of several if they are short."""
    seconds, _ = once(run)
    calls = min(200, math.ceil(SHORT / max(seconds, 1e-9)) - 1)
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return (seconds + time.perf_counter() - start) / (1 + calls)


def median(run: Callable[[], Any], repetitions: int = 3) -> float:
    """Median seconds of a call after a warm-up, for what has no peer."""
    jax.block_until_ready(run())
    return statistics.median(sample(run) for _ in range(repetitions))


def compete(
    ours: Contender, peers: Sequence[Contender], repetitions: int
) -> tuple[Measured, list[Measured]]:
    """Time ours and its peers in turn: ours, peer, ours, peer, …"""
    measured = {}
    for contender in (ours, *peers):
        seconds, output = once(contender.run)
        measured[contender.name] = Measured(contender, output, [], [])
        if not contender.compiles and seconds > LONG:
            # It is slow and has nothing to warm up: this run counts, against ours right after.
            measured[contender.name].seconds.append(seconds / contender.share)
            measured[contender.name].ratios.append(seconds / contender.share / sample(ours.run))
    us = measured[ours.name]
    for _ in range(repetitions):
        for peer in peers or [ours]:
            them = measured[peer.name]
            if them.seconds and min(them.seconds) * peer.share > LONG:
                continue
            us.seconds.append(sample(ours.run) / ours.share)
            us.ratios.append(1.0)
            if peer is not ours:
                them.seconds.append(sample(peer.run) / peer.share)
                them.ratios.append(them.seconds[-1] / us.seconds[-1])
    if not us.seconds:
        us.seconds.extend(sample(ours.run) for _ in range(repetitions))
        us.ratios.append(1.0)
    return us, [measured[peer.name] for peer in peers]
