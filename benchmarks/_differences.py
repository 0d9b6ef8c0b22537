"""Derivatives by differences, extrapolated to step 0, and what becomes of them at kinks."""

from collections import Counter
from typing import NamedTuple

import numpy as np

FLOOR = 1e-4  # times the function is the least that derivatives are relative to
# One-sided derivatives that differ by more, relatively, and beyond their own errors, are two.
KINK = 1e-6


def extrapolate(quotients: np.ndarray, ratio: float, power: int) -> tuple[np.ndarray, np.ndarray]:
    """The limit of `(levels, …)` quotients of steps that shrink by `ratio`, whose errors are series
    in their `power`, and its error (Ridders 1982)."""
    best, error = quotients[-1], np.full(quotients.shape[1:], np.inf)
    column = quotients
    for j in range(1, len(quotients)):
        factor = ratio ** (power * j)
        new = column[1:] + (column[1:] - column[:-1]) / (factor - 1)
        estimate = np.maximum(np.abs(new - column[1:]), np.abs(new - column[:-1]))
        for value, size in zip(new, estimate, strict=True):
            better = size < error
            best, error = np.where(better, value, best), np.where(better, size, error)
        column = new
    return best, error


class Differences(NamedTuple):
    """Derivatives of each entry of a function along a direction, `(lanes, size)`."""

    central: np.ndarray
    doubt: np.ndarray  # how exact they are
    sides: np.ndarray  # (2, lanes, size), ahead and behind
    side_doubts: np.ndarray
    scale: np.ndarray

    @property
    def jumps(self) -> np.ndarray:
        """Where the function itself jumps, `(lanes, size)`."""
        return np.max(self.side_doubts, axis=0) > 0.1 * self.scale

    @property
    def kinks(self) -> np.ndarray:
        """Where it jumps or its two sides have different derivatives."""
        allowed = KINK * self.scale + 10 * np.max(self.side_doubts, axis=0)
        return self.jumps | (np.abs(self.sides[0] - self.sides[1]) > allowed)

    def tally(self, tangent: np.ndarray) -> list[Counter]:
        """For each lane, what `tangent` is at kinks."""
        tallies = []
        for lane, kinks in enumerate(self.kinks):
            counts: Counter = Counter()
            for k in np.flatnonzero(kinks):
                if self.jumps[lane, k]:
                    counts["jump"] += 1
                    continue
                ahead, behind = self.sides[:, lane, k]
                t, doubt = tangent[lane, k], np.max(self.side_doubts[:, lane, k])
                allowed = KINK * max(abs(t), self.scale[lane, k]) + 10 * doubt
                if min(abs(t - ahead), abs(t - behind)) < allowed:
                    counts["one side"] += 1
                elif abs(t - (ahead + behind) / 2) < allowed:
                    counts["mean"] += 1
                else:
                    is_between = min(ahead, behind) < t < max(ahead, behind)
                    counts["between" if is_between else "neither"] += 1
            tallies.append(counts)
        return tallies


def differences(
    value: np.ndarray, plus: np.ndarray, minus: np.ndarray, steps, ratio: float, edge: np.ndarray
) -> Differences:
    """From values at both ends of `steps`, `(levels, lanes, size)`. At the `edge` of the domain
    there is one side only."""
    h, at_edge = steps[..., None], edge[:, None]
    ahead, ahead_doubt = extrapolate((plus - value) / h, ratio, 1)
    behind, behind_doubt = extrapolate((value - minus) / h, ratio, 1)
    central, doubt = extrapolate((plus - minus) / (2 * h), ratio, 2)
    sides = np.stack([ahead, np.where(at_edge, ahead, behind)])
    scale = np.max(np.abs([*sides, FLOOR * value]), axis=0)
    return Differences(
        np.where(at_edge, ahead, central),
        np.where(at_edge, ahead_doubt, doubt),
        sides,
        np.stack([ahead_doubt, np.where(at_edge, ahead_doubt, behind_doubt)]),
        scale,
    )
