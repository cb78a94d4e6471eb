"""Joins Q/DQ products with scale and bias into ONNX Runtime's MatMulIntegerToFloat.

ONNX Runtime fuses most of this itself when it loads a graph, but leaves the bias outside, and turns a product of
2-D activations with a bias into a float Gemm. Written out, the bias is added while the accumulators are scaled.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def join_integer_products(graph: ir.Graph) -> int:
    """Replace each MatMul of a quantized activation and a quantized weight; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    joined = 0
    for node in [each for each in graph if each.op_type == "MatMul" and each.domain == ""]:
        activation, weight = (_dequantize(value) for value in node.inputs)
        if activation is None or weight is None or not _is_per_tensor(activation) or not _is_per_column(weight):
            continue
        _join(editor, node, activation, weight)
        joined += 1
    if joined:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return joined


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear behind an 8-bit value with constant scale and zero point."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or len(node.inputs) != 3:
        return None
    constants = [constant_tensor(parameter) for parameter in node.inputs[1:]]
    scale, zero_point = constants
    if scale is None or zero_point is None or scale.dtype != ir.DataType.FLOAT or zero_point.dtype not in _BYTES:
        return None
    return node


def _is_per_tensor(dequantize: ir.Node) -> bool:
    scale = constant_tensor(dequantize.inputs[1])
    return scale is not None and scale.size == 1


def _is_per_column(dequantize: ir.Node) -> bool:
    """Return whether a 2-D constant weight has one scale, or one per column."""
    codes, scale = (constant_tensor(value) for value in dequantize.inputs[:2])
    if codes is None or scale is None or len(codes.shape) != 2 or "block_size" in dequantize.attributes:
        return False
    return scale.size == 1 or dequantize.attributes.get_int("axis", 1) in (1, -1)


def _join(editor: GraphEditor, node: ir.Node, activation: ir.Node, weight: ir.Node) -> None:
    last, bias = node, None
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        other = uses[0].node.inputs[1 - uses[0].idx]
        tensor = constant_tensor(other)
        width = constant_tensor(weight.inputs[0])
        if tensor is not None and width is not None and list(tensor.shape.numpy()) == [width.shape.numpy()[1]]:
            last, bias = uses[0].node, other
    inputs = [*(activation.inputs[0], weight.inputs[0]), *(activation.inputs[1], weight.inputs[1])]
    inputs += [activation.inputs[2], weight.inputs[2]]
    inputs += [bias] if bias is not None else []
    output = last.outputs[0]
    joined = editor.insert_before(
        last, "MatMulIntegerToFloat", inputs, domain="com.microsoft", name=f"{node.name}_integer"
    )
    result = joined.outputs[0]
    result.shape, result.type = output.shape, output.type
    is_output, name = output.is_graph_output(), output.name
    editor.replace_uses(output, result)
    editor.remove_unused((last,))
    if not is_output:
        result.name = name
