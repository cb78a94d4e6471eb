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
from edgesmith_calibration.moments import Moments
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.layers import Layer, write_layer
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.repair.held_out_refit import held_out_refit
from edgesmith_pruning.repair.least_squares import dropped, pulled, refit, rescaled
from edgesmith_pruning.statistics.held_out import HeldOut, HeldOutObserver
from edgesmith_pruning.statistics.rows import input_rows, output_rows, token_weights

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
    lost: bool
    """Whether any of its inputs goes."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep needs to run."""

    data: DataSource
    scratch: Path
    threads: int
    batch_size: int
    progress: Progress
    options: PruneStructureOptions

    def measure(
        self, dense: ir.Model, working: ir.Model, layers: Sequence[Layer], activity: str
    ) -> Iterator[tuple[Layer, HeldOut]]:
        """Yield each layer with its moments; `working` may change between two layers, `dense` stays."""
        targets = [[layer.tail.total or layer.tail.end] for layer in layers]
        sources = [[layer.consumer.source, *filter(None, [layer.tail.other])] for layer in layers]
        settings = {"scratch": self.scratch, "batch_size": self.batch_size, "threads": self.threads}
        wanted = SegmentedRun(dense, targets, self.data, **settings)  # type: ignore[arg-type]
        present = SegmentedRun(working, sources, self.data, **settings)  # type: ignore[arg-type]
        nodes = {node.outputs[0].name: node for node in dense.graph}
        for layer, target in self.progress.track(list(zip(layers, targets, strict=True)), activity, len(layers)):
            node = nodes[layer.consumer.reader]
            observer = HeldOutObserver(layer.consumer.reader, hold_out=self.options.holds_out(layer.consumer.operator))
            for there, here in zip(wanted.advance(), present.advance(), strict=True):
                aim = there[target[0]]
                if layer.tail.other is not None:
                    aim = aim - here[layer.tail.other]
                weights = None
                if self.options.weighs_tokens and layer.tail.total is not None and node.op_type != "Conv":
                    weights = token_weights(output_rows(node, there[target[0]]))
                observer.update(input_rows(node, here[layer.consumer.source]), output_rows(node, aim), weights)
            yield layer, observer.moments

    def repair(self, working: ir.Model, layer: Layer, held: HeldOut, kept: Mask, bias: str | None) -> Outcome:
        """Write the layer with the least error on what is kept into `working`, and say what that brought."""
        if self.options.ridge_of(layer.consumer.operator) is not None:
            held = HeldOut(held.total)
        moments, judge = held.total, held.judge or held.total
        plain = dropped(layer.matrix, kept)
        energy, before, lost = moments.energy or 1.0, moments.error(plain), not kept.all()
        if layer.obstacle:
            return Outcome(layer.consumer.reader, before / energy, before / energy, "none", lost)
        repairs, errors = {"none": plain}, {"none": judge.error(plain)}
        if bias is not None and self.options.refit != "none":
            repairs["bias"] = _shifted(plain, moments)
            errors["bias"] = judge.error(_shifted(plain, held.fit))
        if self.options.refit in ("least-squares", "two-step"):
            name = "least-squares"
            repairs[name], errors[name] = self._refit(layer, held, kept, bias is not None)
        best = min(errors, key=errors.__getitem__)
        after = moments.error(repairs[best])
        if after > before:  # better on what was held out, by chance
            best, after = "none", before
        if bias is not None and self.options.refit == "statistics":
            best = "statistics"
            repairs[best] = rescaled(layer.matrix, kept, moments)
            after = moments.error(repairs[best])
        write_layer(working.graph, layer, repairs[best], bias)
        return Outcome(layer.consumer.reader, before / energy, after / energy, best, lost)

    def _refit(self, layer: Layer, held: HeldOut, kept: Mask, bias: bool) -> tuple[Float64, float]:
        """Return the refitted layer and its error, on samples held out where there are any."""
        if held.judge is not None:
            chosen = held_out_refit(held, held.judge, layer.matrix, kept, bias=bias)
            return chosen.matrix, chosen.error
        ridge = self.options.ridge_of(layer.consumer.operator) or FEW_SAMPLES_RIDGE
        pull = pulled(held.total, layer.matrix, ridge)
        matrix = refit(pull, layer.matrix, kept, bias=bias)
        return matrix, held.total.error(matrix)


FEW_SAMPLES_RIDGE = 0.1
"""Where there are too few batches to hold any out."""


def _shifted(matrix: Float64, moments: Moments) -> Float64:
    """Return the layer with the bias of least error."""
    result = matrix.copy()
    result[-1] += (moments.cross[-1] - moments.gram[-1] @ matrix) / moments.rows
    return result
