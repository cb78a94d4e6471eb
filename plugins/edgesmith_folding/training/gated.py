"""A graph with a gate on each branch of its blocks: an input that the branch is multiplied with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.cost import count_cost
from edgesmith.graph.edit import GraphEditor, constant_value, set_initializer
from edgesmith_folding.compensation.sites import ending_projection
from edgesmith_folding.finding.places import Place


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a block, with its gate."""

    block: int
    residual: int
    """Number of the residual connection within the block."""
    gate: str
    """Name of the input that opens it."""
    macs: int


def find_branches(model: ir.Model, places: Mapping[int, Place]) -> tuple[Branch, ...]:
    """Return the branches of blocks, with what they cost.

    Args:
        model: The graph that the blocks were found in.
        places: The blocks by number.
    """
    macs = count_cost(model).by_node
    return tuple(
        Branch(number, index, f"gate_{number}_{index}", cost)
        for number, place in places.items()
        for index, cost in enumerate(_branch_macs(place, macs))
    )


def with_gates(model: ir.Model, places: Mapping[int, Place], branches: Sequence[Branch]) -> ir.Model:
    """Return a copy in which each branch is multiplied with an input of its gate's name: float32, a single number.

    Args:
        model: The graph that the blocks were found in.
        places: The blocks by number.
        branches: Their branches.
    """
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    nodes = {node.name: node for node in copy.graph}
    for each in branches:
        residual = places[each.block].block.residuals[each.residual]
        branch, adding = values[residual.branch], nodes[residual.node]
        gate = ir.Value(name=each.gate, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
        copy.graph.inputs.append(gate)
        alike = editor.insert_before(adding, "CastLike", (gate, branch), name=f"{each.gate}_alike")
        product = editor.insert_before(adding, "Mul", (branch, alike.outputs[0]), name=f"{each.gate}_product")
        product.outputs[0].type, product.outputs[0].shape = branch.type, branch.shape
        adding.replace_input_with(list(adding.inputs).index(branch), product.outputs[0])
    return copy


def fold_gates(graph: ir.Graph, opened: Mapping[tuple[int, int], float], places: Mapping[int, Place]) -> list[int]:
    """Scale the projections that end branches by their gates; return the blocks of those where it cannot be done.

    Exact where a branch ends with a plain product whose weights nobody else reads.

    Args:
        graph: The graph to change; the blocks were found in it or in the graph it was copied from.
        opened: The gate of each branch, by number of block and of residual connection.
        places: Blocks by number.
    """
    left = []
    for (number, index), gate in opened.items():
        projection = ending_projection(graph, places[number].block.residuals[index])
        if projection is None:
            left.append(number)
            continue
        for value in (projection.weight, projection.bias):
            array = constant_value(value)
            if value is not None and array is not None:
                set_initializer(value, (array * gate).astype(array.dtype), value.dtype)
    return sorted(set(left))


def _branch_macs(place: Place, macs: Mapping[str, int]) -> Sequence[int]:
    """Return the MACs of each branch: what is computed for it behind the connection before."""
    producers = {str(value.name): node for node in place.nodes for value in node.outputs}
    seen: set[ir.Node] = set()
    costs = []
    for residual in place.block.residuals:
        pending, total = [producers.get(residual.branch)], 0
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            total += macs.get(node.name or str(node.outputs[0].name), 0)
            pending += [producers.get(str(value.name)) for value in node.inputs if value is not None]
        if residual.node:
            seen.update(node for node in place.nodes if node.name == residual.node)
        costs.append(max(total, 1))
    return costs
