"""Writes operators that Core ML does not get from ONNX Runtime as ones that it gets: Neg as Mul, Expand as Tile."""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor


def write_core_ml_forms(graph: ir.Graph) -> int:
    """Replace negations of floats, and expansions between fixed shapes; return how many. Edits `graph`."""
    editor, changed = GraphEditor(graph), 0
    for node in [each for each in graph if each.domain == ""]:
        value = node.inputs[0] if node.inputs else None
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        if node.op_type == "Neg":
            factor = editor.add_initializer(f"{node.name}_factor", np.array(-1, np.float32))
            result = editor.insert_before(node, "Mul", (value, factor), name=f"{node.name}_mul")
        elif node.op_type == "Expand" and (repeats := _repeats(value, node.outputs[0])) is not None:
            counts = editor.add_initializer(f"{node.name}_repeats", repeats)
            result = editor.insert_before(node, "Tile", (value, counts), name=f"{node.name}_tile")
        else:
            continue
        editor.take_over(node, result.outputs[0])
        changed += 1
    return changed


def _repeats(before: ir.Value, after: ir.Value) -> np.ndarray | None:
    """Return how often each dimension is repeated, where both shapes are fixed and of one rank; otherwise None."""
    if before.shape is None or after.shape is None or not (before.shape.is_static() and after.shape.is_static()):
        return None
    old, new = np.array(before.shape.numpy(), np.int64), np.array(after.shape.numpy(), np.int64)
    return new // old if len(old) == len(new) and old.all() else None
