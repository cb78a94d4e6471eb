"""Writes a constant map into the graph, where an attention layer computed one from queries and keys."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import read_values
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.linear import Linear
from edgesmith_tokens.static.sites import Site

Array = NDArray[Any]


def replace_attention(editor: GraphEditor, site: Site, map_: Array, bias: Array | None = None) -> str:
    """Let a constant stand for the probabilities, and drop what only they needed: queries, keys, scores and softmax.

    A fused projection keeps the part that makes the values, unless something else reads the rest.

    Args:
        editor: Editor of the graph that the site was found in.
        site: The attention layer; it has no obstacle.
        map_: [heads, tokens, tokens].
        bias: Added to the product with the values, [heads, tokens, channels].

    Returns:
        Name of the initializer that holds the map.
    """
    node = _node_of(editor.graph, site.attention.context)
    maps, values = node.inputs
    if maps is None or values is None:  # a site without obstacle has both
        raise ValueError(site)
    dtype = values.dtype or maps.dtype or ir.DataType.FLOAT
    stem = site.attention.context_node or site.attention.context
    constant = editor.add_initializer(f"{stem}.static_map", map_[None].astype(dtype.numpy()))
    node.replace_input_with(0, constant)
    _remove(editor, maps)
    if site.columns:
        _slice_projection(editor, site, node, values)
    if bias is not None:
        added = editor.add_initializer(f"{stem}.static_bias", bias[None].astype(dtype.numpy()))
        editor.insert_on_uses(node.outputs[0], "Add", (added,), name=f"{stem}.static_bias_add")
    return str(constant.name)


def _slice_projection(editor: GraphEditor, site: Site, node: ir.Node, values: ir.Value) -> None:
    """Make the values by a linear layer of their own, if nothing else needs the fused one."""
    if site.attention.value is None:  # a site with columns has values
        raise ValueError(site)
    linear = site.attention.value.linear
    product = _node_of(editor.graph, linear.product)
    made = _sliced_linear(editor, linear, product, np.array(site.columns).ravel())
    stem = f"{linear.node or linear.product}.values"
    shape = editor.add_initializer(f"{stem}.shape", np.array([-1, site.tokens, site.heads, site.channels]))
    split = editor.insert_before(product, "Reshape", (made, shape), name=f"{stem}.split").outputs[0]
    heads = editor.insert_before(product, "Transpose", (split,), {"perm": [0, 2, 1, 3]}, name=f"{stem}.heads")
    moved = heads.outputs[0]
    moved.shape, moved.type = values.shape, values.type
    node.replace_input_with(1, moved)
    if product in needed_nodes(editor.graph):
        node.replace_input_with(1, values)
        _remove(editor, moved)
    else:
        _remove_dead(editor, product)


def _sliced_linear(editor: GraphEditor, linear: Linear, product: ir.Node, columns: NDArray[np.int64]) -> ir.Value:
    """Return the output of a new linear layer with some of the output features of another one."""
    stem = f"{linear.node or linear.product}.values"
    adder = None if linear.output == linear.product else _node_of(editor.graph, linear.output)
    weight = constant_value(product.inputs[1])
    if weight is None:  # a site with columns has a constant weight
        raise ValueError(linear)
    sliced = editor.add_initializer(f"{stem}.weight", weight.take(columns, 0 if _transposed(product) else 1))
    inputs: list[ir.Value | None] = [product.inputs[0], sliced]
    bias = None
    for each in product.inputs[2:] if adder is None else adder.inputs:
        whole = constant_value(each)
        if whole is not None:
            part = np.broadcast_to(whole.reshape(-1), (linear.out_features,))[columns]
            bias = editor.add_initializer(f"{stem}.bias", part)
    if adder is None and bias is not None:
        inputs.append(bias)
    attributes = {each.name: each.value for each in product.attributes.values()}
    made = editor.insert_before(product, product.op_type, inputs, attributes, name=stem).outputs[0]
    if adder is None or bias is None:
        return made
    return editor.insert_before(product, "Add", (made, bias), name=f"{stem}.add").outputs[0]


def needed_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that outputs of the graph depend on."""
    found: set[ir.Node] = set()
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(value.producer() for value in read_values(node))
    return found


def _remove_dead(editor: GraphEditor, start: ir.Node) -> None:
    """Remove a node that no output needs, with all behind it, and what only these needed."""
    needed = needed_nodes(editor.graph)
    behind, pending = [start], [start]
    while pending:
        for output in pending.pop().outputs:
            users = [user for user, _ in output.uses() if user not in needed and user not in behind]
            users = list(dict.fromkeys(users))
            behind += users
            pending += users
    # Users first, so that nobody reads what is removed.
    order = {each: index for index, each in enumerate(editor.graph)}
    for each in sorted(behind, key=lambda node: -order[node]):
        editor.remove_unused((each,))


def _remove(editor: GraphEditor, value: ir.Value) -> None:
    producer = value.producer()
    if producer is not None:
        editor.remove_unused((producer,))


def _transposed(product: ir.Node) -> bool:
    attribute = product.attributes.get("transB")
    return attribute is not None and attribute.as_int() == 1


def _node_of(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if any(output.name == name for output in node.outputs))
