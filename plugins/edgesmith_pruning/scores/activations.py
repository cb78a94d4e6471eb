"""Scores from a layer and the moments of its inputs, one number for each input row.

All take the layer as [inputs, outputs] and numbers of its inputs as [inputs], and return [inputs].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def second_moment(matrix: Float64, moment: Float64) -> Float64:
    """Return M_j = 1/2 |B_j|^2 E[z_j^2] (output approximation, arXiv 2407.19126, section 3).

    Args:
        matrix: B, the second-level layer.
        moment: E[z_j^2] of what it reads.
    """
    return np.asarray(0.5 * np.square(matrix).sum(axis=1) * moment)


def paper_moments(squared_norms: Float64, given: Sequence[Float64]) -> Float64:
    """Return the second moment of each atom as printed: 1/2 |B_j|^2 (A_j Sigma A_j^T), a product over gate and up.

    Args:
        squared_norms: |B_j|^2, [atoms].
        given: A_j Sigma A_j^T of each first-level layer, [atoms] each.
    """
    return np.asarray(np.prod([0.5 * squared_norms * each for each in given], axis=0))


def released_moments(norms: Float64, given: Sequence[Float64], is_gate: Sequence[bool]) -> Float64:
    """Return the score of the released code: |B_j| silu(gate) up, norms not squared and without the factor 1/2.

    Args:
        norms: |B_j|, [atoms].
        given: A_j Sigma A_j^T of each first-level layer, [atoms] each.
        is_gate: Which of them pass the activation of a gated MLP.
    """
    gated = [each / (1 + np.exp(-each)) if gate else each for each, gate in zip(given, is_gate, strict=True)]
    return np.asarray(norms * np.prod(gated, axis=0))


def wanda(matrix: Float64, moment: Float64) -> Float64:
    """Return sum_o |B_jo| sqrt(E[x_j^2]) (Wanda's score summed over outputs, arXiv 2306.11695, section 3)."""
    return np.asarray(np.abs(matrix).sum(axis=1) * np.sqrt(moment))


def fluctuation(matrix: Float64, variance: Float64) -> Float64:
    """Return Var(x_j) |B_j|^2 (FLAP's weighted input variance, arXiv 2312.11983, section 3.1)."""
    return np.asarray(np.square(matrix).sum(axis=1) * variance)


def over_atoms(scores: Float64, rows: tuple[tuple[int, ...], ...]) -> Float64:
    """Return the sum of the scores of each atom's rows, [atoms]."""
    return np.array([scores[list(each)].sum() for each in rows])
