"""Writes Q/DQ products as ONNX Runtime's integer operators: MatMulIntegerToFloat and QGemm.

ONNX Runtime fuses most of them itself when it loads a graph. But it leaves the bias of a MatMul outside, turns a
product of 2-D activations with a bias into a float Gemm, and leaves a Gemm in float whose output is read both
quantized and not. Written out, all run in integers, and biases are added while the accumulators are scaled.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value
from edgesmith_onnxruntime.edits import take_over

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def join_integer_products(graph: ir.Graph) -> int:
    """Replace each product of a quantized activation and a quantized weight; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    joined = 0
    for node in [each for each in graph if each.op_type in ("MatMul", "Gemm") and each.domain == ""]:
        activation, weight = (_dequantize(value, _BYTES) for value in node.inputs[:2])
        if activation is None or weight is None or not _has_one_scale(activation):
            continue
        join = _join_matmul if node.op_type == "MatMul" else _join_gemm
        joined += join(editor, node, activation, weight)
    if joined:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return joined


def _dequantize(value: ir.Value | None, types: tuple[ir.DataType, ...]) -> ir.Node | None:
    """Return the DequantizeLinear behind a value of one of the types, with constant scale and zero point."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or len(node.inputs) != 3:
        return None
    scale, zero_point = (constant_tensor(parameter) for parameter in node.inputs[1:])
    if scale is None or zero_point is None or scale.dtype != ir.DataType.FLOAT or zero_point.dtype not in types:
        return None
    return node


def _has_one_scale(dequantize: ir.Node) -> bool:
    scale = constant_tensor(dequantize.inputs[1])
    return scale is not None and scale.size == 1


def _scales_along(dequantize: ir.Node, axis: int) -> bool:
    """Return whether a 2-D constant weight has one scale, or one per index along `axis`."""
    codes = constant_tensor(dequantize.inputs[0])
    if codes is None or len(codes.shape) != 2 or "block_size" in dequantize.attributes:
        return False
    return _has_one_scale(dequantize) or dequantize.attributes.get_int("axis", 1) % 2 == axis


def _join_matmul(editor: GraphEditor, node: ir.Node, activation: ir.Node, weight: ir.Node) -> bool:
    if not _scales_along(weight, 1):
        return False
    last, bias = node, None
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        other = uses[0].node.inputs[1 - uses[0].idx]
        tensor, codes = constant_tensor(other), constant_tensor(weight.inputs[0])
        if tensor is not None and codes is not None and list(tensor.shape.numpy()) == [codes.shape.numpy()[1]]:
            last, bias = uses[0].node, other
    (a, a_scale, a_zero), (b, b_scale, b_zero) = activation.inputs, weight.inputs
    inputs = [a, b, a_scale, b_scale, a_zero, b_zero]
    inputs += [bias] if bias is not None else []
    name = f"{node.name}_integer"
    joined = editor.insert_before(last, "MatMulIntegerToFloat", inputs, domain="com.microsoft", name=name)
    take_over(editor, last, joined.outputs[0])
    return True


def _join_gemm(editor: GraphEditor, node: ir.Node, activation: ir.Node, weight: ir.Node) -> bool:
    plain = all(name not in node.attributes or node.attributes[name].value == v for name, v in _GEMM_DEFAULTS.items())
    transposed = node.attributes.get_int("transB", 0)
    if not plain or not _scales_along(weight, 0 if transposed else 1):
        return False
    inputs = [*activation.inputs, *weight.inputs]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _dequantize(node.inputs[2], (ir.DataType.INT32,))
        if bias is None or not _is_accumulator_bias(bias, activation, weight):
            return False
        inputs.append(bias.inputs[0])
    joined = editor.insert_before(
        node, "QGemm", inputs, {"transB": transposed}, domain="com.microsoft", name=f"{node.name}_integer"
    )
    take_over(editor, node, joined.outputs[0])
    return True


def _is_accumulator_bias(bias: ir.Node, activation: ir.Node, weight: ir.Node) -> bool:
    """Return whether a bias has the scale of the products and zero points of 0, so that it adds to accumulators."""
    scale, zero_point = constant_value(bias.inputs[1]), constant_value(bias.inputs[2])
    activation_scale, weight_scale = constant_value(activation.inputs[1]), constant_value(weight.inputs[1])
    if scale is None or zero_point is None or activation_scale is None or weight_scale is None:
        return False
    return bool((zero_point == 0).all()) and np.allclose(scale, activation_scale * weight_scale, rtol=1e-6, atol=0)
