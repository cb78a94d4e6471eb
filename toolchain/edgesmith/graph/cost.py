"""What a graph costs: parameters, bytes of weights, and multiply-accumulate operations (MACs).

MACs are counted for everything that multiplies and sums: products, convolutions, attention, recurrent layers. Sums,
activations, normalization and pooling count nothing, as usual. Integer and packed forms of an operator count the same
as its float form. A number that cannot be known is reported as unknown and never guessed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.shapes import Shapes, bind_dimensions
from edgesmith.serialization import weight_bytes

Shape = tuple[int, ...]

# Shorter sequences are tried when a default one does not fit the network's table of positions.
USUAL_SEQUENCE = 128
"""Length that is taken for dimensions without a number, where nothing says better."""
_SEQUENCES = (USUAL_SEQUENCE, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one inference."""

    parameters: int
    """Learned numbers as stored: a tensor that two operators share counts once. Statistics of batch normalization,
    scales and zero points of quantization, and integer constants do not count."""
    macs: int
    """Multiply-accumulate operations for the inputs of the given dimensions."""
    weight_bytes: int
    """Size of all stored tensors, in the types in which they are stored."""
    by_node: Mapping[str, int]
    """MACs of each node that has any, by its name (by its first output where it has none)."""
    unknown: tuple[str, ...]
    """Nodes whose MACs are not in the sum, because a shape depends on data."""
    dimensions: Mapping[str, int]
    """The number used for each symbolic dimension."""
    assumptions: tuple[str, ...]
    """What was assumed where control flow depends on data."""

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON data."""
        return asdict(self)


def count_cost(model: ir.Model, dimensions: Mapping[str, int] | None = None) -> Cost:
    """Return what a graph costs.

    Args:
        model: The graph. It is not changed.
        dimensions: Numbers for symbolic dimensions by name; one without a name is called "input:axis". Otherwise a
            first dimension is 1, sides of images are 224, a cache of earlier keys is empty, and other dimensions are
            128, or the next smaller power of two down to 16 that the network accepts. The result says what was used.
    """
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    best: Cost | None = None
    for sequence in _SEQUENCES:
        cost = _count(model, bind_dimensions(model, dimensions, sequence=sequence))
        if best is None or len(cost.unknown) < len(best.unknown):
            best = cost
        if not cost.unknown or cost.dimensions == dimensions:
            break
    return replace(best or cost, parameters=_parameters(model), weight_bytes=weight_bytes(model))


def _count(model: ir.Model, dimensions: Mapping[str, int]) -> Cost:
    counter = _Counter(Shapes(model, dimensions))
    counts = counter.graph(model.graph)
    by_node = {name: macs for name, macs in counts.items() if macs}
    return Cost(
        parameters=0,
        macs=sum(value for value in by_node.values() if value is not None),
        weight_bytes=0,
        by_node={name: macs for name, macs in by_node.items() if macs is not None},
        unknown=tuple(name for name, macs in counts.items() if macs is None),
        dimensions=dict(dimensions),
        assumptions=tuple(counter.assumptions),
    )


class _Counter:
    """Counts graph by graph, so that branches can be compared and bodies of loops multiplied."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.assumptions: list[str] = []
        self._constants: set[ir.Value] = set()

    def graph(self, graph: ir.Graph) -> dict[str, int | None]:
        """Return MACs by node; None where they are unknown."""
        counts: dict[str, int | None] = {}
        for node in graph:
            # What is computed from weights alone is computed once, when the model is loaded.
            subgraphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
            if not subgraphs and all(self._is_constant(value) for value in node.inputs):
                self._constants.update(node.outputs)
            elif node.op_type == "If":
                counts.update(self._branch(node))
            elif subgraphs:
                counts.update(self._body(node, subgraphs))
            elif node.op_type in _RULES:
                counts[_name(node)] = _RULES[node.op_type](node, self.shapes)
        return counts

    def _is_constant(self, value: ir.Value | None) -> bool:
        return value is None or value in self._constants or constant_tensor(value) is not None

    def _branch(self, node: ir.Node) -> dict[str, int | None]:
        if node in self.shapes.branches:
            return self.graph(self.shapes.branches[node])
        branches = [self.graph(node.attributes[name].as_graph()) for name in ("then_branch", "else_branch")]
        totals = [sum(macs or 0 for macs in counts.values()) for counts in branches]
        if totals[0] != totals[1]:
            self.assumptions.append(f"{_name(node)}: the costlier branch of the If is counted")
        chosen, other = branches if totals[0] >= totals[1] else branches[::-1]
        # What is unknown in the other branch might have made it the costlier one.
        return {**chosen, **{name: None for name, macs in other.items() if macs is None}}

    def _body(self, node: ir.Node, subgraphs: Sequence[ir.Graph]) -> dict[str, int | None]:
        times = self._repetitions(node)
        found: dict[str, int | None] = {}
        for subgraph in subgraphs:
            for name, macs in self.graph(subgraph).items():
                found[name] = None if macs is None or times is None else macs * times
        return found

    def _repetitions(self, node: ir.Node) -> int | None:
        if node.op_type == "Loop":
            trips = self.shapes.known(node.inputs[0])
            return None if trips is None else int(trips.reshape(-1)[0])
        if node.op_type == "Scan":
            shape = self.shapes.shape(node.inputs[-1])
            return shape[0] if shape else None
        return None


