"""Embeddings: tables that tokens, positions or segments select from, patches of images, and learned tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgesmith.graph.convolution import Convolution
from edgesmith.graph.dataflow import CARRYING, ELEMENTWISE, MOVING, Dataflow, walk_back
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.linear import Linear, stored_weight
from edgesmith.graph.norm import Norm
from edgesmith.graph.residual import Stream
from edgesmith.graph.shapes import Array

EmbeddingKind = Literal["token", "position", "type", "patch", "class"]


@dataclass(frozen=True, slots=True)
class Embedding:
    """What brings an input into the width of the network.

    The kinds: "token" is selected by the data of an input, "position" by the place alone, "type" is one of few
    segments; "patch" projects patches of an image, "class" is a learned token put in front of the others.
    """

    kind: EmbeddingKind
    node: str
    """Node that selects, projects, adds or concatenates."""
    table: str
    """The stored tensor."""
    output: str
    rows: int | None
    """Entries of the table; positions or tokens that are added; None for patches."""
    size: int
    """Channels of one entry."""
    patch: tuple[int, ...] | None = None
    """Sides of a patch in pixels."""


# Tables with so few entries tell segments apart and not positions.
_MOST_TYPES = 16


def find_embeddings(
    flow: Dataflow,
    linears: Sequence[Linear],
    convolutions: Sequence[Convolution],
    norms: Sequence[Norm],
    streams: Sequence[Stream],
) -> list[Embedding]:
    """Return the embeddings in the order of the data."""
    found = [*_selected(flow), *_one_hot(flow, linears)]
    for stream in streams:
        entry = flow.value(stream.input)
        for convolution in convolutions:
            found += _patches(flow, convolution, entry)
        found += _added_positions(flow, entry, norms, {embedding.output for embedding in found})
    unique = {(embedding.kind, embedding.output): embedding for embedding in found}
    return sorted(unique.values(), key=lambda embedding: (*flow.order(flow.value(embedding.output)), embedding.kind))


def _selected(flow: Dataflow) -> list[Embedding]:
    """Read the Gather nodes that select rows of a constant table."""
    tokens: list[tuple[ir.Node, tuple[int, ...]]] = []
    found: list[Embedding] = []
    for node in flow.find("Gather", "GatherBlockQuantized"):
        table, indices = node.inputs[:2]
        shape = flow.shapes.shape(table)
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        axis = node.attributes["gather_axis"].as_int() if "gather_axis" in node.attributes else axis
        if table is None or indices is None or shape is None or len(shape) != 2 or axis != 0:
            continue
        if not flow.is_constant(table) or flow.is_constant(indices) or not _is_weight(flow, node, table):
            continue
        if _is_token_input(flow, indices):
            tokens.append((node, shape))
        else:
            counts = _counts(flow, indices, otherwise=shape[0] > _MOST_TYPES)
            found.append(_table(flow, node, shape, "position" if counts else "type"))
    largest = max((shape[0] for _, shape in tokens), default=0)
    for node, shape in tokens:
        kind: EmbeddingKind = "token" if shape[0] == largest else "type" if shape[0] <= _MOST_TYPES else "position"
        found.append(_table(flow, node, shape, kind))
    return found


def _table(flow: Dataflow, node: ir.Node, shape: tuple[int, ...], kind: EmbeddingKind) -> Embedding:
    size = (flow.shapes.shape(node.outputs[0]) or shape)[-1]
    return Embedding(kind, node.name or "", _stored(flow, node.inputs[0]), node.outputs[0].name or "", shape[0], size)


def _is_weight(flow: Dataflow, node: ir.Node, table: ir.Value) -> bool:
    """Whether a table holds numbers that were learned: floats, or integers that are dequantized afterwards."""
    stored = stored_weight(flow, table)
    tensor = None if stored is None else constant_tensor(stored.value)
    if tensor is not None and tensor.dtype.is_floating_point():
        return True
    following = {user.op_type for user in flow.users(node.outputs[0])}
    producer = table.producer()
    dequantized = producer is not None and producer.op_type == "DequantizeLinear"
    return dequantized or "DequantizeLinear" in following or node.op_type == "GatherBlockQuantized"


def _is_token_input(flow: Dataflow, indices: ir.Value) -> bool:
    """Whether indices are the numbers of one input, moved at most."""
    inputs = set(flow.model.graph.inputs)
    ends = [
        end
        for end in walk_back(indices, lambda node: node.op_type in MOVING | CARRYING | {"Clip"})
        if flow.shapes.known(end) is None and not flow.is_constant(end)
    ]
    return len(ends) == 1 and ends[0] in inputs


def _counts(flow: Dataflow, indices: ir.Value, *, otherwise: bool) -> bool:
    """Whether indices rise along the sequence when every input is one; `otherwise` when they cannot be evaluated."""
    given: dict[ir.Value, Array] = {}
    for source in flow.model.graph.inputs:
        shape = flow.shapes.shape(source)
        if shape is not None and source.dtype is not None:
            given[source] = np.ones(shape, source.dtype.numpy())
    array = flow.shapes.evaluate(indices, given)
    if array is None:
        return otherwise
    return array.size > 1 and bool((np.diff(array.reshape(-1, array.shape[-1])[0]) > 0).all())


def _one_hot(flow: Dataflow, linears: Sequence[Linear]) -> list[Embedding]:
    """Read linear layers whose input is a one-hot code; JAX writes embeddings so."""
    found = []
    for linear in linears:
        node = flow.skip_back(flow.value(linear.input)).producer()
        if node is not None and node.op_type in ("OneHot", "Equal"):
            found.append(
                Embedding("token", linear.node, linear.weight, linear.product, linear.in_features, linear.out_features)
            )
    return found


def _patches(flow: Dataflow, convolution: Convolution, entry: ir.Value) -> list[Embedding]:
    """Read a convolution without overlap at an input, and the learned tokens put in front of its patches."""
    output = flow.value(convolution.output)
    if convolution.kernel != convolution.strides or convolution.pointwise:
        return []
    passing = CARRYING | ELEMENTWISE | MOVING | {"DynamicQuantizeLinear"}
    ends = walk_back(flow.value(convolution.input), lambda node: node.op_type in passing)
    inputs = set(flow.model.graph.inputs)
    if not any(end in inputs for end in ends):
        return []
    path = flow.between(output, entry)
    if output is not entry and not path:
        return []
    size = convolution.out_channels
    node, table = convolution.node, convolution.weight
    found = [Embedding("patch", node, table, convolution.output, None, size, convolution.kernel)]
    for each in path:
        if each.op_type != "Concat":
            continue
        for source in each.inputs:
            shape = flow.shapes.shape(source)
            if source is not None and shape and shape[-1] == size and len(shape) > 1 and not flow.reads_input(source):
                name = each.outputs[0].name or ""
                found.append(Embedding("class", each.name or "", _stored(flow, source), name, shape[-2], size))
    return found


def _added_positions(flow: Dataflow, entry: ir.Value, norms: Sequence[Norm], known: set[str]) -> list[Embedding]:
    """Read what is added at the entry of a stream and depends on no input's data."""
    before = {norm.output: norm.input for norm in norms}
    value = flow.value(before.get(entry.name or "", entry.name or ""))
    found: list[Embedding] = []
    pending = [value]
    while pending:
        node = flow.skip_back(pending.pop()).producer()
        if node is None or node.op_type != "Add":
            continue
        for source in node.inputs:
            shape = flow.shapes.shape(source)
            if source is None or not shape:
                continue
            if flow.reads_input(source):
                pending.append(source)
            elif len(shape) > 1 and shape[-2] > 1 and flow.skip_back(source).name not in known:
                name = node.outputs[0].name or ""
                found.append(Embedding("position", node.name or "", _stored(flow, source), name, shape[-2], shape[-1]))
    return found


def _stored(flow: Dataflow, value: ir.Value | None) -> str:
    """Return the largest stored tensor that a value is made from."""
    if value is None:
        return ""
    if flow.is_constant(value):
        stored = stored_weight(flow, value)
        return "" if stored is None else stored.value.name or ""
    leaves = {
        source
        for node in flow.ancestors(value)
        for source in node.inputs
        if source is not None and flow.is_constant(source) and _is_float(source)
    }
    sizes = {leaf: int(np.prod(flow.shapes.shape(leaf) or (0,))) for leaf in leaves}
    largest = max(leaves, key=lambda leaf: (sizes[leaf], flow.order(leaf)), default=None)
    return "" if largest is None else _stored(flow, largest)


def _is_float(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is None or tensor.dtype.is_floating_point()
