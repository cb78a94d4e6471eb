"""Marks products whose weights must stay what they are, so that every later step leaves them alone too."""

import onnx_ir as ir

_KEPT_KEY = "edgesmith.kept"


def keep(node: ir.Node, reason: str) -> None:
    """Let no method change the weight of a node. Edits the node; the mark is stored with the graph.

    Args:
        node: A product, a convolution or a Gather with a constant weight.
        reason: Why, in words that follow the node's name.
    """
    node.metadata_props[_KEPT_KEY] = reason


def kept(node: ir.Node) -> str:
    """Return why the weight of a node must stay what it is, or an empty string."""
    return node.metadata_props.get(_KEPT_KEY, "")
