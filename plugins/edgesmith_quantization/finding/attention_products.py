"""Finds the products of two activations in attention: queries with keys, and probabilities with values."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.graph.node_names import node_name
from edgesmith.graph.quantized import already_quantized
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.host.selection import Selection


def head_sizes(structure: Structure) -> dict[str, int | None]:
    """Return the names of both products of every attention that is written out, each with the size of a head."""
    sizes: dict[str, int | None] = {}
    for attention in structure.attentions:
        if attention.fused is None:
            sizes[attention.score] = attention.head_dim
            sizes[attention.context_node] = attention.value_head_dim
    return sizes


def find_attention_products(model: ir.Model, selection: Selection) -> Iterator[ir.Node]:
    """Yield the MatMuls of attention whose two inputs are float32 activations, in graph order."""
    sizes = head_sizes(find_structure(model))
    for node in model.graph:
        if node.name not in sizes or node.op_type != "MatMul" or node.domain != "":
            continue
        floats = all(value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs)
        if floats and not selection.obstacle(node_name(node)) and not already_quantized(node):
            yield node
