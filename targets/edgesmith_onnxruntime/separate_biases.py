"""Takes biases beside float16 scales out of what they are added to, where ONNX Runtime would lose them.

Between pairs, ONNX Runtime up to 1.31 writes the constant bias of a Conv, ConvTranspose or Gemm as int32 codes with the
scale of input times weight, at every level from basic on. In float16 that product is often zero, and the bias is gone.
It makes a Gemm of a MatMul and an Add first. A bias that is added by a node of its own stays, and so does one that is
subtracted behind a MatMul. Nothing runs slower: processors have no integer kernels with scales in float16.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Array, GraphEditor, constant_tensor, constant_value


def separate_biases(graph: ir.Graph) -> int:
    """Take out each constant bias of a product of values with scales in float16; return how many. Edits `graph`.

    Sums are rounded to float16 once more where the runtime adds a bias before it rounds, so results move by at most
    half a step of float16.
    """
    editor = GraphEditor(graph)
    products = [node for node in graph.all_nodes() if node.domain == "" and _is_between_half_scales(node)]
    return sum(
        _subtract_behind(editor, node) if node.op_type == "MatMul" else _add_behind(editor, node) for node in products
    )


def _is_between_half_scales(node: ir.Node) -> bool:
    """Return whether a node multiplies two values that come from codes with scales in float16."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    pairs = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(
        pair is not None and pair.op_type == "DequantizeLinear" and _dtype(pair.inputs[1]) == ir.DataType.FLOAT16
        for pair in pairs
    )


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    """Return the type of a value, of a constant also where the graph does not tell it."""
    tensor = constant_tensor(value)
    return tensor.dtype if tensor is not None else value.dtype if value is not None else None


def _add_behind(editor: GraphEditor, node: ir.Node) -> int:
    """Let an Add behind the node add its bias; return 1 if it has a constant one."""
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is None:
        return 0
    if node.op_type == "Gemm":
        bias = (bias * np.float32(node.attributes.get_float("beta", 1.0))).astype(bias.dtype)
    else:
        # One number for each channel, which stands before the dimensions of the image.
        bias = bias.reshape(-1, *[1] * _image_rank(node))
    node.resize_inputs(2)
    apart = editor.add_initializer(f"{node.name or node.op_type}_bias", bias)
    editor.insert_on_uses(node.outputs[0], "Add", (apart,), name=f"{node.name or node.op_type}_add_bias")
    return 1


def _image_rank(node: ir.Node) -> int:
    """Return how many dimensions of an image a convolution has, from its weight, whose codes have the same rank."""
    pair = node.inputs[1].producer() if node.inputs[1] is not None else None
    weight = pair.inputs[0] if pair is not None else None
    return weight.shape.rank() - 2 if weight is not None and weight.shape is not None else 2


def _subtract_behind(editor: GraphEditor, node: ir.Node) -> int:
    """Let each Add of a constant behind the node subtract the negative, bit for bit the same; return how many."""
    written = 0
    for add in [each for each in node.outputs[0].consumers() if each.op_type == "Add" and each.domain == ""]:
        bias: Array | None = constant_value(add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0])
        if bias is None:
            continue
        negative = editor.add_initializer(f"{add.name or 'Add'}_negative", -bias)
        difference = editor.insert_before(add, "Sub", (node.outputs[0], negative), name=f"{add.name or 'Add'}_subtract")
        editor.take_over(add, difference.outputs[0])
        written += 1
    return written
