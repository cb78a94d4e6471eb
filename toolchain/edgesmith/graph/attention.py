"""Attention layers, found from their softmax outwards, or in one fused operator.

Heads are read from where the columns of a projection arrive: the positions on the projection's output are followed
through every Reshape, Split, Transpose and Expand to the product of queries and keys. So fused projections, grouped
queries and any layout of heads are read alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import BINARY, CARRYING, ELEMENTWISE, MOVING, Dataflow
from edgesmith.graph.linear import Linear, by_node
from edgesmith.graph.mask import Mask, read_mask
from edgesmith.graph.shapes import Array


@dataclass(frozen=True, slots=True)
class Projection:
    """The part of a linear layer that makes queries, keys or values, or that takes the heads' results."""

    linear: Linear
    features: tuple[tuple[int, int], ...]
    """Runs (start, stop) of the linear layer's output features that it serves, head after head; of its input features
    for the output projection. Empty when they cannot be followed."""
    value: str
    """Where the projection arrives in the attention, after splitting heads; for the output projection, its output."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention layer. Queries, keys and values are projections, or None where no linear layer makes them."""

    query: Projection | None
    key: Projection | None
    value: Projection | None
    output: Projection | None
    heads: int | None
    kv_heads: int | None
    """Heads of keys and values; fewer than `heads` with grouped queries. None when no projection makes the keys."""
    head_dim: int | None
    value_head_dim: int | None
    causal: bool | None
    """Whether positions see only earlier ones; None when the mask cannot be evaluated."""
    padding_mask: bool
    """Whether a mask depends on the data of an input."""
    mask: str | None
    """Value that masks the scores, or None."""
    rotary: bool
    score: str
    """Name of the node that multiplies queries with keys; the fused node, when there is one."""
    softmax: str
    probability: str | None
    """Value of the probabilities that meet the values; None in a fused operator."""
    context: str
    """Output of the product of probabilities and values (or of the fused operator)."""
    context_node: str
    fused: str | None
    """Operator type when one operator does it all, else None."""

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one head of keys and values."""
        return self.heads is not None and self.kv_heads is not None and self.kv_heads < self.heads


_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "Einsum"})
FUSED_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""Operators of ONNX and ONNX Runtime that are a whole attention layer."""
# What may stand between a projection and its product: everything that treats one position at a time.
_ON_THE_WAY = (
    CARRYING | MOVING | ELEMENTWISE | {"ReduceMean", "ReduceSum", "ReduceL2", "LpNormalization", "RotaryEmbedding"}
    | {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Sqrt", "DynamicQuantizeLinear"}
)  # fmt: skip


def find_attentions(flow: Dataflow, linears: Sequence[Linear]) -> list[Attention]:
    """Return all attention layers in the order of the data."""
    layers = by_node(flow, linears)
    found = [_from_softmax(flow, node, layers) for node in flow.nodes if node.op_type == "Softmax"]
    found += [_from_fused(flow, node, layers) for node in flow.nodes if node.op_type in FUSED_ATTENTION]
    present = [attention for attention in found if attention is not None]
    return sorted(present, key=lambda attention: flow.order(flow.value(attention.context)))


def _from_softmax(flow: Dataflow, softmax: ir.Node, linears: dict[ir.Node, Linear]) -> Attention | None:
    scores = _scores(flow, softmax)
    context = _context(flow, softmax)
    if scores is None or context is None:
        return None
    score, masks = scores
    product, probability = context
    operands, weighted = _operands(flow, score), _operands(flow, product)
    if operands is None or weighted is None:
        return None
    query_input, key_input = operands
    value_input = weighted[1] if weighted[0] is probability else weighted[0]
    query = _project(flow, query_input, linears, _contracted_axis(score, query_input))
    key = _project(flow, key_input, linears, _contracted_axis(score, key_input))
    value = _project(flow, value_input, linears, _free_axis(product, value_input))
    heads, head_dim = _heads(flow, query, score, query_input)
    output = _output_projection(flow, product.outputs[0], linears, heads)
    mask = read_mask(flow, masks, score.outputs[0], softmax.inputs[0])
    kv_heads = key[1] if key is not None and key[1] else None
    return Attention(
        query=None if query is None else query[0],
        key=None if key is None else key[0],
        value=None if value is None else value[0],
        output=output,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=_length(flow, value_input, _free_axis(product, value_input)),
        causal=mask.causal,
        padding_mask=mask.padding,
        mask=mask.value,
        rotary=query is not None and _is_rotary(flow, query[0], query_input),
        score=score.name or "",
        softmax=softmax.name or "",
        probability=probability.name,
        context=product.outputs[0].name or "",
        context_node=product.name or "",
        fused=None,
    )


def _scores(flow: Dataflow, softmax: ir.Node) -> tuple[ir.Node, list[tuple[ir.Node, ir.Value]]] | None:
    """Return the product of queries and keys behind a softmax, and the masks on the way: node and masking operand."""
    value = softmax.inputs[0]
    masks: list[tuple[ir.Node, ir.Value]] = []
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type in _PRODUCTS:
            return (node, masks) if _operands(flow, node) is not None else None
        if node.op_type not in ELEMENTWISE | CARRYING | MOVING | {"Softmax", "Trilu"}:
            return None
        candidates = flow.dynamic_inputs(node)
        if node.op_type in CARRYING | MOVING or len(candidates) == 1:
            following: ir.Value | None = candidates[0] if candidates else None
        else:
            following = next((each for each in candidates if _reaches_product(flow, each)), None)
        if following is not None and node.op_type in BINARY:
            operands = [each for each in node.inputs if each is not None and each is not following]
            masks += [(node, each) for each in operands if flow.number(each) is None]
        value = following
    return None


def _reaches_product(flow: Dataflow, value: ir.Value) -> bool:
    """Whether a product of two computed values lies behind elementwise operators."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None:
            continue
        if _operands(flow, node) is not None:
            return True
        if node.op_type in ELEMENTWISE | CARRYING | MOVING:
            new = [each for each in flow.dynamic_inputs(node) if each not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _context(flow: Dataflow, softmax: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the product with the values behind a softmax, and the probabilities that enter it."""
    pending, seen = [softmax.outputs[0]], {softmax.outputs[0]}
    while pending:
        value = pending.pop(0)
        for node in flow.users(value):
            if _operands(flow, node) is not None:
                return node, value
            if node.op_type in CARRYING | BINARY | {"Reshape", "DynamicQuantizeLinear"}:
                output = node.outputs[0]
                if output not in seen:
                    seen.add(output)
                    pending.append(output)
    return None


def _operands(flow: Dataflow, node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the two operands of a product of computed values; None when one is constant, as in a linear layer."""
    if node.op_type not in _PRODUCTS or len(node.inputs) < 2:
        return None
    first, second = node.inputs[0], node.inputs[3 if node.op_type == "QLinearMatMul" else 1]
    if first is None or second is None or flow.is_constant(first) or flow.is_constant(second):
        return None
    return first, second


def _contracted_axis(product: ir.Node, operand: ir.Value) -> int:
    """Return the axis of an operand that a product sums over, counted from the end."""
    axes = _einsum_axes(product, operand)
    if axes is not None:
        return axes[0]
    first = operand is product.inputs[0]
    name = "transA" if first else "transB"
    transposed = name in product.attributes and product.attributes[name].as_int() == 1
    return -1 if first != transposed else -2


def _free_axis(product: ir.Node, operand: ir.Value) -> int:
    """Return the axis of an operand that a product keeps, counted from the end."""
    axes = _einsum_axes(product, operand)
    return axes[1] if axes is not None else -3 - _contracted_axis(product, operand)


def _einsum_axes(product: ir.Node, operand: ir.Value) -> tuple[int, int] | None:
    if product.op_type != "Einsum":
        return None
    terms, _, result = product.attributes["equation"].as_string().replace(" ", "").partition("->")
    parts = terms.split(",")
    mine, other = (parts[0], parts[1]) if operand is product.inputs[0] else (parts[1], parts[0])
    contracted = [label for label in mine if label in other and label not in result]
    free = [label for label in mine if label not in other]
    if len(contracted) != 1 or not free:
        return None
    return mine.index(contracted[0]) - len(mine), mine.index(free[-1]) - len(mine)


def _length(flow: Dataflow, value: ir.Value, axis: int) -> int | None:
    shape = flow.shapes.shape(value)
    return shape[axis] if shape and len(shape) >= -axis else None


def _project(
    flow: Dataflow, operand: ir.Value, linears: dict[ir.Node, Linear], axis: int
) -> tuple[Projection, int] | None:
    """Return the projection that makes an operand of a product, and how many different heads it has."""
    ends = flow.ancestors(operand, lambda node: node in linears or node.op_type not in _ON_THE_WAY)
    sources = list(dict.fromkeys(linears[node] for node in flow.ordered(ends) if node in linears))
    if len(sources) != 1:
        return None
    linear = sources[0]
    traced = flow.trace(flow.value(linear.output), operand)
    rows = _rows(traced, axis)
    features = () if rows is None else _runs(rows)
    return Projection(linear, features, operand.name or ""), 0 if rows is None else len(rows)


def _rows(traced: Array | None, axis: int) -> list[tuple[int, ...]] | None:
    """Return the source positions of each different head, given positions of shape (..., heads, length, head size)."""
    if traced is None or traced.ndim < 3:
        return None
    moved = np.moveaxis(traced, axis, -1)
    # The last of the remaining axes is the sequence when there is one of it; one position tells all.
    moved = moved.reshape(-1, *moved.shape[-2:])[:, -1, :] if moved.shape[-2] else moved[..., :0, 0]
    rows = list(dict.fromkeys(tuple(sorted(int(i) for i in row)) for row in moved))
    if not rows or any(index < 0 for row in rows for index in row):
        return None
    flat = [index for row in rows for index in row]
    return rows if len(set(flat)) == len(flat) else None


def _runs(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Join positions, head after head, into runs of neighbours."""
    runs: list[tuple[int, int]] = []
    for index in (index for row in rows for index in row):
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return tuple(runs)


def _heads(
    flow: Dataflow, query: tuple[Projection, int] | None, score: ir.Node, operand: ir.Value
) -> tuple[int | None, int | None]:
    head_dim = _length(flow, operand, _contracted_axis(score, operand))
    if query is not None and query[1]:
        return query[1], head_dim
    shape = flow.shapes.shape(operand)
    if shape is not None and len(shape) == 4:
        return shape[1], head_dim
    if query is not None and head_dim:
        return query[0].linear.out_features // head_dim, head_dim
    return None, head_dim


def _output_projection(
    flow: Dataflow, context: ir.Value, linears: dict[ir.Node, Linear], heads: int | None
) -> Projection | None:
    """Return the linear layer that takes the results of all heads, with the input features of each head in turn."""
    pending, seen = [context], {context}
    while pending:
        value = pending.pop(0)
        for node in flow.users(value):
            if node in linears:
                linear = linears[node]
                features = _consumed(flow, context, flow.value(linear.input), heads)
                return Projection(linear, features, linear.output)
            if node.op_type in _ON_THE_WAY and not (node.op_type == "Add" and len(flow.dynamic_inputs(node)) > 1):
                new = [output for output in node.outputs if output not in seen]
                seen.update(new)
                pending.extend(new)
    return None


def _consumed(flow: Dataflow, context: ir.Value, target: ir.Value, heads: int | None) -> tuple[tuple[int, int], ...]:
    shape = flow.shapes.shape(context)
    if shape is None or len(shape) < 3 or not heads:
        return ()
    # Number head and channel together, so that each input feature tells both.
    # A batch may be folded into the axis of heads.
    numbers = (np.arange(shape[-3]) % heads).reshape(-1, 1, 1) * shape[-1] + np.arange(shape[-1])
    start = np.broadcast_to(numbers, shape)
    traced = flow.trace(context, target, start)
    if traced is None or traced.size == 0:
        return ()
    order = traced.reshape(-1, traced.shape[-1])[0]
    if sorted(order.tolist()) != list(range(len(order))):
        return ()
    return _runs([np.argsort(order).tolist()])


def _is_rotary(flow: Dataflow, query: Projection, operand: ir.Value) -> bool:
    """Whether queries are rotated by their position: two products with tables that differ from place to place."""
    path = flow.between(flow.value(query.linear.output), operand)
    if any(node.op_type == "RotaryEmbedding" for node in path):
        return True
    on_path = {value for node in path for value in node.outputs} | {flow.value(query.linear.output)}
    tables = 0
    for node in path:
        if node.op_type != "Mul":
            continue
        others = [value for value in node.inputs if value not in on_path]
        shape = flow.shapes.shape(others[0]) if others else None
        tables += bool(shape and sum(size > 1 for size in shape) >= 2)
    return tables >= 2


def _from_fused(flow: Dataflow, node: ir.Node, linears: dict[ir.Node, Linear]) -> Attention | None:
    """Read a fused operator: Attention of ONNX or ONNX Runtime, MultiHeadAttention, GroupQueryAttention."""
    inputs = [*node.inputs, *[None] * 12]
    heads = _integer(node, "q_num_heads", "num_heads")
    kv_heads = _integer(node, "kv_num_heads") or heads
    microsoft = node.domain == "com.microsoft"
    packed = microsoft and node.op_type == "Attention"
    projections = [None if packed or v is None else _nearest(flow, v, linears) for v in inputs[:3]]
    shape = flow.shapes.shape(inputs[0])
    if shape is not None and len(shape) == 4 and heads is None:
        heads = shape[1]
        keys = flow.shapes.shape(inputs[1])
        kv_heads = keys[1] if keys is not None else heads
    mask_index = {"Attention": 3, "MultiHeadAttention": 4, "GroupQueryAttention": 5}[node.op_type]
    mask = inputs[mask_index]
    group_query = node.op_type == "GroupQueryAttention"
    causal = group_query or bool(_integer(node, "is_causal", "unidirectional"))
    query, key, value = projections
    head_dim, value_head_dim = _fused_sizes(flow, node, heads, kv_heads)
    found = Mask(None, causal, False)
    if mask is not None and not group_query and not microsoft and node.inputs[0] is not None:
        found = read_mask(flow, [(node, mask)], None, None)
    return Attention(
        query=query,
        key=key,
        value=value,
        output=_output_projection(flow, node.outputs[0], linears, heads),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        causal=causal or found.causal,
        padding_mask=found.padding or (mask is not None and flow.reads_input(mask)),
        mask=None if mask is None else mask.name,
        rotary=bool(_integer(node, "do_rotary")) or (query is not None and _is_rotary(flow, query, node.inputs[0])),  # type: ignore[arg-type]
        score=node.name or "",
        softmax=node.name or "",
        probability=None,
        context=node.outputs[0].name or "",
        context_node=node.name or "",
        fused=node.op_type,
    )


def _fused_sizes(
    flow: Dataflow, node: ir.Node, heads: int | None, kv_heads: int | None
) -> tuple[int | None, int | None]:
    """Return the channels of a head of queries, and of values."""
    shapes = [flow.shapes.shape(value) for value in node.inputs[:3]]
    query, value = shapes[0], shapes[2] if len(shapes) > 2 else None
    if query is None or not heads or not kv_heads:
        return None, None
    if len(query) == 4:
        return query[-1], value[-1] if value is not None else query[-1]
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        size = shapes[1][1] // 3 // heads if shapes[1] is not None else None
        return size, size
    if node.inputs[1] is None:
        # Queries, keys and values stand side by side in one input.
        return (query[-1] // (heads + 2 * kv_heads),) * 2
    return query[-1] // heads, value[-1] // kv_heads if value is not None else query[-1] // heads


def _nearest(flow: Dataflow, value: ir.Value, linears: dict[ir.Node, Linear]) -> Projection | None:
    found = _project(flow, value, linears, -1)
    if found is None:
        return None
    traced = flow.trace(flow.value(found[0].linear.output), value)
    if traced is None or traced.ndim != 3:
        return found[0]
    return Projection(found[0].linear, _runs([traced[0, -1].tolist()]), found[0].value)


def _integer(node: ir.Node, *names: str) -> int | None:
    for name in names:
        if name in node.attributes:
            return node.attributes[name].as_int()
    return None
