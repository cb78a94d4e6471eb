"""Scores of single weights that need no solver: what goes first has the lowest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = NDArray[Any]


def magnitude(weight: Array) -> Float64:
    """Return the absolute weights (Han et al. 2015, arXiv 1506.02626, section 3)."""
    return np.abs(weight).astype(np.float64)


def wanda(weight: Array, gram: Float64) -> Float64:
    """Return absolute weights times the norm of their input over the data (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    Args:
        weight: [outputs, inputs].
        gram: Sum of the outer products of inputs, [inputs, inputs]. Its scale does not matter.
    """
    return np.asarray(magnitude(weight) * np.sqrt(np.maximum(np.diag(gram), 0)))
