"""Makes ONNX Runtime round float16 values on a CPU, as devices do that compute in float16.

ONNX Runtime has few float16 kernels for a CPU. It computes in float32 and takes out the casts between two such nodes,
so that a value of float16 keeps the digits and the range of float32. Casts that the graph itself states are executed.
So every node is written in float32 here, with casts of its own.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.graph.edit import GraphEditor

_HALF = ir.DataType.FLOAT16

_CONVERT = ("Cast", "CastLike", "Constant", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear")
_MOVE = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Split", "Slice")
_ROUND_THEMSELVES = frozenset((*_CONVERT, *_MOVE, "Gather"))
"""Operators that ONNX Runtime executes in float16 itself: those that convert to it, and those that move numbers."""


def uses_half(model: ir.Model) -> bool:
    """Return whether a value of the main graph is in float16, or of a type that the graph does not state."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs if value.name]
    return any(value.dtype in (None, _HALF) for value in values)


def with_half_rounding(model: ir.Model) -> ir.Model:
    """Return a graph whose values in float16 are rounded to it in ONNX Runtime, too; names and types are the same.

    Nodes in bodies of loops and conditions, in local functions and of other domains than ONNX stay as they are.

    Args:
        model: Any graph. It is not changed, and is returned itself where it has no float16.
    """
    if not uses_half(model):
        return model
    copy = model.clone()
    if any(value.dtype is None for node in copy.graph for value in node.outputs if value.name):
        common_passes.ShapeInferencePass()(copy)
    editor = GraphEditor(copy.graph)
    full: dict[ir.Value, ir.Value] = {}
    for node in tuple(copy.graph):
        if not _is_rounded_here(node):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and _is_half(value):
                if value not in full:
                    full[value] = _cast(editor, value, ir.DataType.FLOAT)
                node.replace_input_with(index, full[value])
        for output in tuple(node.outputs):
            if _is_half(output):
                _round(editor, output)
    return copy


def _is_rounded_here(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _ROUND_THEMSELVES:
        return False
    if any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
        return False
    return any(value is not None and _is_half(value) for value in node.inputs)


def _is_half(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == _HALF


def _round(editor: GraphEditor, output: ir.Value) -> None:
    """Let a node write float32, and a cast behind it the value under its name."""
    rounded, name = _cast(editor, output, _HALF), output.name
    editor.replace_uses(output, rounded, keep=[node for node in (rounded.producer(),) if node is not None])
    if output.name == name:
        output.name = editor.value_name(f"{name}_full")
    output.type, rounded.name = ir.TensorType(ir.DataType.FLOAT), name


def _cast(editor: GraphEditor, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    cast = editor.insert_after(value, "Cast", (value,), {"to": int(dtype)}).outputs[0]
    cast.shape, cast.type = value.shape, ir.TensorType(dtype)
    return cast
