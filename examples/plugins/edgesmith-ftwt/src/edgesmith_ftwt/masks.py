"""The mathematics of what to choose: filters that hold most of an image's response. NumPy in, NumPy out."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]
Mask = NDArray[np.bool_]

_TOLERANCE = 1e-5


def strongest_by_mass(responses: Matrix, mass: float) -> Mask:
    """Return for each image the strongest filters that together hold no more than `mass` of the sum.

    The strongest filter always stays. Filters with a hundred thousandth of the sum or less never do.
    Source: Fire Together Wire Together (arXiv 2110.08232), section 3.2, with the tolerance of its code.

    Args:
        responses: Strongest response of each filter, at least 0, [images, filters].
        mass: Share of their sum, above 0 and at most 1.

    Returns:
        Whether each filter is chosen, [images, filters].
    """
    total = responses.sum(axis=1, keepdims=True, dtype=np.float64)
    shares = responses / np.where(total > 0, total, 1.0)
    order = np.argsort(-shares, axis=1, kind="stable")
    ranked = np.take_along_axis(shares, order, axis=1)
    stays = (np.cumsum(ranked, axis=1) <= mass + _TOLERANCE) & (ranked > _TOLERANCE)
    stays[:, 0] = True
    chosen = np.zeros(responses.shape, np.bool_)
    np.put_along_axis(chosen, order, stays, axis=1)
    return chosen


def strongest_by_count(responses: Matrix, count: int) -> Mask:
    """Return for each image the `count` strongest filters, of equal ones the first.

    Args:
        responses: Strongest response of each filter, [images, filters].
        count: How many to choose.
    """
    order = np.argsort(-responses, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(responses.shape, np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen
