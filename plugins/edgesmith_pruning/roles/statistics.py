"""What the units of a graph do on a slice of data, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import observe
from edgesmith.progress import Progress
from edgesmith_calibration.observers import MeanVarianceObserver
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.records import Consumer, Place, Unit
from edgesmith_pruning.finding.weights import as_matrix, weight_array
from edgesmith_pruning.roles.assignment import atom_scores

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and variance of each channel of what the layers read, by value."""

    mean: Mapping[str, Float64]
    variance: Mapping[str, Float64]


def measure(
    model: ir.Model, units: Sequence[Unit], data: DataSource, *, batch_size: int, threads: int, progress: Progress
) -> Statistics:
    """Return statistics of what the units' consumers read, over all places of all samples.

    Raises:
        DataError: The data is empty, does not fit, or makes a value infinite or NaN.
    """
    axes = {each.source: 1 if each.operator == "Conv" else -1 for unit in units for each in unit.consumers}
    observers = observe(
        model,
        list(axes),
        data,
        lambda name: MeanVarianceObserver(name, axes[name]),
        batch_size=batch_size,
        threads=threads,
        progress=progress,
    )
    return Statistics(
        {name: each.mean for name, each in observers.items()},
        {name: each.variance for name, each in observers.items()},
    )


def unit_scores(graph: ir.Graph, unit: Unit, statistics: Statistics) -> Float64:
    """Return the standardized importance of each atom of a unit, [atoms]; the mean where several layers read it."""
    scores = [
        atom_scores(
            statistics.variance[each.source] * squared_norms(graph, each),
            each.positions,
            squared=unit.kind == "heads",
        )
        for each in unit.consumers
    ]
    return np.asarray(np.mean(scores, axis=0))


def squared_norms(graph: ir.Graph, consumer: Consumer) -> Float64:
    """Return |W[:, j]|^2 of each input channel of a layer, over its outputs and its kernel, [channels]."""
    matrix = as_matrix(weight_array(graph, consumer), consumer).astype(np.float64)
    return np.asarray(np.square(matrix).reshape(consumer.length, -1).sum(axis=1))


def stored_places(graph: ir.Graph, unit: Unit) -> list[Place]:
    """Return the places of a unit that are floating-point initializers, each weight and axis once."""
    found: dict[tuple[str, int], Place] = {}
    for place in (*unit.producers, *unit.consumers):
        value = graph.initializers.get(place.weight)
        if value is not None and value.const_value is not None and value.const_value.dtype.is_floating_point():
            found.setdefault((place.weight, place.axis), place)
    return list(found.values())


def atom_costs(graph: ir.Graph, unit: Unit) -> Float64:
    """Return how many parameters each atom has in all layers that make and read it, [atoms]."""
    costs = np.zeros(unit.size)
    for place in stored_places(graph, unit):
        size = weight_array(graph, place).size // place.length
        costs += [size * len(positions) for positions in place.positions]
    return costs
