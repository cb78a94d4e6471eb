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


def metric(gram: Float64, *, has_bias: bool) -> Float64:
    """Return the C for which tr(D^T C D) is the squared error that a difference D of weights makes over all inputs.

    With a bias of its own a layer makes up for the mean error, so C is the centred sum (x - m)(x - m)^T; without one it
    is the sum x x^T.

    Args:
        gram: Sum of x x^T, [inputs + 1, inputs + 1], where the last entry of x is 1.
        has_bias: Whether the layer has a bias.
    """
    moment = gram[:-1, :-1]
    if not has_bias or gram[-1, -1] <= 0:
        return moment
    return np.asarray(moment - np.outer(gram[:-1, -1], gram[-1, :-1]) / gram[-1, -1], np.float64)


def correction(difference: Float64, rank: int, gram: Float64 | None = None) -> tuple[Float64, Float64]:
    """Return A and B of rank `rank` for which |X (D - A B)|^2 = tr((D - A B)^T C (D - A B)) is least, C = X^T X.

    With C = L L^T this is |L^T D - L^T A B|^2 in the Frobenius norm. By Eckart and Young the truncated SVD
    U S V^T of L^T D is best there, so A B = L^-T U S V^T. A plain SVD (C = I) would keep what is large in D, and that
    is what X does not read: there nothing held the shared weights to those of the block. Columns of A and rows of B
    get equal lengths.

    Args:
        difference: D, [inputs, outputs].
        rank: Largest rank; the factors hold fewer columns where the matrix has fewer.
        gram: C, [inputs, inputs]; None for the identity, where there is no data.
    """
    inputs, outputs = difference.shape
    if not difference.any():
        return np.zeros((inputs, 0)), np.zeros((0, outputs))
    held = 1.0 if gram is None else _RIDGE * float(np.mean(np.diag(gram))) or 1.0
    root = np.linalg.cholesky((0.0 if gram is None else gram) + held * np.eye(inputs))
    directions, values, right = np.linalg.svd(root.T @ difference, full_matrices=False)
    kept = min(rank, int(np.count_nonzero(values > 1e-12 * float(values[0]))))
    left = np.asarray(np.linalg.solve(root.T, directions[:, :kept]), np.float64)
    lengths = np.sqrt(values[:kept]) * np.sqrt(np.linalg.norm(left, axis=0))
    return left * (values[:kept] / lengths), np.asarray(right[:kept] * lengths[:, None], np.float64)


def fitting_bias(own: Float64, weights: Float64, gram: Float64 | None = None) -> Float64:
    """Return the bias b + m (W - W') with which other weights W' give the outputs of a layer in the mean, [outputs].

    Args:
        own: The layer, W over b: [inputs + 1, outputs].
        weights: W', [inputs, outputs].
        gram: Sum of x x^T, [inputs + 1, inputs + 1], whose last row holds the mean m; None leaves the bias.
    """
    if gram is None or gram[-1, -1] <= 0:
        return np.asarray(own[-1], np.float64)
    return np.asarray(own[-1] + gram[-1, :-1] / gram[-1, -1] @ (own[:-1] - weights), np.float64)
