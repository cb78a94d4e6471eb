"""What the inputs of products hold on calibration data: one Gram matrix for each, in passes that fit into memory."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgesmith import Context, Model
from edgesmith.execution.observe import observe
from edgesmith_calibration.observers import GramObserver
from edgesmith_lowrank.factorisation import Matrix
from edgesmith_lowrank.options import Options
from edgesmith_lowrank.products import Weight

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

_BYTES = 8
_MIB = 1 << 20


def grams(
    model: Model, weights: Sequence[Weight], data: "DataSource", context: Context[Options]
) -> Iterator[tuple[Weight, Matrix]]:
    """Yield each matrix with the Gram matrix [in, in] of what it multiplies, summed over all products that read it."""
    for group in passes(weights, context.options.statistics_mib * _MIB):
        names = list(dict.fromkeys(name for weight in group for name in weight.inputs))
        observed = observe(
            model.ir,
            names,
            data.take(context.options.samples),
            GramObserver,
            threads=context.threads,
            progress=context.progress,
        )
        for weight in group:
            yield weight, np.sum([observed[name].matrix for name in weight.inputs], axis=0)


def passes(weights: Sequence[Weight], budget_bytes: int) -> Iterator[list[Weight]]:
    """Yield the matrices in groups whose statistics fit into the budget together; one always fits."""
    group: list[Weight] = []
    used = 0
    for weight in weights:
        needed = len(weight.inputs) * weight.size[0] ** 2 * _BYTES
        if group and used + needed > budget_bytes:
            yield group
            group, used = [], 0
        group.append(weight)
        used += needed
    if group:
        yield group
