"""Caches of keys and values: what a decoder takes in of earlier tokens, joins with the new ones and hands out again.

They are found by what the graph does, not by names: an input that is only moved until a Concat (or a fused attention)
puts new numbers beside it, and from there is only moved to an output.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.dataflow import CARRYING, MOVING, data_inputs

# Inputs of fused attention that hold earlier keys and values, and the outputs that hold them with the new ones.
_FUSED = {
    ("", "Attention"): ((4, 1), (5, 2)),
    ("com.microsoft", "GroupQueryAttention"): ((3, 1), (4, 2)),
    ("com.microsoft", "MultiHeadAttention"): ((6, 1), (7, 2)),
    ("com.microsoft", "Attention"): ((4, 1),),
}
_MOVES = (CARRYING | MOVING) - {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, slots=True)
class Cache:
    """One slot of a cache: earlier keys, values, or both."""

    input: ir.Value
    output: ir.Value
    joins: frozenset[ir.Node]
    """Nodes that put new numbers beside the earlier ones."""
    behind: frozenset[ir.Node]
    """Nodes that only move numbers from there to the output, and serve nothing else."""

    @property
    def length_axis(self) -> int | None:
        """The axis of earlier tokens: the only open one behind the batch; None where that does not tell it."""
        shape = self.input.shape or ()
        found = [axis for axis, size in enumerate(shape) if axis and not isinstance(size, int)]
        return found[0] if len(found) == 1 else None


def find_caches(model: ir.Model) -> tuple[Cache, ...]:
    """Return the caches of a decoder in the order of its inputs; none for other graphs."""
    return caches_of(model.graph)


def caches_of(graph: ir.Graph) -> tuple[Cache, ...]:
    """Return the caches of a graph in the order of its inputs."""
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    found = []
    for value in graph.inputs:
        if value.const_value is None and value.dtype in floats and value.shape is not None and value.shape.rank() > 2:
            cache = _cache(value)
            if cache is not None:
                found.append(cache)
    return tuple(found)


def _cache(value: ir.Value) -> Cache | None:
    joined: dict[ir.Value, ir.Node] = {}
    for moved in _moved(value, stop_at_joins=True):
        for node, index in moved.uses():
            if _joins(node, index):
                joined.update((output, node) for output in _joined_outputs(node, index))
    reached: dict[ir.Value, set[ir.Value]] = {}
    for start in joined:
        for each in _moved(start, stop_at_joins=False):
            if each.is_graph_output():
                reached.setdefault(each, set()).add(start)
    if len(reached) != 1:
        return None
    ((output, starts),) = reached.items()
    return Cache(value, output, frozenset(joined[start] for start in starts), _only_for(output, starts))


def _moved(value: ir.Value, *, stop_at_joins: bool) -> list[ir.Value]:
    """Return a value and what is made of it by moving numbers alone."""
    found, seen = [value], {value}
    for each in found:
        for node, index in each.uses():
            moves = node.op_type in _MOVES and (index == 0 or node.op_type == "Concat")
            if moves and not (stop_at_joins and _joins(node, index)):
                new = [output for output in node.outputs if output not in seen]
                seen.update(new)
                found.extend(new)
    return found


def _joins(node: ir.Node, index: int) -> bool:
    if node.op_type == "Concat":
        return len({each for each in node.inputs if each is not None}) > 1
    return any(index == past for past, _ in _FUSED.get((node.domain, node.op_type), ()))


def _joined_outputs(node: ir.Node, index: int) -> list[ir.Value]:
    if node.op_type == "Concat":
        return list(node.outputs)
    ports = [present for past, present in _FUSED[node.domain, node.op_type] if past == index]
    return [node.outputs[port] for port in ports if port < len(node.outputs)]


def _only_for(output: ir.Value, starts: Iterable[ir.Value]) -> frozenset[ir.Node]:
    """Return the nodes from some values to an output of which nobody else reads a result."""
    first = set(starts)
    found: set[ir.Node] = set()
    pending = [output]
    while pending:
        value = pending.pop()
        node = value.producer()
        alone = value is output or (not value.is_graph_output() and all(user in found for user in value.consumers()))
        if value not in first and node is not None and alone:
            found.add(node)
            pending.extend(data_inputs(node))
    return frozenset(found)
