"""Bipartite soft matching and merging of tokens, on arrays.

Bolya et al. 2023 (ToMe), arXiv 2210.09461, section 3 and appendix D. Tokens at even places are set A, those at odd
places set B. Each token of A finds the token of B that it is most like; the r pairs that are most alike are merged.
Protected tokens stand in front and take no part. Ties go to the lowest place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tokens go where, for each image. Places are counted in the whole list of tokens."""

    kept: Array
    """Tokens of A that stay, [batch, kept]; in order of place where tokens are protected, else most alike first."""
    sources: Array
    """Tokens of A that are merged, [batch, r], most alike first."""
    destinations: Array
    """The token of B that each source goes to, [batch, r], counted within B."""
    others: Array
    """Tokens of B, [tokens of B]."""


def sets(tokens: int, protected: int) -> tuple[range, range]:
    """Return the places of the tokens of A and of B."""
    first = protected + protected % 2
    second = protected + 1 - protected % 2
    return range(first, tokens, 2), range(second, tokens, 2)


def most_merged(tokens: int, protected: int) -> int:
    """Return how many tokens one merge can take away at most."""
    return max(0, (tokens - protected) // 2)


def match(metric: Array, r: int, protected: int) -> Matching:
    """Return which tokens are merged.

    Args:
        metric: What tokens are compared by, [batch, tokens, size].
        r: Tokens to take away, at most `most_merged`.
        protected: Tokens in front that take no part.
    """
    unit = metric / np.maximum(np.linalg.norm(metric, axis=-1, keepdims=True), 1e-6)
    first, second = sets(metric.shape[1], protected)
    return match_scores(unit[:, first] @ unit[:, second].swapaxes(-1, -2), first, second, r, sort=protected > 0)


def match_scores(scores: Array, first: range, second: range, r: int, *, sort: bool) -> Matching:
    """Return which tokens are merged, given how much each token of A is like each of B: [batch, A, B].

    Args:
        scores: Higher is more alike.
        first: Places of A.
        second: Places of B.
        r: Tokens to take away.
        sort: Whether tokens of A that stay are put in order of place.
    """
    best, partner = scores.max(axis=-1), scores.argmax(axis=-1)
    order = np.argsort(-best, axis=-1, kind="stable")
    sources, kept = order[:, :r], order[:, r:]
    if sort:
        kept = np.sort(kept, axis=-1)
    places = np.asarray(first)
    return Matching(places[kept], places[sources], np.take_along_axis(partner, sources, 1), np.asarray(second))


def merge(x: Array, sizes: Array, matching: Matching, protected: int) -> tuple[Array, Array]:
    """Return the tokens after the merge and their sizes: the protected ones, the kept ones of A, those of B.

    A token of B becomes the mean of itself and its sources, weighted by sizes.

    Args:
        x: [batch, tokens, width].
        sizes: [batch, tokens, 1].
        matching: From `match`.
        protected: Tokens in front that take no part.
    """
    batch = np.arange(len(x))[:, None]
    total, size = x[:, matching.others] * sizes[:, matching.others], sizes[:, matching.others].copy()
    source_sizes = sizes[batch, matching.sources]
    np.add.at(total, (batch, matching.destinations), x[batch, matching.sources] * source_sizes)
    np.add.at(size, (batch, matching.destinations), source_sizes)
    values = [x[:, :protected], x[batch, matching.kept], total / size]
    counts = [sizes[:, :protected], sizes[batch, matching.kept], size]
    return np.concatenate(values, axis=1), np.concatenate(counts, axis=1)


def unmerge(x: Array, matching: Matching, protected: int) -> Array:
    """Return as many tokens as before a merge, each with the values of what it went into."""
    kept, r = matching.kept.shape[1], matching.sources.shape[1]
    result = np.empty((len(x), protected + kept + r + len(matching.others), x.shape[-1]), x.dtype)
    batch, after = np.arange(len(x))[:, None], x[:, protected + kept :]
    result[:, :protected] = x[:, :protected]
    result[batch, matching.kept] = x[:, protected : protected + kept]
    result[:, matching.others] = after
    result[batch, matching.sources] = after[batch, matching.destinations]
    return result
