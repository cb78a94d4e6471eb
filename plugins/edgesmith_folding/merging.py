"""Puts what removed blocks computed into the block before them (LaCo, arXiv 2402.11187)."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import set_initializer
from edgesmith.graph.linear import Linear
from edgesmith.host.context import Notes
from edgesmith_folding.finding.places import Place
from edgesmith_folding.sharing.formulas import Float64, laco_layer
from edgesmith_folding.sharing.groups import Sharer, find_sharers
from edgesmith_folding.sharing.write import layer_matrix


def merge_runs(
    model: ir.Model, parts: Sequence[Sequence[Place]], places: Mapping[int, Place], *, released: bool, notes: Notes
) -> None:
    """Merge the projections of each run that will be removed into those of the block before it.

    Norms stay those of the block before. Runs without one that computes the same with other numbers are left out, with
    the reason noted.

    Args:
        model: The graph to change; the blocks were found in it and still stand there.
        parts: Runs of blocks.
        places: All blocks by number.
        released: Merge as the released code does.
        notes: Takes the reasons.
    """
    sharers = find_sharers(model, places)
    for run in parts:
        base = sharers.get(run[0].number - 1)
        members = [sharers[place.number] for place in run]
        follows = base is not None and base.place.block.output == run[0].block.input
        unlike = base is None or any(one.obstacle or not _mergeable(base, one) for one in members)
        if base is None or not follows or unlike or not _alone(model.graph, base):
            notes.skip(run[0].block.residuals[0].node, "nothing is merged: no block before it computes the same")
            continue
        for linears in zip(base.linears, *(member.linears for member in members), strict=True):
            first, *others = [layer_matrix(model.graph, linear) for linear in linears]
            _write(model.graph, linears[0], laco_layer(first, others, released=released))


def _mergeable(base: Sharer, other: Sharer) -> bool:
    """Whether another block computes the same, and each of its biases has one to be added to."""
    biases = [[linear.bias is not None for linear in each.linears] for each in (base, other)]
    return base.signature == other.signature and biases[0] == biases[1]


def _alone(graph: ir.Graph, base: Sharer) -> bool:
    """Whether nobody else reads the weights of a block."""
    names = [name for linear in base.linears for name in (linear.weight, linear.bias) if name is not None]
    stored = [graph.initializers[name] for name in names if name in graph.initializers]
    return all(base.place.nodes.issuperset(_readers(value)) for value in stored)


def _readers(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that read a weight, through those that turn it."""
    found: set[ir.Node] = set()
    for node in value.consumers():
        turned = node.op_type in ("Identity", "Transpose")
        found |= _readers(node.outputs[0]) if turned else {node}
    return found


def _write(graph: ir.Graph, linear: Linear, matrix: Float64) -> None:
    weight = matrix[:-1].T if linear.weight_axis == 0 else matrix[:-1]
    for name, array in ((linear.weight, weight), (linear.bias, matrix[-1])):
        value = None if name is None else graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            old = value.const_value.numpy()
            set_initializer(value, np.ascontiguousarray(array).reshape(old.shape).astype(old.dtype), value.dtype)
