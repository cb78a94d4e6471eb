"""Which weights of a matrix go: exact counts, whole or in groups, and the same choice every time.

A mask is a boolean array [outputs, inputs] that is True where a weight is removed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.graph.group_sparsity import is_group_sparse

Mask = NDArray[np.bool_]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `kept` of each `group` consecutive inputs are not zero, in every output."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> "Pattern | None":
        """Return the pattern "N:M", or None for "unstructured"."""
        if text == "unstructured":
            return None
        kept, group = map(int, text.split(":"))
        return cls(kept, group)

    @property
    def sparsity(self) -> float:
        """Share of weights that are removed."""
        return 1 - self.kept / self.group

    def holds(self, weight: Array) -> bool:
        """Return whether a matrix [outputs, inputs] follows it; never where the groups do not cover the inputs."""
        return is_group_sparse(weight, 1, self.kept, self.group)

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


def removed_count(size: int, sparsity: float) -> int:
    """Return how many of `size` weights go: all but the whole part of `size * (1 - sparsity)`."""
    # Decimal fractions are not exact in binary: 10 * (1 - 0.9) is a little less than 1.
    return size - math.floor(size * (1 - sparsity) + 1e-9)


def remove_lowest(scores: Array, count: int, *, ties: Array | None = None, removed: Mask | None = None) -> Mask:
    """Return a mask with the `count` lowest scores of each row removed.

    Args:
        scores: [rows, columns]; infinite where a weight must stay. Of equal scores the first goes.
        count: How many to remove in each row.
        ties: Of equal scores those with the lowest of these go first.
        removed: Already removed; these count, and stay removed where they are more than `count`.
    """
    keys = [np.asarray(scores, np.float64)]
    if removed is not None:
        keys[0] = np.where(removed, -np.inf, keys[0])
    if ties is not None:
        keys.insert(0, np.asarray(ties, np.float64))
    order = np.lexsort(keys, axis=-1)
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order[:, :count], True, axis=1)
    mask &= ~np.isposinf(keys[-1])
    return mask if removed is None else mask | removed


def select(
    scores: Array,
    sparsity: float,
    pattern: Pattern | None,
    *,
    whole: bool = False,
    ties: Array | None = None,
    removed: Mask | None = None,
) -> Mask:
    """Return a mask of the share `sparsity` of the lowest scores, of each row or of the whole matrix, or in groups.

    Args:
        scores: [outputs, inputs]; infinite where a weight must stay.
        sparsity: Share of weights to remove where there is no pattern.
        pattern: Removes in each group of consecutive inputs as many as it says.
        whole: Count over the whole matrix and not in each row. A pattern counts in groups anyway.
        ties: As in `remove_lowest`.
        removed: As in `remove_lowest`.
    """
    shape = (1, scores.size) if whole else scores.shape
    count = removed_count(shape[1], sparsity)
    if pattern is not None:
        shape, count = (scores.size // pattern.group, pattern.group), pattern.group - pattern.kept
    parts = [None if each is None else each.reshape(shape) for each in (ties, removed)]
    return remove_lowest(scores.reshape(shape), count, ties=parts[0], removed=parts[1]).reshape(scores.shape)
