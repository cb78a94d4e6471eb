"""Moves the last codes of a quantized graph by one step: the least that noise can change where it changes a code."""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith_onnxruntime.pairs import BYTES, has_one_scale


def shift_last_codes(graph: ir.Graph) -> int:
    """Add one step to what each QuantizeLinear reads that no other follows; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    last = [node for node in _last_quantizers(graph) if _has_one_byte_scale(node)]
    for node in last:
        value, scale = node.inputs[:2]
        moved = editor.insert_before(node, "Add", (value, scale), name=f"{node.name}_moved").outputs[0]
        if value is not None:
            moved.shape, moved.type = value.shape, value.type
        node.replace_input_with(0, moved)
    return len(last)


def _last_quantizers(graph: ir.Graph) -> list[ir.Node]:
    """Return the QuantizeLinear nodes of activations whose codes reach an output without another one."""
    quantized_later: set[ir.Value] = set()
    found = []
    for node in reversed(graph):
        later = any(output in quantized_later for output in node.outputs)
        if node.op_type == "QuantizeLinear" and not later and constant_tensor(node.inputs[0]) is None:
            found.append(node)
        if later or node.op_type == "QuantizeLinear":
            quantized_later.update(value for value in node.inputs if value is not None)
    return found


def _has_one_byte_scale(node: ir.Node) -> bool:
    zero_point = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero_point is not None and zero_point.dtype in BYTES and has_one_scale(node)
