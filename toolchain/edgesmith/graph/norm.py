"""Normalization layers, fused in one operator or written out in arithmetic."""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgesmith.graph.dataflow import CARRYING, Dataflow
from edgesmith.graph.linear import stored_weight

NormKind = Literal["layer", "rms", "group", "instance", "batch"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization layer."""

    kind: NormKind
    nodes: tuple[str, ...]
    """Names of its nodes, from input to output; one when the operator is fused."""
    input: str
    output: str
    scale: str | None
    """Stored scale (gamma), or None."""
    bias: str | None
    """Stored bias (beta), or None."""
    epsilon: float
    size: int | None
    """Number of channels that are normalized, when known."""

    @property
    def fused(self) -> bool:
        """Whether one operator does it all."""
        return len(self.nodes) == 1


_FUSED: dict[str, NormKind] = {
    "LayerNormalization": "layer",
    "RMSNormalization": "rms",
    "SimplifiedLayerNormalization": "rms",
    "SkipLayerNormalization": "layer",
    "SkipSimplifiedLayerNormalization": "rms",
    "GroupNormalization": "group",
    "InstanceNormalization": "instance",
    "BatchNormalization": "batch",
}
_PASSING = CARRYING | {"Reshape", "Expand"}


def find_norms(flow: Dataflow) -> list[Norm]:
    """Return all normalization layers in the order of the data."""
    found = [_fused(flow, node) for node in flow.nodes if node.op_type in _FUSED]
    roots = [node for node in flow.nodes if node.op_type in ("Sqrt", "Pow")]
    written_out = (_written_out(flow, node) for node in roots)
    norms = [*found, *(norm for norm in written_out if norm is not None)]
    return sorted(norms, key=lambda norm: flow.order(flow.value(norm.output)))


def _fused(flow: Dataflow, node: ir.Node) -> Norm:
    # The fused residual Add of ONNX Runtime's Skip operators has its second summand in front of the scale.
    first = 2 if node.op_type.startswith("Skip") else 1
    inputs = [*node.inputs, None, None, None]
    scale, bias = inputs[first], inputs[first + 1]
    if _FUSED[node.op_type] == "rms":
        bias = None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    shape = flow.shapes.shape(scale)
    return Norm(
        kind=_FUSED[node.op_type],
        nodes=(node.name or "",),
        input=(inputs[0].name if inputs[0] is not None else "") or "",
        output=node.outputs[0].name or "",
        scale=_stored(flow, scale),
        bias=_stored(flow, bias),
        epsilon=epsilon,
        size=shape[-1] if shape else None,
    )


def _written_out(flow: Dataflow, root: ir.Node) -> Norm | None:
    """Read a normalization from the node that takes the root of the variance."""
    if root.op_type == "Pow" and flow.number(root.inputs[1]) != -0.5:
        return None
    added = _producer(flow, root.inputs[0], "Add")
    if added is None:
        return None
    variance, epsilon = _split_constant(flow, added)
    if variance is None or epsilon is None:
        return None
    centred = _variance_of(flow, variance)
    if centred is None:
        return None
    source, kind, centre = centred
    output = _normalized(flow, root, centre, source)
    if output is None:
        return None
    output, scale, bias = _affine(flow, output)
    shape = flow.shapes.shape(scale)
    return Norm(
        kind=kind,
        nodes=tuple(node.name or "" for node in flow.between(source, output)),
        input=source.name or "",
        output=output.name or "",
        scale=_stored(flow, scale),
        bias=_stored(flow, bias),
        epsilon=epsilon,
        size=max(shape) if shape else None,
    )


def _variance_of(flow: Dataflow, value: ir.Value) -> tuple[ir.Value, NormKind, ir.Value] | None:
    """Return what a value is the variance or mean square of, the kind, and the value that is divided by its root."""
    value = _floored(flow, value)
    squared = _mean_of(flow, value)
    if squared is not None:
        centre = _squared(flow, squared)
        if centre is None:
            return None
        subtraction = _producer(flow, centre, "Sub")
        if subtraction is None or subtraction.inputs[0] is None or subtraction.inputs[1] is None:
            return flow.skip_back(centre), "rms", centre
        averaged = _mean_of(flow, subtraction.inputs[1])
        if averaged is None or flow.skip_back(averaged) is not flow.skip_back(subtraction.inputs[0]):
            return flow.skip_back(centre), "rms", centre
        return flow.skip_back(averaged), "layer", centre
    # Variance as the mean of squares less the square of the mean, as JAX computes it.
    difference = _producer(flow, value, "Sub")
    if difference is None or difference.inputs[0] is None or difference.inputs[1] is None:
        return None
    mean_square, square_mean = _mean_of(flow, difference.inputs[0]), _squared(flow, difference.inputs[1])
    source = None if mean_square is None else _squared(flow, mean_square)
    averaged = None if square_mean is None else _mean_of(flow, square_mean)
    if source is None or averaged is not source:
        return None
    for node in flow.users(source):
        if node.op_type == "Sub" and node.inputs[0] is source:
            return source, "layer", node.outputs[0]
    return None


def _normalized(flow: Dataflow, root: ir.Node, centre: ir.Value, source: ir.Value) -> ir.Value | None:
    """Return the value divided by the root: Div(centre, root), or Mul with the reciprocal, scaled first or not."""
    centres = {flow.skip_back(centre), flow.skip_back(source)}
    inverse: list[ir.Value] = [root.outputs[0]]
    for _ in range(4):
        for node in flow.users(inverse[-1]):
            others = [v for v in node.inputs if v is not None and flow.skip_back(v) in centres]
            if node.op_type in ("Div", "Mul") and others:
                return node.outputs[0]
        following = [
            node
            for node in flow.users(inverse[-1])
            if node.op_type in _PASSING | {"Reciprocal"}
            or (node.op_type in ("Div", "Mul") and len(flow.dynamic_inputs(node)) == 1)
        ]
        if len(following) != 1:
            return None
        inverse.append(following[0].outputs[0])
    return None


def _affine(flow: Dataflow, value: ir.Value) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    """Return the value behind scale and bias, and the two."""
    scale = bias = None
    product = value.producer()
    if product is not None:
        # A scale may already be in the factor, where an exporter multiplied it into the reciprocal.
        for source in product.inputs:
            factor = _producer(flow, source, "Mul")
            if factor is not None and scale is None:
                scale = _vector(flow, factor)
    for op_type in ("Mul", "Add"):
        current = value
        users = flow.users(current)
        while len(users) == 1 and users[0].op_type in CARRYING:
            current = users[0].outputs[0]
            users = flow.users(current)
        if len(users) == 1 and users[0].op_type == op_type and not current.is_graph_output():
            constant = _vector(flow, users[0])
            if constant is None or (op_type == "Mul" and scale is not None):
                continue
            value = users[0].outputs[0]
            scale, bias = (constant, bias) if op_type == "Mul" else (scale, constant)
    return value, scale, bias


def _vector(flow: Dataflow, node: ir.Node) -> ir.Value | None:
    """Return the constant operand of a node when it holds one number per channel."""
    for value in node.inputs:
        shape = flow.shapes.shape(value)
        if value is not None and flow.is_constant(value) and shape and sum(size > 1 for size in shape) == 1:
            return value
    return None


def _mean_of(flow: Dataflow, value: ir.Value) -> ir.Value | None:
    """Return what a value is the mean of: ReduceMean, or ReduceSum times a constant."""
    node = flow.skip_back(value, _PASSING).producer()
    if node is not None and node.op_type in ("Mul", "Div") and len(flow.dynamic_inputs(node)) == 1:
        total = flow.skip_back(flow.dynamic_inputs(node)[0], _PASSING).producer()
        node = total if total is not None and total.op_type == "ReduceSum" else None
    elif node is not None and node.op_type != "ReduceMean":
        node = None
    return None if node is None else node.inputs[0]


def _squared(flow: Dataflow, value: ir.Value) -> ir.Value | None:
    node = flow.skip_back(value, _PASSING).producer()
    if node is None or not node.inputs:
        return None
    if node.op_type == "Pow" and flow.number(node.inputs[1]) == 2:
        return node.inputs[0]
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _floored(flow: Dataflow, value: ir.Value) -> ir.Value:
    node = flow.skip_back(value, _PASSING).producer()
    if node is not None and node.op_type in ("Max", "Relu", "Clip"):
        dynamic = flow.dynamic_inputs(node)
        return dynamic[0] if len(dynamic) == 1 else value
    return value


def _split_constant(flow: Dataflow, node: ir.Node) -> tuple[ir.Value | None, float | None]:
    first, second = node.inputs[:2]
    for dynamic, constant in ((first, second), (second, first)):
        number = flow.number(constant)
        if number is not None:
            return dynamic, number
    return None, None


def _producer(flow: Dataflow, value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else flow.skip_back(value, _PASSING).producer()
    return node if node is not None and node.op_type == op_type else None


def _stored(flow: Dataflow, value: ir.Value | None) -> str | None:
    if value is None or not flow.is_constant(value):
        return None
    stored = stored_weight(flow, value)
    return None if stored is None else stored.value.name