def _matmul(node: ir.Node, shapes: Shapes) -> int | None:
    first = shapes.shape(node.inputs[0])
    second = shapes.shape(node.inputs[3 if node.op_type in ("QLinearMatMul", "QGemm") else 1])
    if not first or not second:
        return None
    rows = 1 if len(first) == 1 else first[-1 if _flag(node, "transA") else -2]
    inner = first[-2 if _flag(node, "transA") else -1]
    columns = 1 if len(second) == 1 else second[-2 if _flag(node, "transB") else -1]
    batches = _broadcast(first[:-2], second[:-2])
    return None if batches is None else math.prod(batches) * rows * inner * columns


def _packed_matmul(node: ir.Node, shapes: Shapes) -> int | None:
    shape = shapes.shape(node.inputs[0])
    return None if not shape else math.prod(shape) * node.attributes["N"].as_int()


def _convolution(node: ir.Node, shapes: Shapes) -> int | None:
    output = shapes.shape(node.outputs[0])
    weight = shapes.shape(node.inputs[3 if node.op_type == "QLinearConv" else 1])
    return None if output is None or not weight else math.prod(output) * math.prod(weight[1:])


def _transposed_convolution(node: ir.Node, shapes: Shapes) -> int | None:
    source, weight = shapes.shape(node.inputs[0]), shapes.shape(node.inputs[1])
    return None if source is None or not weight else math.prod(source) * math.prod(weight[1:])


