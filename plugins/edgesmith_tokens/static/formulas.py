"""The mathematics of static attention: one constant map S for each head in place of softmax(Q K^T).

The idea is that of DGSSA, Heterogeneous Attention Patterns, arXiv 2310.07664; the closed forms are our own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def similarity(mean: Float64, scaled_mean: Float64, inverse_energy: float) -> float:
    """Return how alike the maps A(x) of different samples are: 1 - E[||A(x) - E[A]||^2 / ||A(x)||^2].

    1 for a constant map; it may be negative. The mean of the quotients is taken from three sums, so that no map need be
    kept: ||A - M||^2 / ||A||^2 = 1 - 2 <A, M> / ||A||^2 + ||M||^2 / ||A||^2.

    Args:
        mean: M = E[A], float64 [heads, tokens, tokens].
        scaled_mean: E[A / ||A||^2], of the same shape, with the norm over all heads.
        inverse_energy: E[1 / ||A||^2].
    """
    return float(2 * np.vdot(scaled_mean, mean) - np.vdot(mean, mean) * inverse_energy)


def least_squares_map(cross: Float64, gram: Float64, ridge: float) -> Float64:
    """Return the maps that come closest to A V in all samples: E[A V V^T] (E[V V^T] + lambda I)^-1, for each head.

    Args:
        cross: Sum of A V V^T over samples, float64 [heads, tokens, tokens].
        gram: Sum of V V^T, of the same shape.
        ridge: lambda as a share of the mean of the diagonal of the Gram matrix.
    """
    tokens = gram.shape[-1]
    strength = ridge * np.trace(gram, axis1=-2, axis2=-1) / tokens
    # A head whose values are all zero has no solution without some ridge; its map does not matter then.
    strength = np.where(strength > 0, strength, 1.0)
    damped = gram + strength[:, None, None] * np.eye(tokens)
    solved = np.linalg.solve(damped, cross.swapaxes(-1, -2)).swapaxes(-1, -2)
    return np.asarray(solved, np.float64)


def mean_residual(map_: Float64, mean_output: Float64, mean_values: Float64) -> Float64:
    """Return the bias that is best for a given map: E[(A - S) V], float64 [heads, tokens, channels].

    Args:
        map_: S, [heads, tokens, tokens].
        mean_output: E[A V], [heads, tokens, channels].
        mean_values: E[V], of the same shape.
    """
    bias: Float64 = mean_output - map_ @ mean_values
    return bias


def squared_error(map_: Float64, energy: Float64, cross: Float64, gram: Float64) -> Float64:
    """Return the sum of ||A V - S V||^2 over samples for each head, [heads], from sums alone.

    Args:
        map_: S, [heads, tokens, tokens].
        energy: Sum of ||A V||^2, [heads].
        cross: Sum of A V V^T, [heads, tokens, tokens].
        gram: Sum of V V^T, of the same shape.
    """
    error: Float64 = energy + np.einsum("hij,hij->h", map_, map_ @ gram - 2 * cross)
    return np.maximum(error, 0.0)


def row_logarithm(map_: NDArray[Any], floor: float = 1e-8) -> NDArray[Any]:
    """Return logits P with softmax(P) = S for a map whose rows sum to 1; entries below `floor` count as `floor`."""
    logits: NDArray[Any] = np.log(np.maximum(map_, floor))
    return logits
