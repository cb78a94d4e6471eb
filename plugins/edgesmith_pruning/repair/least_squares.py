"""Refits a layer to the outputs that it should give, on the inputs that it keeps."""

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments

Float64 = NDArray[np.float64]

_SMALLEST_SHARE = 1e-2
"""An output that keeps less of its variance has lost what it was made of, and is not blown up."""


def pulled(moments: Moments, prior: Float64, ridge: float) -> Moments:
    """Return moments in which a ridge pulls the layer to `prior`: G + l I and C + l P, the bias left free.

    The pull is to the weights that were there and not to zero, so that little data changes little.

    Args:
        moments: What was measured.
        prior: The layer as it is, [inputs + 1, outputs].
        ridge: Strength, as a share of the mean second moment of an input.
    """
    strength = np.full(len(prior), ridge * float(np.mean(np.diag(moments.gram)[:-1])) + 1e-12)
    strength[-1] = 0.0
    gram = moments.gram + np.diag(strength)
    cross = moments.cross + strength[:, None] * prior
    energy = moments.energy + float(np.vdot(prior, strength[:, None] * prior))
    return Moments(gram, cross, energy, moments.rows)


def refit(moments: Moments, matrix: Float64, kept: NDArray[np.bool_], *, bias: bool) -> Float64:
    """Return the layer of least squared error that reads only what is kept: W = G_kk^-1 C_k, and 0 elsewhere.

    Args:
        moments: Sums that may be inverted (see `pulled`).
        matrix: The layer as it is, [inputs + 1, outputs]; the last row is the bias.
        kept: For each input, whether it stays, [inputs].
        bias: Whether the bias may change too.
    """
    rows = np.flatnonzero(np.append(kept, bias))
    result = np.zeros_like(matrix)
    result[-1] = matrix[-1]
    cross = moments.cross[rows]
    if not bias:
        cross = cross - np.outer(moments.gram[rows, -1], matrix[-1])
    result[rows] = np.linalg.solve(moments.gram[np.ix_(rows, rows)], cross)
    return result


def dropped(matrix: Float64, kept: NDArray[np.bool_]) -> Float64:
    """Return the layer without what is not kept, otherwise unchanged."""
    return np.where(np.append(kept, True)[:, None], matrix, 0.0)


def rescaled(matrix: Float64, kept: NDArray[np.bool_], moments: Moments) -> Float64:
    """Return the layer without what is not kept, with the mean of each output that is wanted and its old variance.

    This is what estimating a batch normalization behind the layer anew does, put into the layer: the variance is that
    which the whole layer has on these inputs.

    Args:
        matrix: The layer, [inputs + 1, outputs].
        kept: For each input, whether it stays, [inputs].
        moments: Of its inputs, and of the wanted outputs.
    """
    result = dropped(matrix, kept)
    covariance = moments.gram[:-1, :-1] / moments.rows - np.outer(moments.mean, moments.mean)
    before, after = (np.einsum("io,io->o", each[:-1], covariance @ each[:-1]) for each in (matrix, result))
    varies = after > _SMALLEST_SHARE * np.maximum(before, 0)
    result[:-1] *= np.sqrt(np.divide(before, after, out=np.ones_like(after), where=varies))
    result[-1] = moments.cross[-1] / moments.rows - moments.mean @ result[:-1]
    return result
