"""Scores from weights alone: magnitude, and a random order to compare with."""

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.finding.records import Place

Float64 = NDArray[np.float64]


def squared_norms(weight: NDArray[np.floating], place: Place) -> Float64:
    """Return the squared norm of what each atom has in a weight, [atoms].

    Args:
        weight: The array of the initializer, float, any shape.
        place: Where the atoms lie on one of its axes.
    """
    squares = np.square(weight, dtype=np.float64)
    along = squares.sum(axis=tuple(axis for axis in range(weight.ndim) if axis != place.axis))
    return np.array([along[list(positions)].sum() for positions in place.positions])


def random_scores(atoms: int, seed: int) -> Float64:
    """Return a score for each atom that means nothing, the same for the same seed."""
    return np.random.default_rng(seed).random(atoms)
