"""What the weights that stay should be: least squares against the outputs that the dense network had.

The input of a layer of the pruned network carries the errors of everything before it, the output that it should give
does not. Towards Robust Pruning: An Adaptive Knowledge-Retention Pruning Strategy for Language Models, 2023,
arXiv 2310.13191, section 4.2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.sparsity.masks import Mask
from edgesmith_pruning.statistics.paired import PairedMoments

Float64 = NDArray[np.float64]

_NEGLIGIBLE = 1e-8
"""Share of the outputs' squares below which what an iteration gains is not worth another."""


def adaptive_target(weight: NDArray[Any], moments: PairedMoments, hessian: Float64) -> Float64:
    """Return dense weights that give, on the pruned network's inputs, the outputs of the dense network most closely.

    Equation 5 of the paper, with the ridge pulling towards `weight` and not towards 0: where nothing has been pruned
    yet it returns `weight`, and inputs that the data says nothing about keep theirs.

    Args:
        weight: Dense weights, [outputs, inputs].
        moments: Statistics of the inputs.
        hessian: Moments of the pruned network's inputs, damped, [inputs, inputs].
    """
    old = weight.astype(np.float64)
    return np.asarray(old + np.linalg.solve(hessian, (moments.cross - moments.now) @ old.T).T)


def refit(start: Float64, mask: Mask, hessian: Float64, target: Float64, *, iterations: int = 32) -> Float64:
    """Return weights with the same zeros whose error against `target` is lower, or as low.

    Conjugate gradients on all rows at once, each on the inputs that it keeps, preconditioned by the diagonal. The error
    falls in every iteration.

    Args:
        start: Weights to begin with, 0 where `mask` is True, [outputs, inputs].
        mask: True where a weight is removed.
        hessian: Gram matrix of the inputs, damped, [inputs, inputs].
        target: What would be best without zeros, [outputs, inputs].
        iterations: Most iterations.
    """
    # Inputs are scaled to one norm, which preconditions the system and lets float32 hold it.
    scale = np.sqrt(np.diag(hessian))
    system = (hessian / np.outer(scale, scale)).astype(np.float32)
    values = (start * scale).astype(np.float32)
    aim = (target * scale).astype(np.float32)
    residual = np.where(mask, 0, (aim - values) @ system)
    direction, norm = residual.copy(), np.einsum("oi,oi->o", residual, residual)
    enough = _NEGLIGIBLE * np.einsum("oi,oi->o", aim @ system, aim)
    for _ in range(iterations):
        if (norm <= enough).all():
            break
        product = direction @ system
        curvature = np.einsum("oi,oi->o", direction, product)
        step = np.divide(norm, curvature, out=np.zeros_like(norm), where=curvature > 0)[:, None]
        values += step * direction
        residual -= np.where(mask, 0, step * product)
        before, norm = norm, np.einsum("oi,oi->o", residual, residual)
        direction = residual + np.divide(norm, before, out=np.zeros_like(norm), where=before > 0)[:, None] * direction
    return np.asarray(np.where(mask, 0, values / scale))