def _einsum(node: ir.Node, shapes: Shapes) -> int | None:
    """Count one or two operands; the order of a longer product is the runtime's choice."""
    terms = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        shape = shapes.shape(value)
        if shape is None or len(terms) > 2:
            return None
        before, ellipsis, after = term.partition("...")
        spread = len(shape) - len(before) - len(after) if ellipsis else 0
        labels = [*before, *(f".{spread - i}" for i in range(spread)), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _recurrent(node: ir.Node, shapes: Shapes) -> int | None:
    source, weight, recurrence = (shapes.shape(value) for value in node.inputs[:3])
    if source is None or weight is None or recurrence is None:
        return None
    # Input and batch stand first in either layout; weights are [directions, gates * hidden, features].
    return source[0] * source[1] * (math.prod(weight) + math.prod(recurrence))


# Position of the input with keys of earlier calls.
_PAST_KEYS = {
    ("", "Attention"): 4,
    ("com.microsoft", "MultiHeadAttention"): 6,
    ("com.microsoft", "GroupQueryAttention"): 3,
}


def _attention(node: ir.Node, shapes: Shapes) -> int | None:
    """Count both products of a fused attention, and the projection where the operator holds it."""
    query, keys, values = (shapes.shape(value) for value in (*node.inputs, None, None)[:3])
    heads = _number(node, "q_num_heads") or _number(node, "num_heads")
    if query is not None and len(query) == 4:
        heads = query[1]
    if query is None or heads is None:
        return None
    batch, rows, width = query[0], query[-2], query[-1] // (heads if len(query) == 3 else 1)
    groups = _number(node, "kv_num_heads") or heads
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        if keys is None:
            return None
        # The second input is the weight of the projection.
        return batch * rows * math.prod(keys) + 2 * batch * rows * rows * (keys[1] // 3)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        # Queries, keys and values stand side by side in the first input.
        width = value_width = query[-1] // (heads + 2 * groups)
        columns = rows
    elif keys is None or values is None:
        return None
    else:
        columns = keys[-2]
        value_width = values[-1] // (groups if len(values) == 3 else 1)
    past_index = _PAST_KEYS.get((node.domain, node.op_type), 0)
    if past_index and len(node.inputs) > past_index and node.inputs[past_index] is not None:
        past = shapes.shape(node.inputs[past_index])
        if past is None:
            return None
        columns += past[2]
    return batch * heads * rows * columns * (width + value_width)


_RULES: dict[str, Callable[[ir.Node, Shapes], int | None]] = {
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "QGemm"), _matmul),
    **dict.fromkeys(("FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedGemm"), _matmul),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv"), _convolution),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _attention),
    "MatMulNBits": _packed_matmul,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
}

# Inputs that hold no learned numbers although they may be stored floats: statistics, scales, zero points, bounds.
_NOT_LEARNED: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "MatMulInteger": frozenset({2, 3}),
    "ConvInteger": frozenset({2, 3}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "MatMulNBits": frozenset({2, 3, 4}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "Resize": frozenset({1, 2, 3}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
}
# Inputs that hold learned numbers although they are stored as integers.
_LEARNED_INTEGERS: dict[str, frozenset[int]] = {
    "DequantizeLinear": frozenset({0}),
    "MatMulInteger": frozenset({1}),
    "ConvInteger": frozenset({1}),
    "QLinearMatMul": frozenset({3}),
    "QLinearConv": frozenset({3, 8}),
    "MatMulIntegerToFloat": frozenset({1}),
    "DynamicQuantizeMatMul": frozenset({1}),
}


def _parameters(model: ir.Model) -> int:
    total = 0
    for value in _stored(model):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        uses = list(_uses(value))
        if any(node.op_type == "MatMulNBits" and index == 1 for node, index in uses):
            node = next(node for node, index in uses if index == 1)
            total += node.attributes["K"].as_int() * node.attributes["N"].as_int()
        elif any(_is_learned(tensor, node, index) for node, index in uses):
            total += tensor.size
    return total


def _is_learned(tensor: ir.TensorProtocol, node: ir.Node, index: int) -> bool:
    if not tensor.dtype.is_floating_point():
        return index in _LEARNED_INTEGERS.get(node.op_type, ())
    # A single number is a constant of a formula: an epsilon, an exponent, a scale.
    return tensor.size > 1 and index not in _NOT_LEARNED.get(node.op_type, ())


def _stored(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        for node in graph:
            if node.op_type == "Constant" and node.domain == "":
                yield node.outputs[0]


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the uses of a stored tensor, behind Identity nodes too."""
    for node, index in value.uses():
        if node.op_type == "Identity":
            yield from _uses(node.outputs[0])
        else:
            yield node, index


def _broadcast(first: Shape, second: Shape) -> Shape | None:
    longest = max(len(first), len(second))
    pairs = zip((1,) * (longest - len(first)) + first, (1,) * (longest - len(second)) + second, strict=True)
    result = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            return None
        result.append(other if one == 1 else one)
    return tuple(result)


def _flag(node: ir.Node, name: str) -> bool:
    return bool(_number(node, name))


def _number(node: ir.Node, name: str) -> int | None:
    return node.attributes[name].as_int() if name in node.attributes else None


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type
