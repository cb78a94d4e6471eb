"""Writes Q/DQ of eight-bit floats with Div, Cast and Mul, which give the same numbers, bit for bit.

ONNX Runtime up to 1.31 takes every Q/DQ pair for an integer one: at the default optimization level it moves pairs
through Transpose and replaces a MatMul between them by MatMulIntegerToFloat. Neither has eight-bit floats, so that it
refuses its own graph. A Cast does not match these patterns, and saturates as QuantizeLinear does. Weights are
converted once while the graph loads instead of in each run.

Graphs that compute in float16 load as they are. There ONNX Runtime would run Div, Cast and Mul in float32 and skip a
rounding.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value

FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ)
"""The eight-bit float types of ONNX."""


def write_float8_casts(graph: ir.Graph) -> int:
    """Replace each Q and DQ of eight-bit floats with whole-tensor or per-channel scales; return how many."""
    editor = GraphEditor(graph)
    written = 0
    for node in [each for each in graph.all_nodes() if each.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        dtype = _code_type(node)
        factor = _factor(editor, node) if dtype in FLOAT8 and node.domain == "" else None
        if factor is None or dtype is None:
            continue
        name = node.name or node.op_type
        if node.op_type == "QuantizeLinear":
            to = {"to": int(dtype), "saturate": node.attributes.get_int("saturate", 1)}
            scaled = editor.insert_before(node, "Div", (node.inputs[0], factor), name=f"{name}_scale")
            last = editor.insert_before(node, "Cast", scaled.outputs, to, name=f"{name}_cast")
        else:
            plain = editor.insert_before(node, "Cast", node.inputs[:1], {"to": 1}, name=f"{name}_cast")
            last = editor.insert_before(node, "Mul", (plain.outputs[0], factor), name=f"{name}_scale")
        editor.take_over(node, last.outputs[0])
        written += 1
    return written


def _factor(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """Return the scale in a shape that divides or multiplies the values, or None where the node has another form."""
    values, scale = node.inputs[0], node.inputs[1]
    array = constant_value(scale)
    if values is None or scale is None or array is None or array.dtype != np.float32:
        return None
    if array.size == 1 and array.ndim <= 1:
        return scale if array.ndim == 0 else editor.add_initializer(f"{scale.name}_factor", np.reshape(array, ()))
    rank = None if values.shape is None else values.shape.rank()
    if array.ndim != 1 or rank is None or "block_size" in node.attributes:
        return None
    shape = [1] * rank
    shape[node.attributes.get_int("axis", 1)] = -1
    return editor.add_initializer(f"{scale.name}_factor", array.reshape(shape))


def _code_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes: what is declared, or that of the zero point, which is the same."""
    if node.op_type == "QuantizeLinear" and "output_dtype" in node.attributes:
        return ir.DataType(node.attributes["output_dtype"].as_int())
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    for value in (node.inputs[2] if len(node.inputs) > 2 else None, codes):
        tensor = constant_tensor(value)
        dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
        if dtype is not None:
            return dtype
    return None
