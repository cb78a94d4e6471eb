"""Reads the QuantizeLinear/DequantizeLinear pairs that the rewrites of this target look for."""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor, constant_value

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def dequantize_behind(value: ir.Value | None, types: tuple[ir.DataType, ...] = BYTES) -> ir.Node | None:
    """Return the DequantizeLinear that makes a value from codes of one of the types, with constant parameters."""
    node = value.producer() if value is not None else None
    return node if node is not None and _is_conversion(node, "DequantizeLinear", types) else None


def one_scale_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes a value from bytes with a single scale."""
    node = dequantize_behind(value)
    return node if node is not None and has_one_scale(node) else None


def only_quantize(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear to bytes, with a single constant scale, that alone reads a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or uses[0].idx != 0 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if _is_conversion(node, "QuantizeLinear", BYTES) and has_one_scale(node) else None


def has_one_scale(node: ir.Node) -> bool:
    """Return whether a Q or DQ node has one scale for the whole tensor."""
    scale = constant_tensor(node.inputs[1])
    return scale is not None and scale.size == 1


def is_accumulator_bias(bias: ir.Node, activation: ir.Node, weight: ir.Node) -> bool:
    """Return whether a bias has the scale of the products and zero points of 0, so that it adds to accumulators."""
    scale, zero_point = constant_value(bias.inputs[1]), constant_value(bias.inputs[2])
    activation_scale, weight_scale = constant_value(activation.inputs[1]), constant_value(weight.inputs[1])
    if scale is None or zero_point is None or activation_scale is None or weight_scale is None:
        return False
    return bool((zero_point == 0).all()) and np.allclose(scale, activation_scale * weight_scale, rtol=1e-6, atol=0)


def _is_conversion(node: ir.Node, op_type: str, types: tuple[ir.DataType, ...]) -> bool:
    if node.op_type != op_type or node.domain != "" or len(node.inputs) != 3:
        return False
    scale, zero_point = (constant_tensor(parameter) for parameter in node.inputs[1:])
    if scale is None or zero_point is None:
        return False
    return scale.dtype == ir.DataType.FLOAT and zero_point.dtype in types
