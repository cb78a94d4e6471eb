"""Quantized values: where QuantizeLinear and DequantizeLinear stand, and what they store."""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.linear import stored_weight


@dataclass(frozen=True, slots=True)
class QuantizedValue:
    """A weight or an activation that passes through an integer (or eight-bit float) type."""

    kind: Literal["weight", "activation"]
    value: str
    """The stored tensor of a weight; the float value that is quantized, of an activation."""
    quantize: str | None
    """Node that quantizes, or None for a weight stored as integers."""
    dequantize: tuple[str, ...]
    """Nodes that make floats of it again; empty where an operator reads the integers."""
    dtype: str
    axis: int | None
    """Axis with a scale for each entry, or None for one scale in all."""
    consumers: tuple[str, ...]
    """Operator types that read the result."""


def find_quantized(flow: Dataflow) -> list[QuantizedValue]:
    """Return the quantized values in the order of the data."""
    found = [_activation(flow, node) for node in flow.find("QuantizeLinear", "DynamicQuantizeLinear")]
    found += [_weight(flow, node) for node in flow.find("DequantizeLinear")]
    return [each for each in found if each is not None]


def _activation(flow: Dataflow, node: ir.Node) -> QuantizedValue | None:
    source = node.inputs[0]
    if source is None:
        return None
    back = [user for user in flow.users(node.outputs[0]) if user.op_type == "DequantizeLinear"]
    direct = [user for user in flow.users(node.outputs[0]) if user.op_type != "DequantizeLinear"]
    readers = [reader for each in back for reader in flow.users(each.outputs[0])] + direct
    constant = flow.is_constant(source)
    stored = stored_weight(flow, source) if constant else None
    return QuantizedValue(
        kind="weight" if constant else "activation",
        value=(stored.value.name if stored is not None else source.name) or "",
        quantize=node.name or "",
        dequantize=tuple(each.name or "" for each in back),
        dtype=_dtype(node, node.outputs[0]),
        axis=_axis(flow, node),
        consumers=tuple(sorted({reader.op_type for reader in readers})),
    )


def _weight(flow: Dataflow, node: ir.Node) -> QuantizedValue | None:
    source = node.inputs[0]
    if source is None or not flow.is_constant(source):
        return None
    producer = source.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        return None
    stored = stored_weight(flow, source)
    if stored is None:
        return None
    return QuantizedValue(
        kind="weight",
        value=stored.value.name or "",
        quantize=None,
        dequantize=(node.name or "",),
        dtype=_dtype(node, source),
        axis=_axis(flow, node),
        consumers=tuple(sorted({reader.op_type for reader in flow.users(node.outputs[0])})),
    )


def _dtype(node: ir.Node, value: ir.Value) -> str:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = value.dtype
    for each in (value, zero_point):
        if dtype is None and each is not None:
            tensor = constant_tensor(each)
            dtype = each.dtype if tensor is None else tensor.dtype
    return "uint8" if dtype is None else dtype.name.lower()


def _axis(flow: Dataflow, node: ir.Node) -> int | None:
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    shape = flow.shapes.shape(scale)
    if not shape or all(size == 1 for size in shape):
        return None
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 1
