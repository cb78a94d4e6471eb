"""What the report says of sparse weights: how many zeros, at what error, and what the target gains."""

from collections.abc import Iterator, Sequence

import numpy as np

from edgesmith.host.dialect import Dialect
from edgesmith_pruning.finding.sparse_layers import Array, SparseLayer
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.sparsity.layer import Sparse
from edgesmith_pruning.sparsity.masks import Pattern

Outcome = tuple[SparseLayer, Sparse]


def remarks(outcomes: Sequence[Outcome], options: PruneWeightsOptions, dialect: Dialect) -> Iterator[str]:
    """Yield sentences about the step as a whole.

    Args:
        outcomes: Every layer with what pruning did.
        options: The options of the step.
        dialect: What the target takes.
    """
    yield from zeros_remarks([layer.matrix() for layer, _ in outcomes], options, dialect)
    if options.needs.data:
        yield _errors(outcomes)
        yield from _damping(outcomes, options)


def zeros_remarks(weights: Sequence[Array], options: PruneWeightsOptions, dialect: Dialect) -> Iterator[str]:
    """Yield how many zeros there are, and what they gain on the target. Weights are [outputs, inputs]."""
    zeros, total = sum(int((weight == 0).sum()) for weight in weights), sum(weight.size for weight in weights)
    yield f"Set {zeros} of {total} weights of {len(weights)} layers to zero ({zeros / total:.2%})."
    pattern = Pattern.parse(options.pattern)
    if pattern is not None and str(pattern) == dialect.sparse_weights:
        held = sum(pattern.holds(weight) for weight in weights)
        yield (
            f"{held} of {len(weights)} layers follow {pattern}, for which {dialect.name} has kernels; its builder "
            "takes them only where they are faster, so measure there."
        )
        return
    stored = sum(weight.nbytes for weight in weights)
    packed = stored * (total - zeros) / total + total / 8
    kernels = f", and has kernels for {dialect.sparse_weights} only" if dialect.sparse_weights else ""
    yield (
        f"This gains size only: {dialect.name} multiplies by zeros as by other numbers{kernels}. Stored as a bit mask "
        f"and the other values, these weights would take {packed / 2**20:.1f} MiB instead of {stored / 2**20:.1f}."
    )


def _errors(outcomes: Sequence[Outcome]) -> str:
    worst, least = max(outcomes, key=lambda each: each[1].error), np.mean([sparse.error for _, sparse in outcomes])
    plain = np.mean([sparse.plain_error for _, sparse in outcomes])
    return (
        f"Squared errors of layers on calibration data are {least:.2%} of their outputs' squares on average and "
        f"{worst[1].error:.2%} at most ({worst[0].name}); without adaptation and refit {plain:.2%} on average."
    )


def _damping(outcomes: Sequence[Outcome], options: PruneWeightsOptions) -> Iterator[str]:
    short = [(layer, sparse) for layer, sparse in outcomes if sparse.damping > options.damping]
    if short:
        layer, sparse = short[0]
        yield (
            f"There was little data for {len(short)} layers, so they were damped more (such as {layer.name}: "
            f"{sparse.damping:.3g} instead of {options.damping:g}); give it more samples."
        )
