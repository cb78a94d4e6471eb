"""Least squares for one layer, from sums over its inputs and wanted outputs. No data is kept.

A layer is a matrix [inputs + 1, outputs] whose last row is the bias, as in `edgesmith_calibration.moments`.
"""

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments

Float64 = NDArray[np.float64]


def masked_least_squares(moments: Moments, matrix: Float64, free: NDArray[np.bool_], iterations: int = 50) -> Float64:
    """Return a layer with less squared error than `matrix`, changed at free places only.

    Conjugate gradients, preconditioned with the diagonal, run for all outputs at once, each in the space of its free
    places. Every iteration lowers the error. Stopping early leaves directions that the data hardly shows as they were.

    Args:
        moments: Sums over inputs and wanted outputs.
        matrix: The layer to start from, [inputs + 1, outputs].
        free: Places that may change, in the same shape.
        iterations: Number of iterations.
    """
    diagonal = np.diag(moments.gram)[:, None]
    inverse = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    result = matrix.copy()
    residual = np.where(free, moments.cross - moments.gram @ matrix, 0.0)
    direction = inverse * residual
    length = (residual * direction).sum(axis=0)
    stop = 1e-20 * length
    for _ in range(iterations):
        image = np.where(free, moments.gram @ direction, 0.0)
        curvature = (direction * image).sum(axis=0)
        step = np.divide(length, curvature, out=np.zeros_like(length), where=(curvature > 0) & (length > stop))
        if not step.any():
            break
        result += step * direction
        residual -= step * image
        scaled = inverse * residual
        previous, length = length, (residual * scaled).sum(axis=0)
        turn = np.divide(length, previous, out=np.zeros_like(length), where=previous > 0)
        direction = scaled + turn * direction
    return result


def scaled_and_shifted(moments: Moments, matrix: Float64, *, scale: bool, shift: bool) -> Float64:
    """Return the layer with one factor and one shift per output, those of least squared error.

    Args:
        moments: Sums over inputs and wanted outputs.
        matrix: The layer, [inputs + 1, outputs].
        scale: Whether weights and bias may be multiplied.
        shift: Whether something may be added to the bias.
    """
    total, wanted = moments.gram[-1] @ matrix, moments.cross[-1]
    square, product = (matrix * (moments.gram @ matrix)).sum(axis=0), (matrix * moments.cross).sum(axis=0)
    if shift:
        square, product = square - total**2 / moments.rows, product - total * wanted / moments.rows
    # An output that does not vary has no factor that data could tell.
    varies = square > 1e-9 * np.abs(matrix * (moments.gram @ matrix)).sum(axis=0)
    factor = np.divide(product, square, out=np.ones_like(square), where=varies) if scale else np.ones_like(square)
    result: Float64 = matrix * factor
    if shift:
        result[-1] += (wanted - factor * total) / moments.rows
    return result
