"""How far blocks turn the residual stream. Nothing here knows a graph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def cosines(before: NDArray[np.floating], after: NDArray[np.floating]) -> Float64:
    """Return the cosine of the angle between vectors along the last axis, within [-1, 1].

    Vectors of length 0 have no direction: two of them count as equal, one of them as orthogonal.
    """
    a, b = before.astype(np.float64), after.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = np.asarray(~a.any(axis=-1) & ~b.any(axis=-1))
    cosine = np.where(lengths > 0, (a * b).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0), both_zero)
    return np.asarray(np.clip(cosine, -1.0, 1.0), np.float64)


def block_influence(before: NDArray[np.floating], after: NDArray[np.floating]) -> Float64:
    """Return 1 - cos(h_before, h_after) of each token (ShortGPT, arXiv 2403.03853, section 2.2).

    Args:
        before: The stream before the block, [..., channels].
        after: The stream behind it.
    """
    return 1.0 - cosines(before, after)


def angular_distance(before: NDArray[np.floating], after: NDArray[np.floating]) -> Float64:
    """Return acos(cos(h_l, h_l+n)) / pi (Deeper Layers, arXiv 2403.17887, section 3.2).

    Args:
        before: The stream before a run of blocks, [..., channels].
        after: The stream behind it.
    """
    return np.asarray(np.arccos(cosines(before, after)) / np.pi, np.float64)


def last_shown(vectors: NDArray[np.floating], mask: NDArray[Any] | None) -> NDArray[np.floating]:
    """Return the vector of each sample's last token that is not padding, [samples, channels].

    Args:
        vectors: [samples, tokens, channels].
        mask: 0 at padding, [samples, positions]; its last positions are those of the tokens, what stands before is a
            cache of earlier ones. None where nothing is padding.
    """
    if mask is None:
        return vectors[:, -1]
    behind = (mask[:, -vectors.shape[1] :] != 0)[:, ::-1].argmax(axis=1)
    return np.asarray(vectors[np.arange(len(vectors)), -1 - behind])
