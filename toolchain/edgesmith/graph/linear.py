"""Linear layers: a product with a constant matrix, with or without bias, float or quantized."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.dataflow import CARRYING, Dataflow


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer `output = input @ weight + bias`."""

    node: str
    """Name of the product's node."""
    op_type: str
    weight: str
    """The stored tensor: an initializer, or the output of a Constant node."""
    weight_axis: int | None
    """Axis of the stored tensor that holds output features; None where more than transposing stands between."""
    bias: str | None
    """The stored bias, or None."""
    bias_node: str | None
    """Node that adds the bias; None when the product itself does, or when there is none."""
    input: str
    """Value that is multiplied; before quantization, where it is quantized with a range computed at run time."""
    output: str
    """Value after the bias."""
    product: str
    """Output of the product's node; the same as `output` without a separate bias."""
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Where the numbers of a weight are stored."""

    value: ir.Value
    permutation: tuple[int, ...] | None
    """Axis of the stored tensor for each axis of the weight as used; None when it was reshaped or computed."""


# Operator: positions of data and weight, and of a bias that the operator itself adds.
_PRODUCTS: dict[tuple[str, str], tuple[int, int, int | None]] = {
    ("", "MatMul"): (0, 1, None),
    ("", "Gemm"): (0, 1, 2),
    ("", "MatMulInteger"): (0, 1, None),
    ("", "QLinearMatMul"): (0, 3, None),
    ("com.microsoft", "FusedMatMul"): (0, 1, None),
    ("com.microsoft", "MatMulIntegerToFloat"): (0, 1, 6),
    ("com.microsoft", "DynamicQuantizeMatMul"): (0, 1, 4),
    ("com.microsoft", "QGemm"): (0, 3, 6),
    ("com.microsoft", "MatMulNBits"): (0, 1, 5),
}


def find_linears(flow: Dataflow) -> list[Linear]:
    """Return all linear layers in the order of the data."""
    found = (_linear(flow, node) for node in flow.nodes if (node.domain, node.op_type) in _PRODUCTS)
    present = [linear for linear in found if linear is not None]
    return sorted(present, key=lambda linear: flow.order(flow.value(linear.product)))


def by_node(flow: Dataflow, linears: Iterable[Linear]) -> dict[ir.Node, Linear]:
    """Return linear layers by their nodes: the product, and the node that makes the output.

    A walk that stops at both does not leave a layer sideways, through the scales of its quantized input.
    """
    return {flow.producer(name): linear for linear in linears for name in (linear.product, linear.output)}


def stored_weight(flow: Dataflow, value: ir.Value) -> StoredWeight | None:
    """Return the stored tensor that a constant value is made from: the largest one, when there are several."""
    permutation: tuple[int, ...] | None = tuple(range(len(flow.shapes.shape(value) or ())))
    while True:
        node = value.producer()
        if node is None or node.op_type == "Constant":
            return StoredWeight(value, permutation)
        sources = [source for source in node.inputs if source is not None]
        if not sources:
            return None
        if node.op_type == "Transpose" and permutation is not None:
            axes = _permutation(node, len(permutation))
            permutation = tuple(axes[axis] for axis in permutation)
        elif node.op_type not in CARRYING:
            permutation = None
        if node.op_type in CARRYING or node.op_type == "Transpose":
            value = sources[0]
        else:
            value = max(sources, key=lambda source: _size(flow, source))


def _linear(flow: Dataflow, node: ir.Node) -> Linear | None:
    data_index, weight_index, bias_index = _PRODUCTS[node.domain, node.op_type]
    inputs = [*node.inputs, *[None] * 8]
    data, weight = inputs[data_index], inputs[weight_index]
    if data is None or weight is None or flow.is_constant(data) or not flow.is_constant(weight):
        return None
    stored = stored_weight(flow, weight)
    features = _features(flow, node, weight)
    if stored is None or features is None:
        return None
    in_features, out_features, axis = features
    stored_axis = None if stored.permutation is None else stored.permutation[axis]
    bias, bias_node, output = inputs[bias_index] if bias_index is not None else None, None, node.outputs[0]
    if bias is None:
        output = _rescaled(flow, node)
        bias, bias_node, output = _added_bias(flow, output, out_features)
    stored_bias = None if bias is None else stored_weight(flow, bias)
    quantizer = data.producer()
    if quantizer is not None and quantizer.op_type == "DynamicQuantizeLinear" and quantizer.inputs[0] is not None:
        data = quantizer.inputs[0]
    return Linear(
        node=node.name or "",
        op_type=node.op_type,
        weight=stored.value.name or "",
        weight_axis=stored_axis,
        bias=None if stored_bias is None else stored_bias.value.name,
        bias_node=None if bias_node is None else bias_node.name,
        input=data.name or "",
        output=output.name or "",
        product=node.outputs[0].name or "",
        in_features=in_features,
        out_features=out_features,
    )


def _features(flow: Dataflow, node: ir.Node, weight: ir.Value) -> tuple[int, int, int] | None:
    """Return input features, output features and the weight's axis of output features."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int(), node.attributes["N"].as_int(), 0
    shape = flow.shapes.shape(weight)
    if shape is None or len(shape) != 2:
        return None
    transposed = any(name in node.attributes and node.attributes[name].as_int() for name in ("transB",))
    return (shape[1], shape[0], 0) if transposed else (shape[0], shape[1], 1)


def _rescaled(flow: Dataflow, node: ir.Node) -> ir.Value:
    """Return the float value behind an integer product: a Cast and a Mul with the scales follow it."""
    value = node.outputs[0]
    if node.op_type != "MatMulInteger":
        return value
    for expected in ("Cast", "Mul"):
        users = flow.users(value)
        if len(users) == 1 and users[0].op_type == expected:
            value = users[0].outputs[0]
    return value


def _added_bias(flow: Dataflow, product: ir.Value, features: int) -> tuple[ir.Value | None, ir.Node | None, ir.Value]:
    """Return the bias that is added to a product, the node that does, and the value after it."""
    value = product
    while True:
        users = flow.users(value)
        if len(users) != 1 or value.is_graph_output():
            return None, None, product
        if users[0].op_type in CARRYING and users[0].inputs[0] is value:
            value = users[0].outputs[0]
            continue
        break
    node = users[0]
    if node.op_type != "Add":
        return None, None, product
    other = next((source for source in node.inputs if source is not value), None)
    shape = flow.shapes.shape(other)
    if other is None or not flow.is_constant(other) or not shape or shape[-1] != features:
        return None, None, product
    if any(size != 1 for size in shape[:-1]):
        return None, None, product
    return other, node, node.outputs[0]


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    return tuple(reversed(range(rank)))


def _size(flow: Dataflow, value: ir.Value) -> int:
    size = 1
    for length in flow.shapes.shape(value) or (0,):
        size *= length
    return size
