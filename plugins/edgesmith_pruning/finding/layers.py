"""The layers that sum over what is removed, as the sweep sees them: one matrix each, and where it is aimed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import set_initializer
from edgesmith_pruning.finding.records import Consumer, Unit
from edgesmith_pruning.finding.tails import Tail, find_tail, has_plain_bias
from edgesmith_pruning.finding.weights import as_matrix, beside_each_other, from_matrix, rows_of, weight_array

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """One consumer with what follows it. `matrix` and errors are in units of the tail's end."""

    consumer: Consumer
    tail: Tail
    matrix: Float64
    """[inputs + 1, outputs]: weight times the tail's scale, and the tail's shift as the last row."""
    rows: Mapping[str, tuple[tuple[int, ...], ...]]
    """For each unit by its key, the rows of each atom."""
    obstacle: str = ""
    """Why the weight cannot be refitted; empty where it can."""

    @property
    def inputs(self) -> int:
        """Number of input rows, without the bias."""
        return len(self.matrix) - 1


def find_layers(model: ir.Model, units: Sequence[Unit]) -> tuple[Layer, ...]:
    """Return the layers that sum over the units' channels, in the order of the graph.

    A residual sum is aimed at only where its other side is known by then: it must not need a layer that comes later.

    Args:
        model: The graph that the units were found in.
        units: What may be removed. Units may share a layer.
    """
    nodes = {node.outputs[0].name: node for node in model.graph}
    consumers = {consumer.reader: consumer for unit in units for consumer in unit.consumers}
    order = {name: index for index, name in enumerate(nodes)}
    readers = sorted(consumers, key=order.__getitem__)
    found = []
    for index, reader in enumerate(readers):
        consumer, tail = consumers[reader], find_tail(nodes, consumers[reader])
        if tail.other is not None and _needs(model.graph, tail.other, set(readers[index:])):
            tail = replace(tail, total=None, other=None)
        layer = _layer(model.graph, nodes, consumer, tail)
        rows = {
            unit.key: rows_of(each, layer.inputs, _groups(nodes[reader]))
            for unit in units
            for each in unit.consumers
            if each.reader == reader
        }
        found.append(replace(layer, rows=rows))
    return tuple(found)


def with_first_level(model: ir.Model, units: Sequence[Unit], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers together with those that make the channels and can be refitted, in the order of the graph.

    The latter lose nothing and are refitted to what they give in the dense network (output approximation, arXiv
    2407.19126, section 4, step 2a).

    Args:
        model: The graph that the units were found in.
        units: What may be removed.
        layers: What `find_layers` returned.
    """
    nodes = {node.outputs[0].name: node for node in model.graph}
    taken = {layer.consumer.reader for layer in layers}
    added = []
    for place in (place for unit in units for place in unit.producers):
        source = nodes[place.reader].inputs[0]
        if place.role != "produces" or place.operator not in ("MatMul", "Gemm", "Conv") or place.reader in taken:
            continue
        if place.port != 1 or source is None or source.is_initializer():
            continue
        taken.add(place.reader)
        shape, summed = weight_array(model.graph, place).shape, 1 - place.axis
        if place.operator == "MatMul" and len(shape) != 2:
            continue
        consumer = Consumer(
            place.reader, 1, place.operator, place.weight, summed, shape[summed], (), "consumes", str(source.name)
        )
        tail = replace(find_tail(nodes, consumer), total=None, other=None)
        layer = _layer(model.graph, nodes, consumer, tail)
        if not layer.obstacle:
            added.append(layer)
    order = {name: index for index, name in enumerate(nodes)}
    return tuple(sorted((*layers, *added), key=lambda layer: order[layer.consumer.reader]))


def _layer(graph: ir.Graph, nodes: Mapping[str | None, ir.Node], consumer: Consumer, tail: Tail) -> Layer:
    weight = as_matrix(weight_array(graph, consumer), consumer)
    weight = beside_each_other(weight, _groups(nodes[consumer.reader])).astype(np.float64)
    matrix = np.vstack([weight * tail.scale, tail.shift])
    return Layer(consumer, tail, matrix, {}, _refit_obstacle(graph, nodes[consumer.reader], consumer, tail))


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1


def write_layer(graph: ir.Graph, layer: Layer, matrix: Float64, bias: str | None) -> None:
    """Give a layer of the graph another weight and bias.

    Args:
        graph: The graph to change.
        layer: The layer as it was found.
        matrix: As `Layer.matrix`.
        bias: Initializer that takes the change of the last row; None where there is none.
    """
    value = graph.initializers[layer.consumer.weight]
    old = weight_array(graph, layer.consumer)
    scale = np.where(layer.tail.scale == 0, 1.0, layer.tail.scale)
    set_initializer(value, from_matrix(matrix[:-1] / scale, layer.consumer, old.shape).astype(old.dtype), value.dtype)
    if bias is not None:
        held = graph.initializers[bias]
        before = np.asarray(held.const_value.numpy())  # type: ignore[union-attr]
        change = (matrix[-1] - layer.matrix[-1]) / scale
        set_initializer(held, (before + change.reshape(before.shape)).astype(before.dtype), held.dtype)


def _needs(graph: ir.Graph, name: str, readers: set[str]) -> bool:
    """Return whether a value is computed from the output of one of the named nodes."""
    pending = [node for node in graph if any(output.name == name for output in node.outputs)]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.outputs[0].name in readers:
            return True
        producers = (value.producer() for value in node.inputs if value is not None)
        new = {producer for producer in producers if producer is not None} - seen
        seen |= new
        pending.extend(new)
    return False


def _refit_obstacle(graph: ir.Graph, node: ir.Node, consumer: Consumer, tail: Tail) -> str:
    value = graph.initializers[consumer.weight]
    if len(tuple(value.uses())) > 1 or value.is_graph_output():
        return "its weight is shared with another layer"
    if value.shape is None or (node.op_type == "MatMul" and len(value.shape) != 2):
        return "its weight is not one matrix"
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) != 0
        or node.attributes.get_float("alpha", 1.0) != 1
        or node.attributes.get_float("beta", 1.0) != 1
    ):
        return "it multiplies with more than its weight"
    if not has_plain_bias(node, len(tail.scale)):
        return "it adds more than one number for each output"
    if _groups(node) > 1:
        return "it sums within groups"
    if not tail.scale.any():
        return "nothing of it passes"
    return ""
