"""Writes Q/DQ convolutions as QLinearConv, with the Relu or Clip behind them absorbed where codes saturate alike.

ONNX Runtime joins most of them itself, but only from the optimization level "extended" on: below it, the pairs around
float convolutions make a quantized network slower than a float one. Written out, it is fast at every level.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith_onnxruntime.absorbed_bounds import absorbing_quantize
from edgesmith_onnxruntime.pairs import dequantize_behind, has_one_scale, is_accumulator_bias, one_scale_behind


def join_integer_convolutions(graph: ir.Graph) -> int:
    """Replace each Conv between Q/DQ pairs by QLinearConv; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    return sum(_join(editor, node) for node in list(graph) if node.op_type == "Conv" and node.domain == "")


def _join(editor: GraphEditor, node: ir.Node) -> bool:
    activation, weight = one_scale_behind(node.inputs[0]), dequantize_behind(node.inputs[1])
    quantize = absorbing_quantize(node.outputs[0])
    if activation is None or weight is None or quantize is None or not _has_scales_per_output(weight):
        return False
    parameters = [*activation.inputs, *weight.inputs, *quantize.inputs[1:]]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = dequantize_behind(node.inputs[2], (ir.DataType.INT32,))
        if bias is None or not is_accumulator_bias(bias, activation, weight):
            return False
        parameters.append(bias.inputs[0])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    joined = editor.insert_before(quantize, "QLinearConv", parameters, attributes, name=f"{node.name}_integer")
    editor.take_over(quantize, joined.outputs[0])
    return True


def _has_scales_per_output(weight: ir.Node) -> bool:
    if constant_tensor(weight.inputs[0]) is None or "block_size" in weight.attributes:
        return False
    return has_one_scale(weight) or weight.attributes.get_int("axis", 1) == 0
