"""What nodes are called in messages and in options."""

import onnx_ir as ir


def node_name(node: ir.Node) -> str:
    """Return a name to show: the node's, or its first output's."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
