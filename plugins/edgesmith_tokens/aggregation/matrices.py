"""Matrices P that make fewer tokens of many: X' = P X. Pure arithmetic."""

import numpy as np
from numpy.typing import NDArray

from edgesmith_tokens.aggregation.clusters import Labels

Float64 = NDArray[np.float64]


def averaging(labels: Labels, sizes: Float64) -> tuple[Float64, Float64]:
    """Return the matrix that averages groups of tokens by their sizes, and the sizes of the groups.

    The sum of the sizes stays what it was.

    Args:
        labels: Group of each token, [tokens]; each group occurs.
        sizes: Patches that each token stands for, [tokens].

    Returns:
        The matrix [groups, tokens], whose rows sum to 1, and sizes [groups].
    """
    members = np.zeros((int(labels.max()) + 1, len(labels)))
    members[labels, np.arange(len(labels))] = sizes
    totals = members.sum(axis=1)
    return members / totals[:, None], totals


def principal(gram: Float64, count: int) -> Float64:
    """Return the leading eigenvectors of E[X X^T] as rows, [count, tokens]: the best linear reduction of the tokens.

    Signs are chosen so that the entry of largest size in each row is positive.
    """
    _, vectors = np.linalg.eigh(gram)
    rows = vectors[:, ::-1].T[:count]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return np.asarray(rows * np.sign(largest))
