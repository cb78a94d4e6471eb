"""What narrowing a unit costs at the outputs of the network, measured on samples held out.

The error of a layer says little about what it does to the outputs, and less about samples that chose the order and
the refit: late layers of a convolutional network fit a few hundred photos as they please. So the order and the refit
come from some samples, errors of the layer from the others, and one run of the network with the narrowed layer says
what such an error is worth at the outputs. Measured apart, these errors add up to about that of the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.reference import ReferenceSession
from edgesmith_calibration.moments import Moments
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.choice import Ranking
from edgesmith_pruning.finding.layers import Layer, write_layer
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.removal import Decision, remove
from edgesmith_pruning.repair.least_squares import dropped, pulled, refit
from edgesmith_pruning.statistics.held_out import HeldOut, is_held_out

Float64 = NDArray[np.float64]
Outputs = list[dict[str, NDArray[Any]]]

LEVELS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of what may go at which the error of the layers is computed; straight lines between them."""
PROBE = 2
"""Level at which the network is run."""
RUNS = 32
"""Most batches that the network is run on."""
_RIDGE = 0.03
"""Of refits that are only made to be judged."""


@dataclass(slots=True)
class OutputError:
    """Measures what units cost at the outputs.

    Args:
        model: The dense network; never changed.
        data: Calibration data.
        batch_size: Samples per run, as for the moments.
        threads: Threads used inside one operator.
    """

    model: ir.Model
    data: DataSource
    batch_size: int
    threads: int
    _dense: Outputs = field(default_factory=list)
    _feeds: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)

    def costs(
        self,
        unit: Unit,
        measured: Sequence[tuple[Layer, HeldOut]],
        ranking: Ranking,
        rank: Callable[[Sequence[tuple[Layer, HeldOut]]], Ranking],
    ) -> Ranking:
        """Return the ranking with costs at the outputs, as shares of their variance.

        Args:
            unit: What is narrowed.
            measured: The layers that read it, with moments in the dense network.
            ranking: Made from all samples.
            rank: Makes a ranking from moments.
        """
        fitted = rank([(layer, HeldOut(held.fit)) for layer, held in measured])
        most = len(ranking.atoms) // unit.groups
        counts = np.unique([max(1, round(level * most)) for level in LEVELS])
        errors = np.array([self._layer_error(unit, measured, fitted, int(count)) for count in counts])
        probe = min(PROBE, len(counts) - 1)
        while probe < len(counts) - 1 and errors[probe] < 1e-6:
            probe += 1
        repaired = self._repaired(unit, measured, fitted, int(counts[probe]))
        factor = self._output_error(fitted.first(unit, int(counts[probe])), repaired) / max(errors[probe], 1e-12)
        total = np.maximum.accumulate(np.concatenate([[0.0], errors])) * factor
        curve = np.interp(np.arange(most + 1), np.concatenate([[0], counts]), total)
        seen = [0] * unit.groups
        costs = np.zeros(len(ranking.atoms))
        for index, atom in enumerate(ranking.atoms):
            group = atom // unit.group_size
            level = seen[group] = seen[group] + 1
            costs[index] = (curve[min(level, most)] - curve[min(level, most) - 1]) / unit.groups
        return Ranking(ranking.atoms, costs)

    def _layer_error(
        self, unit: Unit, measured: Sequence[tuple[Layer, HeldOut]], ranking: Ranking, count: int
    ) -> float:
        total = 0.0
        for (layer, matrix), (_, held) in zip(self._repaired(unit, measured, ranking, count), measured, strict=True):
            judge = held.judge or held.total
            total += judge.error(matrix) / (_variance(judge, layer) or 1.0)
        return total

    def _repaired(
        self, unit: Unit, measured: Sequence[tuple[Layer, HeldOut]], ranking: Ranking, count: int
    ) -> list[tuple[Layer, Float64]]:
        """Return the layers without the first atoms of each group, refitted where they can be."""
        gone = ranking.first(unit, count).removed
        repaired = []
        for layer, held in measured:
            kept = np.ones(layer.inputs, np.bool_)
            for atom in gone:
                kept[list(layer.rows[unit.key][atom])] = False
            if layer.obstacle:
                repaired.append((layer, dropped(layer.matrix, kept)))
                continue
            pull = pulled(held.fit, layer.matrix, _RIDGE)
            repaired.append((layer, refit(pull, layer.matrix, kept, bias=layer.tail.bias is not None)))
        return repaired

    def _output_error(self, decision: Decision, repaired: Sequence[tuple[Layer, Float64]]) -> float:
        """Return the mean squared change of the outputs on samples held out, as a share of their variance."""
        self._run_dense()
        model = self.model.clone()
        for layer, matrix in repaired:
            if not layer.obstacle:
                write_layer(model.graph, layer, matrix, layer.tail.bias)
        session = ReferenceSession(remove(model, [decision]), optimization="all", threads=self.threads)
        changes: dict[str, float] = {}
        for feeds, dense in zip(self._feeds, self._dense, strict=True):
            for name, array in session.run(feeds).items():
                change = float(np.square(array.astype(np.float64) - dense[name]).mean())
                changes[name] = changes.get(name, 0.0) + change
        spread = {name: sum(float(dense[name].var(dtype=np.float64)) for dense in self._dense) for name in changes}
        return sum(change / (spread[name] or 1.0) for name, change in changes.items())

    def _run_dense(self) -> None:
        if self._feeds:
            return
        session = ReferenceSession(self.model, optimization="all", threads=self.threads)
        for number, batch in enumerate(self.data.batches(fixed_batch(self.model) or self.batch_size)):
            if len(self._feeds) < RUNS and (is_held_out(number) or not self._feeds):
                self._feeds.append(dict(batch.inputs))
                self._dense.append(session.run(batch.inputs))


def _variance(moments: Moments, layer: Layer) -> float:
    """Return the summed variance of what a layer gives."""
    mean = moments.cross[-1] / moments.rows
    return moments.energy - moments.rows * float(np.square(mean).sum())
