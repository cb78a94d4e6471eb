"""Goes through the layers that sum over what is removed, in the order of the data.

At each layer it measures what the layer reads in the network as it is by then, and what the dense network gives
behind it; chooses what goes; and refits the layer on what stays. So each refit also makes up for the layers before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import SegmentedRun
from edgesmith.progress import Progress
from edgesmith_calibration.moments import Moments, MomentsObserver
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.layers import Layer, write_layer
from edgesmith_pruning.repair.least_squares import dropped, pulled, refit
from edgesmith_pruning.statistics.rows import input_rows, output_rows

Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a layer lost and what its refit brought, as shares of the energy of what it should give."""

    layer: str
    dropped: float
    """Error without what goes."""
    repaired: float
    """Error after the repair that was accepted."""
    repair: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep needs to run."""

    data: DataSource
    scratch: Path
    threads: int
    batch_size: int
    progress: Progress
    refit: str
    ridge: float

    def measure(
        self, dense: ir.Model, working: ir.Model, layers: Sequence[Layer], activity: str
    ) -> Iterator[tuple[Layer, Moments]]:
        """Yield each layer with its moments; `working` may change between two layers, `dense` stays."""
        targets = [[layer.tail.total or layer.tail.end] for layer in layers]
        sources = [[layer.consumer.source, *filter(None, [layer.tail.other])] for layer in layers]
        settings = {"scratch": self.scratch, "batch_size": self.batch_size, "threads": self.threads}
        wanted = SegmentedRun(dense, targets, self.data, **settings)  # type: ignore[arg-type]
        present = SegmentedRun(working, sources, self.data, **settings)  # type: ignore[arg-type]
        nodes = {node.outputs[0].name: node for node in dense.graph}
        for layer, target in self.progress.track(list(zip(layers, targets, strict=True)), activity, len(layers)):
            node = nodes[layer.consumer.reader]
            observer = MomentsObserver(layer.consumer.reader)
            for there, here in zip(wanted.advance(), present.advance(), strict=True):
                aim = there[target[0]]
                if layer.tail.other is not None:
                    aim = aim - here[layer.tail.other]
                observer.update(input_rows(node, here[layer.consumer.source]), output_rows(node, aim))
            yield layer, observer.moments

    def repair(self, working: ir.Model, layer: Layer, moments: Moments, kept: Mask, bias: str | None) -> Outcome:
        """Write the layer with the least error on what is kept into `working`, and say what that brought."""
        plain = dropped(layer.matrix, kept)
        candidates = {"none": plain}
        if bias is not None and self.refit != "none":
            shifted = plain.copy()
            shifted[-1] += (moments.cross[-1] - moments.gram[-1] @ plain) / moments.rows
            candidates["bias"] = shifted
        if self.refit == "least-squares" and not layer.obstacle:
            pull = pulled(moments, layer.matrix, self.ridge)
            candidates["least-squares"] = refit(pull, layer.matrix, kept, bias=bias is not None)
        errors = {name: moments.error(matrix) for name, matrix in candidates.items()}
        best = min(errors, key=errors.__getitem__)
        if not layer.obstacle:
            write_layer(working.graph, layer, candidates[best], bias)
        energy = moments.energy or 1.0
        return Outcome(layer.consumer.reader, errors["none"] / energy, errors[best] / energy, best)
