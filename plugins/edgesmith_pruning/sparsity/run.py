"""Makes the layers of a graph sparse, in the order of the data: each by what it reads after all before it changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import SegmentedRun
from edgesmith.graph.dataflow import Dataflow
from edgesmith.mapped import WeightFile
from edgesmith.progress import Progress
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.sparse_layers import SparseLayer
from edgesmith_pruning.sparsity.layer import Rule, Sparse, prune_layer
from edgesmith_pruning.sparsity.masks import Mask
from edgesmith_pruning.statistics.paired import PairedMoments, PairedMomentsObserver
from edgesmith_pruning.statistics.rows import input_rows, kernel_of

_WINDOWS_PER_RUN = 4096
"""Largest number of windows of a convolution that one run adds: neighbours say much the same."""


@dataclass(frozen=True, slots=True)
class SparseRun:
    """What goes through the layers of one graph."""

    dense: ir.Model
    """The network as it was; never changed."""
    working: ir.Model
    """The same, whose weights change from layer to layer."""
    rule: Rule
    biases: bool
    """Whether biases keep the means of outputs."""
    data: DataSource | None
    """Samples; None where nothing is measured."""
    scratch: Path
    progress: Progress
    batch_size: int = 1
    activations_mib: int = 256

    def run(
        self, layers: Sequence[SparseLayer], stays: Mapping[str, Mask], weights: WeightFile
    ) -> Iterator[tuple[SparseLayer, Sparse]]:
        """Make each layer sparse in `working`, and yield it with what that did.

        Args:
            layers: Layers of `working`, in the order of the graph.
            stays: Weights that must not be removed, by layer.
            weights: Where new weights go.

        Raises:
            DataError: The data does not fit the graph, or makes a value NaN or infinite.
        """
        measured = self._measured(layers) if self.data is not None else ((each, _unmeasured(each)) for each in layers)
        for index, (layer, moments) in enumerate(self.progress.track(measured, "pruning", len(layers))):
            matrix = layer.matrix()
            free = self.biases and layer.bias is not None
            rule = replace(self.rule, seed=self.rule.seed + index)
            sparse = prune_layer(matrix, moments.centered() if free else moments, rule, stays.get(layer.name))
            layer.write(sparse.weight, moments.bias_change(sparse.weight, matrix) if free else None, weights)
            yield layer, sparse

    def _measured(self, layers: Sequence[SparseLayer]) -> Iterator[tuple[SparseLayer, PairedMoments]]:
        """Yield each layer when its turn has come; weights that several layers share come first."""
        shared = [layer for layer in layers if len(layer.sources) > 1]
        yield from self._pooled(shared)
        single = [layer for layer in _in_order(self.working, layers) if layer not in shared]
        groups = [(source, list(each)) for source, each in groupby(single, lambda layer: layer.sources[0])]
        runs = [self._segments(model, [(source,) for source, _ in groups]) for model in (self.working, self.dense)]
        for source, members in groups:
            observer = PairedMomentsObserver(source)
            node = members[0].site.readers[0]
            for now, dense in zip(*(run.advance() for run in runs), strict=True):
                observer.update(_rows(node, now[source]), _rows(node, dense[source]))
            moments = observer.moments
            yield from ((layer, moments) for layer in members)

    def _pooled(self, layers: Sequence[SparseLayer]) -> Iterator[tuple[SparseLayer, PairedMoments]]:
        """Yield layers that share a weight with the sums of all their inputs in the dense network."""
        if not layers:
            return
        observers = {layer: PairedMomentsObserver(layer.name) for layer in layers}
        for batch in self._segments(self.dense, [tuple(name for layer in layers for name in layer.sources)]).advance():
            for layer, observer in observers.items():
                for node in layer.site.readers:
                    rows = _rows(node, batch[str(node.inputs[0].name)])  # type: ignore[union-attr]
                    observer.update(rows, rows)
        yield from ((layer, observer.moments) for layer, observer in observers.items())

    def _segments(self, model: ir.Model, stops: Sequence[tuple[str, ...]]) -> SegmentedRun:
        if self.data is None:  # only called where there is some
            raise ValueError(model)
        return SegmentedRun(
            model,
            stops,
            self.data,
            scratch=self.scratch,
            batch_size=self.batch_size,
            threads=self.rule.threads,
            memory_bytes=self.activations_mib << 20,
        )


def _rows(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    """Return what a layer reads as [rows, inputs], in the order of `SparseLayer.matrix`, windows thinned out evenly."""
    rows = input_rows(node, array)
    if node.op_type != "Conv":
        return rows
    rows = rows[:: -(-len(rows) // _WINDOWS_PER_RUN)]
    # Channels of one place of the window stand together, since groups of inputs are groups of channels.
    places = int(np.prod(kernel_of(node)))
    return rows.reshape(len(rows), -1, places).swapaxes(1, 2).reshape(len(rows), -1)


def _unmeasured(layer: SparseLayer) -> PairedMoments:
    """Return the moments of inputs that are all alike: errors of outputs are then those of weights."""
    width = layer.matrix().shape[1]
    alike = np.eye(width)
    return PairedMoments(alike, alike, alike, np.zeros((2, width)), 4 * width)


def _in_order(model: ir.Model, layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Return the layers in the order of the data; those that read the same value stand together."""
    flow = Dataflow(model)
    return sorted(layers, key=lambda layer: flow.order(flow.value(layer.sources[0])))
