"""Products of two activations that sum over channels, such as that of queries and keys.

No weight can make up for a channel that such a sum loses, and positions may be encoded in pairs of them. Exporters
that write queries, keys and values as one tensor [.., 3, heads, width] tie the channels of all three together.
"""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgesmith.graph.couplings import Coupling
from edgesmith.graph.edit import constant_tensor

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

Sums = Mapping[tuple[str, int], int]
"""How many neighbouring places of an axis are summed over at once, by value and axis."""


def activations(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that may depend on an input of the graph; all others follow from initializers alone."""
    found = {value for value in graph.inputs if constant_tensor(value) is None}
    for node in graph:
        # A subgraph may read values that are no inputs of its node.
        subgraphs = any(each.type in _GRAPHS for each in node.attributes.values())
        if subgraphs or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def inner_products(graph: ir.Graph) -> Sums:
    """Return the axes of activations that products of two activations sum over."""
    found: dict[tuple[str, int], int] = {}
    computed = activations(graph)
    for node in graph:
        inputs = [value for value in node.inputs[:2] if value is not None and value in computed]
        if len(inputs) < 2 or any(value.shape is None for value in inputs):
            continue
        for value, axis, heads in _summed_axes(node, inputs):
            length = (value.shape or ())[axis]
            if isinstance(length, int):
                found[str(value.name), axis] = length // heads
    return found


def is_summed(coupling: Coupling, sums: Sums) -> bool:
    """Return whether a product sums over the atoms of a coupling. Whole heads on one axis are not summed over."""
    for slot in coupling.activations:
        width = sums.get((slot.value, slot.axis), 0)
        if any(atom and len({position % width for position in atom}) < width for atom in slot.indices if width):
            return True
    return False


def _summed_axes(node: ir.Node, inputs: list[ir.Value]) -> Iterator[tuple[ir.Value, int, int]]:
    """Yield what is summed over: value, axis, and how many heads stand on that axis one behind the other."""
    left, right = inputs
    ranks = [len(value.shape or ()) for value in inputs]
    if node.op_type == "MatMul":
        yield left, ranks[0] - 1, 1
        yield right, max(ranks[1] - 2, 0), 1
    elif node.op_type == "Einsum":
        terms, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
        for value, rank, letters in zip(inputs, ranks, terms.split(","), strict=False):
            if len(letters) == rank:
                yield from ((value, axis, 1) for axis, letter in enumerate(letters) if letter not in result)
    elif node.op_type == "Attention":
        for value, rank, kind in zip(inputs, ranks, ("q", "kv"), strict=True):
            yield value, rank - 1, 1 if rank == 4 else node.attributes.get_int(f"{kind}_num_heads", 1)
