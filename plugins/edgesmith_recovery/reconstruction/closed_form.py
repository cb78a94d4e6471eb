"""Layer by layer in closed form: each gives the source's outputs as well as its inputs allow."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import SegmentedRun
from edgesmith.execution.unpadded import Padding, find_padding
from edgesmith.graph.edit import set_initializer
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.moments import Moments, MomentsObserver
from edgesmith_calibration.sources import DataSource
from edgesmith_recovery.arithmetic.least_squares import masked_least_squares, scaled_and_shifted
from edgesmith_recovery.finding.layers import Layer, find_layers, written
from edgesmith_recovery.finding.weights import TrainedWeight
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.reconstruction.distance import better_of, output_error, shown_rows
from edgesmith_recovery.training.data import training_samples

Float64 = NDArray[np.float64]


def solve_layers(
    model: Model, structure: Structure, weights: tuple[TrainedWeight, ...], context: Context[RecoverOptions]
) -> ir.Model:
    """Return the graph with layers that give what the source's layers give.

    A layer is changed only if that lowers its error on held-out samples.
    """
    source = context.source
    if source is None:  # `check` refuses such a context
        raise ValueError("no source")
    groups = find_layers(model.graph, structure, find_structure(source.ir), weights, context.notes)
    data, split, batch_size = training_samples(model, context)
    padding, _ = find_padding(model.ir, structure.attentions)
    result = model.ir.clone()
    parts = [data.select(indices) for indices in (split.training, split.held_out)]
    walks = [_Walk(result, source.ir, groups, part, padding, batch_size, context) for part in parts]
    solved = 0
    for group in context.progress.track(groups, "solving layers", len(groups)):
        fitted, held_out = (walk.moments(group) for walk in walks)
        for layer, fit, test in zip(group, fitted, held_out, strict=True):
            old = layer.matrix(result.graph)
            new = _solved(layer, fit, old, context.options)
            if test.error(new) < test.error(old):
                solved += 1
                for name, array in written(layer, result.graph, new):
                    set_initializer(result.graph.initializers[name], array)
    total = sum(map(len, groups))
    return better_of(
        model.ir,
        result,
        lambda each: output_error(each, source.ir, parts[1], padding, batch_size=batch_size, threads=context.threads),
        f"Solved {solved} of {total} linear layers",
        context,
    )


def _solved(layer: Layer, moments: Moments, matrix: Float64, options: RecoverOptions) -> Float64:
    if options.closed_form == "least-squares":
        return masked_least_squares(moments, matrix, layer.free)
    new = scaled_and_shifted(moments, matrix, scale=bool(layer.free[:-1].any()), shift=bool(layer.free[-1].all()))
    return np.where(layer.free, new, matrix)


class _Walk:
    """Goes through student and source side by side, from the inputs of one group of layers to the next."""

    def __init__(
        self,
        student: ir.Model,
        source: ir.Model,
        groups: Sequence[tuple[Layer, ...]],
        data: DataSource,
        padding: Padding | None,
        batch_size: int,
        context: Context[RecoverOptions],
    ) -> None:
        self._mask = () if padding is None else (padding.mask,)
        stops = [[group[0].linear.input, *self._mask] for group in groups]
        targets = [[layer.target for layer in group] for group in groups]
        self._runs = [
            SegmentedRun(graph, wanted, data, scratch=context.scratch, batch_size=batch_size, threads=context.threads)
            for graph, wanted in ((student, stops), (source, targets))
        ]

    def moments(self, group: tuple[Layer, ...]) -> list[Moments]:
        """Return the sums of each layer of the next group."""
        observers = [MomentsObserver(layer.linear.node) for layer in group]
        for found, wanted in zip(*(run.advance() for run in self._runs), strict=True):
            mask = found[self._mask[0]] if self._mask else None
            rows = shown_rows(found[group[0].linear.input], mask)
            for layer, observer in zip(group, observers, strict=True):
                observer.update(rows, shown_rows(wanted[layer.target], mask))
        return [observer.moments for observer in observers]
