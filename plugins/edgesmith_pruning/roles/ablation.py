"""Tries what groups of units are worth: takes them out, keeps what they held on average, and looks at the outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.biases import add_biases
from edgesmith_pruning.finding.layers import Layer, find_layers, write_layer
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.units import find_units

Float64 = NDArray[np.float64]
Group = Mapping[str, Sequence[int]]
"""Atoms by the key of their unit."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """A graph in which every layer that reads units has a bias to keep means in."""

    model: ir.Model
    layers: Sequence[Layer]
    units: Sequence[Unit]

    def without(self, group: Group, means: Mapping[str, Float64]) -> ir.Model:
        """Return the model without a group of units.

        Channels are taken out where they are read, and what they held on average goes into the bias. That equals zero
        rows in the layers that make them, for activations that keep zero, and holds for the others as well.

        Args:
            group: What goes.
            means: Mean of each channel by value.
        """
        result = self.model.clone()
        for layer in self.layers:
            rows = [
                row
                for key, atoms in group.items()
                if key in layer.rows
                for atom in atoms
                for row in layer.rows[key][atom]
            ]
            if not rows:
                continue
            matrix = layer.matrix.copy()
            mean = np.repeat(means[layer.consumer.source], layer.inputs // layer.consumer.length)
            matrix[-1] += mean[rows] @ matrix[rows]
            matrix[rows] = 0
            write_layer(result.graph, layer, matrix, layer.tail.bias)
        return result


def prepare(model: ir.Model, units: Sequence[Unit]) -> Ablation:
    """Return the graph with biases, and the units whose layers can all be written."""
    working = model.clone()
    bare = [layer for layer in find_layers(working, units) if layer.tail.bias is None and not layer.obstacle]
    add_biases(working, [(layer.consumer.reader, layer.matrix.shape[1]) for layer in bare])
    wanted = {unit.key for unit in units}
    found = [unit for unit in find_units(working) if unit.key in wanted]
    layers = find_layers(working, found)
    closed = {key for layer in layers if layer.obstacle or layer.tail.bias is None for key in layer.rows}
    return Ablation(
        working,
        [layer for layer in layers if not closed & set(layer.rows)],
        [unit for unit in found if unit.key not in closed],
    )


def random_groups(group: Group, units: Sequence[Unit], count: int, seed: int) -> Iterator[Group]:
    """Yield groups with as many random atoms of each unit as `group` has."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            unit.key: sorted(generator.choice(unit.size, len(group[unit.key]), replace=False).tolist())
            for unit in units
            if unit.key in group
        }


def divergence(dense: ir.Model, other: ir.Model, data: DataSource, *, batch_size: int, threads: int) -> float:
    """Return the squared difference of all outputs, as a share of the squares of the dense outputs."""
    sessions = [ReferenceSession(each, optimization="all", threads=threads) for each in (dense, other)]
    names = {value.name for value in dense.graph.inputs}
    lost = energy = 0.0
    for batch in data.batches(batch_size):
        feeds = {name: array for name, array in batch.inputs.items() if name in names}
        expected, actual = (session.run(feeds) for session in sessions)
        for name, values in expected.items():
            if values.dtype.kind == "f":
                before = values.astype(np.float64)
                lost += float(np.square(actual[name] - before).sum())
                energy += float(np.square(before).sum())
    return lost / energy if energy else 0.0
