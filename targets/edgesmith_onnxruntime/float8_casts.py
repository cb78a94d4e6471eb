"""Writes the DequantizeLinear of eight-bit floats as a Cast and a Mul, which is the same number, bit for bit.

ONNX Runtime up to 1.31 takes every Q/DQ product for an integer one: at the default optimization level it replaces a
MatMul between DequantizeLinear nodes by MatMulIntegerToFloat, which has no eight-bit floats, and then refuses its own
graph. A Cast does not match that pattern. Weights are converted once while the graph loads instead of in each run.

Graphs that compute in float16 load as they are. There ONNX Runtime would run Cast and Mul in float32 and skip a
rounding.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value
from edgesmith_onnxruntime.edits import take_over

_FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ)


def write_float8_casts(graph: ir.Graph) -> int:
    """Replace each DequantizeLinear of eight-bit floats with whole-tensor or per-channel scales; return how many."""
    editor = GraphEditor(graph)
    written = 0
    for node in [each for each in graph.all_nodes() if each.op_type == "DequantizeLinear" and each.domain == ""]:
        scale = _factor(editor, node)
        if scale is None:
            continue
        name = node.name or "dequantize"
        plain = editor.insert_before(node, "Cast", node.inputs[:1], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
        scaled = editor.insert_before(node, "Mul", (plain.outputs[0], scale), name=f"{name}_scale")
        take_over(editor, node, scaled.outputs[0])
        written += 1
    return written


def _factor(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """Return the scale in a shape that multiplies the codes, or None where the node has another form."""
    codes, scale = node.inputs[0], node.inputs[1]
    array = constant_value(scale)
    if codes is None or scale is None or array is None or _code_type(node) not in _FLOAT8:
        return None
    if array.dtype != np.float32 or "output_dtype" in node.attributes:
        return None
    if array.size == 1 and array.ndim <= 1:
        if array.ndim == 0:
            return scale
        return editor.add_initializer(f"{scale.name}_factor", np.reshape(array, ()))
    rank = None if codes.shape is None else codes.shape.rank()
    if array.ndim != 1 or rank is None or "block_size" in node.attributes:
        return None
    shape = [1] * rank
    shape[node.attributes.get_int("axis", 1)] = -1
    return editor.add_initializer(f"{scale.name}_factor", array.reshape(shape))


def _code_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes, from the codes themselves or from the zero point, which has the same."""
    for value in (node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None):
        tensor = constant_tensor(value)
        dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
        if dtype is not None:
            return dtype
    return None
