"""Writes Q/DQ products as ONNX Runtime's integer operators: MatMulIntegerToFloat and QGemm.

ONNX Runtime fuses most of them itself when it loads a graph. But it leaves the bias of a MatMul outside, turns a
product of 2-D activations with a bias into a float Gemm, and leaves a Gemm in float whose output is read both
quantized and not. Written out, all run in integers, and biases are added while the accumulators are scaled.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith_onnxruntime.pairs import dequantize_behind, has_one_scale, is_accumulator_bias

_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def join_integer_products(graph: ir.Graph) -> int:
    """Replace each product of a quantized activation and a quantized weight; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    joined = 0
    for node in [each for each in graph if each.op_type in ("MatMul", "Gemm") and each.domain == ""]:
        activation, weight = (dequantize_behind(value) for value in node.inputs[:2])
        if activation is None or weight is None or not has_one_scale(activation):
            continue
        join = _join_matmul if node.op_type == "MatMul" else _join_gemm
        joined += join(editor, node, activation, weight)
    if joined:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return joined


def _scales_along(dequantize: ir.Node, axis: int) -> bool:
    """Return whether a 2-D constant weight has one scale, or one per index along `axis`."""
    codes = constant_tensor(dequantize.inputs[0])
    if codes is None or len(codes.shape) != 2 or "block_size" in dequantize.attributes:
        return False
    return has_one_scale(dequantize) or dequantize.attributes.get_int("axis", 1) % 2 == axis


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
    editor.take_over(last, joined.outputs[0])
    return True


def _join_gemm(editor: GraphEditor, node: ir.Node, activation: ir.Node, weight: ir.Node) -> bool:
    plain = all(name not in node.attributes or node.attributes[name].value == v for name, v in _GEMM_DEFAULTS.items())
    transposed = node.attributes.get_int("transB", 0)
    if not plain or not _scales_along(weight, 0 if transposed else 1):
        return False
    inputs = [*activation.inputs, *weight.inputs]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = dequantize_behind(node.inputs[2], (ir.DataType.INT32,))
        if bias is None or not is_accumulator_bias(bias, activation, weight):
            return False
        inputs.append(bias.inputs[0])
    joined = editor.insert_before(
        node, "QGemm", inputs, {"transB": transposed}, domain="com.microsoft", name=f"{node.name}_integer"
    )
    editor.take_over(node, joined.outputs[0])
    return True
