"""How much worse a network answers. Nothing here knows a graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def next_token_loss(logits: NDArray[np.floating], tokens: NDArray[np.integer]) -> tuple[float, int]:
    """Return the summed negative log-likelihood of each token given those before it, and how many there are.

    Args:
        logits: [samples, positions, tokens].
        tokens: What stands at each position, [samples, positions].
    """
    return token_loss(logits[:, :-1], tokens[:, 1:])


def token_loss(logits: NDArray[np.floating], following: NDArray[np.integer]) -> tuple[float, int]:
    """Return the summed negative log-likelihood of tokens, and how many there are.

    Args:
        logits: [samples, positions, tokens].
        following: The token that each position should predict, [samples, positions].
    """
    rows = logits.reshape(-1, logits.shape[-1])
    following = following.reshape(-1)
    highest = rows.max(axis=1, keepdims=True)
    own = np.take_along_axis(rows, following[:, None], axis=1)[:, 0].astype(np.float64)
    total = np.log(np.exp(rows - highest).sum(axis=1, dtype=np.float64)) + highest[:, 0]
    return float((total - own).sum()), following.size


def squared_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> tuple[float, float]:
    """Return squared error and squared size of all floating-point outputs, each output in units of its mean square.

    Args:
        outputs: Outputs by name.
        reference: What they should be.
    """
    error = size = 0.0
    for name, wanted in reference.items():
        if wanted.dtype.kind != "f" or not wanted.size:
            continue
        target = wanted.astype(np.float64)
        scale = float(np.square(target).mean()) or 1.0
        error += float(np.square(outputs[name].astype(np.float64) - target).sum()) / scale
        size += wanted.size
    return error, size
