"""What a group of layers shares, and what stays private. Nothing here knows a graph.

A layer is a matrix [inputs + 1, outputs] whose last row is the bias, as in `edgesmith_calibration.moments`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_RIDGE = 1e-6


def mean_layer(layers: Sequence[Float64]) -> Float64:
    """Return the mean of layers; of equal layers exactly that layer."""
    if all(np.array_equal(layer, layers[0]) for layer in layers):
        return layers[0].copy()
    return np.asarray(np.mean(layers, axis=0), np.float64)


def weighted_layer(layers: Sequence[Float64], grams: Sequence[Float64]) -> Float64:
    """Return W = (sum C_i)^-1 (sum C_i W_i), which minimises sum |X_i (W - W_i)|^2; of equal layers that layer.

    Directions that no layer reads are those of the mean.

    Args:
        layers: One for each block, [inputs + 1, outputs].
        grams: Sum of x x^T over what each reads, [inputs + 1, inputs + 1].
    """
    mean = mean_layer(layers)
    if all(np.array_equal(layer, mean) for layer in layers):
        return mean
    total = np.sum(grams, axis=0)
    wanted = np.sum([gram @ (layer - mean) for gram, layer in zip(grams, layers, strict=True)], axis=0)
    held = _RIDGE * float(np.mean(np.diag(total))) or 1.0
    return np.asarray(mean + np.linalg.solve(total + held * np.eye(len(total)), wanted), np.float64)


def laco_layer(base: Float64, removed: Sequence[Float64], *, released: bool = False) -> Float64:
    """Return base + sum_k (removed_k - base) (LaCo, arXiv 2402.11187, equation 1).

    The released code subtracts the sum so far in place of the base, so that only the last removed layer is left.

    Args:
        base: The layer that stays, [inputs + 1, outputs].
        removed: The layers merged into it, in their order.
        released: Merge as the released code does.
    """
    merged = base.copy()
    for layer in removed:
        merged += layer - (merged if released else base)
    return merged


def correction(difference: Float64, rank: int) -> tuple[Float64, Float64]:
    """Return the product of rank `rank` nearest to a matrix, as two factors of equal size (truncated SVD).

    Args:
        difference: [inputs, outputs].
        rank: Largest rank; the factors hold fewer columns where the matrix has fewer.
    """
    left, values, right = np.linalg.svd(difference, full_matrices=False)
    kept = min(rank, int(np.count_nonzero(values > 1e-12 * max(float(values[0]), 1e-300)))) if values.size else 0
    root = np.sqrt(values[:kept])
    return np.asarray(left[:, :kept] * root, np.float64), np.asarray(root[:, None] * right[:kept], np.float64)
