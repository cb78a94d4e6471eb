"""Edits that several rewrites of this target share."""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor


def take_over(editor: GraphEditor, node: ir.Node, result: ir.Value) -> None:
    """Let `result` stand for the only output of `node`, with its name, shape and type, and remove `node`."""
    output = node.outputs[0]
    result.shape, result.type = output.shape, output.type
    is_output, name = output.is_graph_output(), output.name
    editor.replace_uses(output, result)
    editor.remove_unused((node,))
    if not is_output:
        result.name = name
