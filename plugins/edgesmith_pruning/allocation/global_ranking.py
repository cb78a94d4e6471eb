"""One ranking over all units: what costs least error for what it saves goes first."""

from collections.abc import Mapping
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
    """Atoms go in multiples of this many; widths stay multiples of the tile."""


def ranked(curves: Mapping[str, Curve]) -> Family:
    """Return plans that take steps in the order of their error per saving.

    Within a unit steps keep their order: one that is cheap only behind a dear one is taken together with it (the
    lower convex hull of the error, as in Fox 1966, "Discrete optimization via marginal analysis").

    Args:
        curves: One for each unit by its key.
    """
    steps: list[tuple[float, str, int]] = []
    for key, curve in curves.items():
        errors = np.concatenate([[0.0], np.cumsum(curve.rises)])
        corners = _hull(np.arange(0, len(errors), curve.step), errors)
        for first, last in pairwise(corners):
            slope = (errors[last] - errors[first]) / ((last - first) * max(curve.saves, 1e-12))
            # Along a straight piece of the hull single steps are equally good, so each may end the plan.
            steps += [(slope, key, at) for at in range(first + curve.step, last + 1, curve.step)]
    steps.sort()
    savings = np.cumsum([curves[key].saves * curves[key].step for _, key, _ in steps])
    total = savings[-1] if len(savings) else 1.0

    def plan(level: float) -> dict[str, int]:
        counts = dict.fromkeys(curves, 0)
        for (_, key, at), saved in zip(steps, savings, strict=True):
            if saved > level * total * (1 + 1e-12):
                break
            counts[key] = at
        return counts

    return plan


def _hull(places: NDArray[np.intp], errors: Float64) -> list[int]:
    """Return the corners of the lower convex hull of the errors at these places."""
    corners: list[int] = []
    for place in places.tolist():
        while len(corners) > 1 and _slope(errors, corners[-2], corners[-1]) >= _slope(errors, corners[-1], place):
            corners.pop()
        corners.append(place)
    return corners


def _slope(errors: Float64, first: int, last: int) -> float:
    return float((errors[last] - errors[first]) / (last - first))
