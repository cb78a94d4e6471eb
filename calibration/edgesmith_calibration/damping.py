"""Gram matrices that are made safe to invert, and the triangular factor of the inverse.

Second-order methods take up the error of one weight with others. They need rows of the inverse Gram matrix of what is
left of it after each column, and these are the rows of one triangle (Frantar et al. 2023, GPTQ, arXiv 2210.17323,
section 3, step 3).
"""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def inverse_factor(gram: Float64, damping: float) -> Float64:
    """Return the upper triangle U with `U^T U = (H + damping * mean(diag H) * I)^-1`, float64 [inputs, inputs]."""
    # With the order of inputs reversed, H = L L^T becomes H = R R^T with R upper, and U is the inverse of R.
    lower = np.linalg.cholesky(damped(gram, damping)[::-1, ::-1])
    return np.triu(np.linalg.inv(lower)[::-1, ::-1])


def damped(gram: Float64, damping: float) -> Float64:
    """Return the Gram matrix with `damping` times the mean of its diagonal added to it; never singular."""
    mean = float(np.mean(np.diag(gram))) if gram.size else 0.0
    result = gram + np.eye(gram.shape[0]) * (damping * mean if mean > 0 else 1.0)
    return np.asarray(result, np.float64)
