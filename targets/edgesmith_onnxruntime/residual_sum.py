"""Writes the residual Add before LayerNormalization as Sum.

The values are the same. ONNX Runtime joins Add and LayerNormalization into SkipLayerNormalization when it loads a
graph, and on the CPU that kernel is far slower than the two: 0.22 ms against 0.04 ms for 128 x 384 on one core with
AVX-512 (1.31.1). It does not join Sum.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor


def write_residual_sums(graph: ir.Graph) -> int:
    """Replace each Add that a LayerNormalization reads; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    changed = 0
    for node in [each for each in graph if each.op_type == "Add" and each.domain == ""]:
        output = node.outputs[0]
        normalised = any(use.node.op_type == "LayerNormalization" and use.idx == 0 for use in output.uses())
        if not normalised or any(constant_tensor(value) is not None for value in node.inputs):
            continue
        total = editor.insert_before(node, "Sum", node.inputs, name=f"{node.name}_sum")
        editor.take_over(node, total.outputs[0])
        changed += 1
    return changed
