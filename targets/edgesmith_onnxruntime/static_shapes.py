"""Writes out dimensions that a graph reads from shapes which leave them no choice.

With a free batch dimension, ONNX Runtime takes every number out of `Shape` for unknown, also those of fixed dimensions.
What is computed from them, such as position embeddings resized to the image, is then computed at every run. With the
dimensions written out, ONNX Runtime computes all of it once, when it loads the graph.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value


def write_static_dimensions(graph: ir.Graph) -> int:
    """Replace each Gather of fixed dimensions out of a Shape by their values; return how many. Edits `graph`."""
    editor, changed = GraphEditor(graph), 0
    for node in [each for each in graph if each.op_type == "Gather" and each.domain == ""]:
        dimensions = _fixed_dimensions(node)
        if dimensions is None or node.outputs[0].is_graph_output():
            continue
        constant = editor.add_initializer(f"{node.outputs[0].name}_static", dimensions)
        editor.replace_uses(node.outputs[0], constant)
        editor.remove_unused((node,))
        changed += 1
    return changed


def _fixed_dimensions(node: ir.Node) -> np.ndarray | None:
    """Return what a Gather reads out of a Shape, int64 shaped as its indices, where all of it is known."""
    source, indices = node.inputs[0], constant_value(node.inputs[1])
    shape_node = source.producer() if source is not None else None
    if indices is None or shape_node is None or shape_node.op_type != "Shape" or shape_node.inputs[0] is None:
        return None
    shape = shape_node.inputs[0].shape
    if shape is None:
        return None
    start, end = shape_node.attributes.get_int("start", 0), shape_node.attributes.get_int("end", len(shape))
    window = list(shape)[slice(start, end)]
    if not all(-len(window) <= index < len(window) for index in indices.reshape(-1)):
        return None
    chosen = [window[index] for index in indices.reshape(-1)]
    if not all(isinstance(size, int) for size in chosen):
        return None
    return np.array(chosen, np.int64).reshape(indices.shape)
