"""Beta-Rank of all units of a graph, from one pass over the calibration data."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import run_count
from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.records import Place, Unit
from edgesmith_pruning.finding.weights import weight_array
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.scores.beta_rank import DeviationObserver, beta_rank, over_atoms

Float64 = NDArray[np.float64]


def beta_ranks(
    model: ir.Model, units: Sequence[Unit], data: DataSource, context: Context[PruneStructureOptions]
) -> dict[str, Float64]:
    """Return the rank of each atom of the units whose channels convolutions make, by the unit's key.

    An atom that holds filters of several convolutions, such as an expansion and the depthwise convolution behind it,
    has the mean of their ranks.

    Args:
        model: The dense graph.
        units: What may be pruned.
        data: Calibration data.
        context: Direction, threads and progress.
    """
    filters = {unit.key: [place for place in unit.producers if _makes_filters(place)] for unit in units}
    readers = {place.reader: place for places in filters.values() for place in places}
    if not readers:
        return {}
    observers = _observed(model, readers, data, context)
    ranks = {
        reader: beta_rank(
            weight_array(model.graph, place),
            observers[reader].output_deviation,
            observers[reader].input_deviation,
            context.options.beta_direction,
        )
        for reader, place in readers.items()
    }
    return {
        unit.key: over_atoms(
            [ranks[place.reader] for place in places], [place.positions for place in places], unit.size
        )
        for unit in units
        if (places := filters[unit.key])
    }


def _makes_filters(place: Place) -> bool:
    return place.operator == "Conv" and place.port == 1 and place.axis == 0


def _observed(
    model: ir.Model, readers: Iterable[str], data: DataSource, context: Context[PruneStructureOptions]
) -> dict[str, DeviationObserver]:
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    sources = {reader: str(value.name) for reader in readers if (value := nodes[reader].inputs[0]) is not None}
    observers = {reader: DeviationObserver(nodes[reader]) for reader in sources}
    inputs = {value.name for value in model.graph.inputs}
    taps = [name for name in dict.fromkeys((*sources, *sources.values())) if name not in inputs]
    session = ReferenceSession(model, taps=taps, optimization="all", threads=context.threads)
    size = context.options.batch_size
    for batch in context.progress.track(data.batches(size), "ranking filters", run_count(model, len(data), size)):
        feeds = {name: array for name, array in batch.inputs.items() if name in inputs}
        found = {**feeds, **session.run(feeds)}
        for reader, source in sources.items():
            observers[reader].update(found[source], found[reader])
    return observers
