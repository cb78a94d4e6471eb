"""Scores that look at the network as a whole, not at one layer's inputs: measured once, before anything goes."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import observe
from edgesmith.graph.edit import constant_value
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith_calibration.observers import MeanVarianceObserver
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.finding.layers import Layer
from edgesmith_pruning.finding.records import Place, Unit
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.scores.activations import over_atoms, paper_moments, released_moments, second_moment
from edgesmith_pruning.scores.magnitude import random_scores
from edgesmith_pruning.scores.similarity import DivergenceObserver, most_alike
from edgesmith_pruning.statistics.beta_ranks import beta_ranks

Float64 = NDArray[np.float64]
StructureContext = Context[PruneStructureOptions]

NETWORK_SCORES = ("random", "second-moment", "second-moment-released", "similarity", "beta-rank", "taylor")

_LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


def network_scores(
    model: ir.Model,
    units: Sequence[Unit],
    layers: Sequence[Layer],
    data: Callable[[], DataSource],
    context: StructureContext,
) -> dict[str, Float64]:
    """Return a score for each atom of each unit, by the unit's key; empty for scores that look at single layers.

    Args:
        model: The dense graph.
        units: What may be pruned.
        layers: The layers that read it.
        data: Returns the calibration data.
        context: The score, threads and progress.
    """
    if context.options.score not in NETWORK_SCORES:
        return {}
    if context.options.score == "random":
        return {unit.key: random_scores(unit.size, context.seed + index) for index, unit in enumerate(units)}
    if context.options.score == "taylor":
        return _taylor(model, units, layers, data(), context)
    scores = _second_moments(model, units, layers, data(), context)
    own: dict[str, Float64] | None = None
    if context.options.score == "similarity":
        own = _similarity(model, units, scores, data(), context)
    if context.options.score == "beta-rank":
        own = beta_ranks(model, units, data(), context)
    if own is not None and not own:
        what = "heads whose attention could be compared" if context.options.score == "similarity" else "filters"
        context.notes.remark(f"Nothing here has {what}, so all was scored by second-moment.")
    return scores | (own or {})


def _taylor(
    model: ir.Model, units: Sequence[Unit], layers: Sequence[Layer], data: DataSource, context: StructureContext
) -> dict[str, Float64]:
    from edgesmith.execution.torch_graph import TorchGraph
    from edgesmith_pruning.scores.taylor import taylor_scores

    axes = {layer.consumer.source: 1 if layer.consumer.operator == "Conv" else -1 for layer in layers}
    batches = data.batches(context.options.batch_size)
    total = -(-len(data) // context.options.batch_size)
    found = taylor_scores(
        TorchGraph(model), axes, iter(context.progress.track(batches, "gradients", total)), context.seed
    )
    return {
        unit.key: np.sum([over_atoms(found[each.source], each.positions) for each in unit.consumers], axis=0)
        for unit in units
    }


def _second_moments(
    model: ir.Model, units: Sequence[Unit], layers: Sequence[Layer], data: DataSource, context: StructureContext
) -> dict[str, Float64]:
    """Return the output approximation: what first-level layers give, times the norms of second-level rows.

    Heads and residual sums have no first level of their own that a norm could stand for; what the second level reads
    stands for it.
    """
    gates = {mlp.gate.product for mlp in find_structure(model).mlps if mlp.gate is not None and not mlp.fused}
    makers = {unit.key: _makers(unit, gates) for unit in units}
    axes = {each.source: _channel_axis(each) for unit in units for each in unit.consumers if not makers[unit.key]}
    axes |= {place.reader: _channel_axis(place) for places in makers.values() for place in places}
    observers = observe(
        model,
        list(axes),
        data,
        lambda name: MeanVarianceObserver(name, axes[name]),
        batch_size=context.options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    released = context.options.score == "second-moment-released"
    scores = {}
    for unit in units:
        given = [_given(model.graph, place, observers[place.reader]) for place in makers[unit.key]]
        is_gate = [place.reader in gates for place in makers[unit.key]]
        total = np.zeros(unit.size)
        for layer in layers:
            if unit.key not in layer.rows:
                continue
            matrix, rows = layer.matrix[:-1], layer.rows[unit.key]
            if not given:
                read = observers[layer.consumer.source]
                moment = np.repeat(read.variance + np.square(read.mean), layer.inputs // layer.consumer.length)
                total += over_atoms(second_moment(matrix, moment), rows)
            elif released:
                total += released_moments(over_atoms(np.linalg.norm(matrix, axis=1), rows), given, is_gate)
            else:
                total += paper_moments(over_atoms(np.square(matrix).sum(axis=1), rows), given)
        scores[unit.key] = total
    return scores


def _makers(unit: Unit, gates: Collection[str]) -> list[Place]:
    """Return the first-level layers of a unit: the one that makes its channels, or the two of a gated MLP.

    None where attention stands between, or where several layers add to the channels: one of them that gives nothing
    says nothing of their sum.
    """
    if unit.kind in ("heads", "query-heads"):
        return []
    found = [place for place in unit.producers if place.role == "produces" and place.operator in _LAYERS]
    gated = len(found) == 2 and any(place.reader in gates for place in found)
    return found if len(found) == 1 or gated else []


def _given(graph: ir.Graph, place: Place, observer: MeanVarianceObserver) -> Float64:
    """Return E[(A_j x)^2] for each atom: the mean square of what a layer gives, without its bias."""
    node = next(node for node in graph if node.outputs[0].name == place.reader)
    bias = constant_value(node.inputs[2]) if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    mean = observer.mean if bias is None else observer.mean - bias.reshape(-1)
    moment = observer.variance + np.square(mean)
    return np.array([moment[list(positions)].mean() for positions in place.positions])


def _channel_axis(place: Place) -> int:
    return 1 if place.operator in ("Conv", "ConvTranspose") else -1


def _similarity(
    model: ir.Model, units: Sequence[Unit], worth: Mapping[str, Float64], data: DataSource, context: StructureContext
) -> dict[str, Float64]:
    """Return for heads their place in the order in which alike ones go."""
    outputs = {node.outputs[0].name for node in model.graph if node.op_type == "Softmax"}
    seen = {}
    for unit in units:
        slots = [slot for slot in unit.coupling.activations if slot.value in outputs] if unit.kind == "heads" else []
        if slots and slots[0].length == unit.size:
            seen[unit.key] = slots[0].value
    observers = observe(
        model,
        list(dict.fromkeys(seen.values())),
        data,
        DivergenceObserver,
        batch_size=context.options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    scores = {}
    for key, value in seen.items():
        order = most_alike(observers[value].divergences, worth[key])
        scores[key] = np.full(len(worth[key]), float(len(order)))
        scores[key][order] = np.arange(len(order))
    return scores
