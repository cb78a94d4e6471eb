"""One ranking over all units: what costs least error for what it saves goes first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.allocation.budget import Family

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """What it costs to narrow one unit."""

    rises: Float64
    """Rise of the error with each further atom (of every group), in a unit that is the same for all curves."""
    saves: float
    """What one atom of every group saves."""
    step: int = 1
    """How many atoms go at once; widths stay multiples of it."""
    first: int = 0
    """How many go first, where the width is no such multiple yet; 0: as many as later."""

    @property
    def counts(self) -> tuple[int, ...]:
        """How many atoms may go, none included."""
        return 0, *range(self.first or self.step, len(self.rises) + 1, self.step)


def ranked(curves: Mapping[str, Curve]) -> Family:
    """Return plans that take steps in the order of their error per saving.

    Within a unit steps keep their order: one that is cheap only behind a dear one is taken together with it (the
    lower convex hull of the error, as in Fox 1966, "Discrete optimization via marginal analysis").

    Args:
        curves: One for each unit by its key.
    """
    steps: list[tuple[float, str, int, int]] = []
    for key, curve in curves.items():
        errors = np.concatenate([[0.0], np.cumsum(curve.rises)])
        corners = _hull(curve.counts, errors)
        for first, last in pairwise(corners):
            slope = (errors[last] - errors[first]) / ((last - first) * max(curve.saves, 1e-12))
            # Along a straight piece of the hull single steps are equally good, so each may end the plan.
            steps += [(slope, key, at, at - before) for before, at in pairwise(curve.counts) if first < at <= last]
    steps.sort()
    savings = np.cumsum([curves[key].saves * size for _, key, _, size in steps])
    total = savings[-1] if len(savings) else 1.0

    def plan(level: float) -> dict[str, int]:
        counts = dict.fromkeys(curves, 0)
        for (_, key, at, _), saved in zip(steps, savings, strict=True):
            if saved > level * total * (1 + 1e-12):
                break
            counts[key] = at
        return counts

    return plan


def _hull(places: Sequence[int], errors: Float64) -> list[int]:
    """Return the corners of the lower convex hull of the errors at these places."""
    corners: list[int] = []
    for place in places:
        while len(corners) > 1 and _slope(errors, corners[-2], corners[-1]) >= _slope(errors, corners[-1], place):
            corners.pop()
        corners.append(place)
    return corners


def _slope(errors: Float64, first: int, last: int) -> float:
    return float((errors[last] - errors[first]) / (last - first))
