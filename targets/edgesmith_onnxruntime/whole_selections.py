"""Writes a GatherND that selects every element in order as Reshape.

Exporters index masks that way. With fixed sizes the indices are constant, and accelerators of phones move values of
other types than float only in a few operators, among them Reshape.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value


def write_whole_selections(graph: ir.Graph) -> int:
    """Replace each GatherND whose constant indices name every element in order; return how many. Edits `graph`."""
    editor, changed = GraphEditor(graph), 0
    for node in [each for each in graph if each.op_type == "GatherND" and each.domain == ""]:
        shape = _selected_shape(node)
        if shape is None:
            continue
        target = editor.add_initializer(f"{node.name}_shape", np.array(shape, np.int64))
        reshaped = editor.insert_before(node, "Reshape", (node.inputs[0], target), name=f"{node.name}_reshape")
        editor.take_over(node, reshaped.outputs[0])
        changed += 1
    return changed


def _selected_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Return the output shape of a GatherND that moves nothing, or None."""
    data, indices = node.inputs[0], constant_value(node.inputs[1])
    if data is None or data.shape is None or indices is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if not data.shape.is_static():
        return None
    sizes = tuple(int(size) for size in data.shape.numpy())
    depth = indices.shape[-1]
    leading, rest = sizes[:depth], sizes[depth:]
    if 0 in sizes or indices.size != depth * int(np.prod(leading)):
        return None
    positive = np.where(indices < 0, indices + np.array(leading), indices).reshape(-1, depth)
    in_order = np.stack(np.unravel_index(np.arange(len(positive)), leading), axis=-1)
    return (*indices.shape[:-1], *rest) if np.array_equal(positive, in_order) else None
