"""Masks that differ a little from the largest weights: drawn at random, so that the best of several can be taken.

Li et al. 2023, Breaking through Deterministic Barriers: Randomized Pruning Mask Generation and Selection,
arXiv 2310.13183. Each of S draws takes as many weights as stay, without replacement, with probabilities proportional
to the fifth power of their size; those drawn most often stay. Few draws make masks that differ much, many draws give
the largest weights.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.sparsity.masks import Mask, Pattern, removed_count, select

Float64 = NDArray[np.float64]

EXPONENT = 5.0
RATIOS = (5e-5, 1e-4, 8e-5, 3e-4)
"""Draws per removed weight, for one candidate after another."""


def gumbel_top(log_weights: Float64, count: int, generator: np.random.Generator) -> Mask:
    """Return in each row `count` places drawn without replacement, the next one in proportion to the weights left.

    The places of the largest sums of log weight and Gumbel noise are such a draw (Kool et al. 2019, arXiv 1903.06059,
    section 2). Places of weight 0 (log minus infinity) are drawn last, if at all.

    Args:
        log_weights: [rows, places].
        count: Places to draw in each row.
        generator: Source of the noise.
    """
    noisy = log_weights + generator.gumbel(size=log_weights.shape)
    drawn = np.zeros(log_weights.shape, bool)
    if count:
        np.put_along_axis(drawn, np.argpartition(-noisy, count - 1, axis=1)[:, :count], True, axis=1)
    return drawn & ~np.isneginf(log_weights)


def sample_counts(
    weight: NDArray[Any], kept: int, draws: int, generator: np.random.Generator, *, exponent: float = EXPONENT
) -> NDArray[np.int64]:
    """Return how often each weight was drawn in its row.

    Args:
        weight: [rows, places]; weights of 0 are never drawn.
        kept: Places in each draw.
        draws: How many draws.
        generator: Source of the noise.
        exponent: Power of the size that probabilities are proportional to.
    """
    with np.errstate(divide="ignore"):
        log_weights = exponent * np.log(np.abs(weight).astype(np.float64))
    counts = np.zeros(weight.shape, np.int64)
    for _ in range(draws):
        counts += gumbel_top(log_weights, kept, generator)
    return counts


def sample_mask(
    weight: NDArray[Any],
    sparsity: float,
    pattern: Pattern | None,
    *,
    draws: int,
    generator: np.random.Generator,
    removed: Mask | None = None,
    stays: Mask | None = None,
    exponent: float = EXPONENT,
) -> Mask:
    """Return the mask of the weights of a matrix that were drawn least often; of those, the smallest.

    Args:
        weight: [outputs, inputs].
        sparsity: Share of the whole matrix to remove where there is no pattern.
        pattern: Draws and removes within groups of inputs.
        draws: How often to draw.
        generator: Source of the noise.
        removed: Already removed; they stay so, and are never drawn.
        stays: Never removed.
        exponent: Power of the size that probabilities are proportional to.
    """
    left = weight if removed is None else np.where(removed, 0, weight)
    shape, kept = (1, weight.size), weight.size - removed_count(weight.size, sparsity)
    if pattern is not None:
        shape, kept = (-1, pattern.group), pattern.kept
    counts = sample_counts(left.reshape(shape), kept, draws, generator, exponent=exponent)
    scores = counts.reshape(weight.shape).astype(np.float64)
    if stays is not None:
        scores[stays] = np.inf
    return select(scores, sparsity, pattern, whole=True, ties=np.abs(left), removed=removed)


def candidate_masks(
    weight: NDArray[Any],
    sparsity: float,
    pattern: Pattern | None,
    *,
    count: int,
    generator: np.random.Generator,
    removed: Mask | None = None,
    stays: Mask | None = None,
) -> list[Mask]:
    """Return several masks, each with as many draws as the next of `RATIOS` says. Arguments as in `sample_mask`."""
    share = sparsity if pattern is None else pattern.sparsity
    removals = removed_count(weight.size, share)
    return [
        sample_mask(
            weight,
            sparsity,
            pattern,
            draws=max(1, int(removals * RATIOS[index % len(RATIOS)])),
            generator=generator,
            removed=removed,
            stays=stays,
        )
        for index in range(count)
    ]
