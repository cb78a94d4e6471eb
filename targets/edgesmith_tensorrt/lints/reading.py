"""What several rules read from a graph."""

from collections.abc import Iterator

import onnx_ir as ir

PAIRS = ("QuantizeLinear", "DequantizeLinear")


def name_of(node: ir.Node) -> str:
    """Return a name to show: the node's, or its first output's."""
    return node.name or str(node.outputs[0].name)


def nodes_of(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Yield the nodes of standard operators of these types, in subgraphs too."""
    yield from (node for node in model.graph.all_nodes() if node.op_type in operators and node.domain == "")


def code_type(node: ir.Node) -> ir.DataType | None:
    """Return the type of the codes that a QuantizeLinear writes or a DequantizeLinear reads."""
    return node.outputs[0].dtype if node.op_type == "QuantizeLinear" else _dtype(node.inputs[0])


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    return value.dtype or (value.const_value.dtype if value.const_value is not None else None)
