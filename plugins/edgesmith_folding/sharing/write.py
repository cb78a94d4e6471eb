"""Lets layers of several blocks read one set of weights."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.linear import Linear
from edgesmith_folding.sharing.formulas import correction, fitting_bias, metric

Float64 = NDArray[np.float64]


def layer_matrix(graph: ir.Graph, linear: Linear) -> Float64:
    """Return a layer as [inputs + 1, outputs]; the last row is the bias, zeros where it has none."""
    weight = _numbers(graph.initializers[linear.weight])
    weight = weight.T if linear.weight_axis == 0 else weight
    bias = np.zeros(linear.out_features) if linear.bias is None else _numbers(graph.initializers[linear.bias])
    return np.vstack([weight, bias.reshape(1, -1)])


def share(
    editor: GraphEditor,
    linears: Sequence[Linear],
    matrix: Float64 | None,
    *,
    name: str,
    correction_rank: int = 0,
    grams: Sequence[Float64] | None = None,
) -> None:
    """Let layers read one weight and one bias.

    Args:
        editor: Edits the graph.
        linears: The same layer of each block of a group.
        matrix: What they share, [inputs + 1, outputs]; None for the weights of the first, as they are stored.
        name: Stem of the names of new weights.
        correction_rank: Rank of what each keeps of its own difference. With any, and where some layers have no bias,
            biases stay private unless they are equal: they are small.
        grams: Sum of x x^T over what each reads, [inputs + 1, inputs + 1], for corrections; None without data.
    """
    graph, first = editor.graph, linears[0]
    private = correction_rank > 0 or len({linear.bias is None for linear in linears}) > 1
    before = [layer_matrix(graph, linear) for linear in linears] if private else []
    weight, bias = graph.initializers[first.weight], None if first.bias is None else graph.initializers[first.bias]
    if matrix is not None:
        weight = _like(editor, f"{name}.weight", matrix[:-1].T if first.weight_axis == 0 else matrix[:-1], weight)
        if bias is not None and not private:
            bias = _like(editor, f"{name}.bias", matrix[-1], bias)
    for linear in linears:
        _redirect(editor, linear, linear.weight, weight)
        if linear.bias is not None and bias is not None and not private:
            _redirect(editor, linear, linear.bias, bias)
    shared = _numbers(weight).T if first.weight_axis == 0 else _numbers(weight)
    for index, (linear, own) in enumerate(zip(linears, before, strict=False)):
        gram = None if grams is None else grams[index]
        measure = None if gram is None else metric(gram, has_bias=linear.bias is not None)
        left, right = correction(own[:-1] - shared, correction_rank, measure)
        _correct(editor, linear, left, right)
        if linear.bias is not None:
            _set_bias(editor, linear, fitting_bias(own, shared + left @ right, gram), bias)


def _set_bias(editor: GraphEditor, linear: Linear, numbers: Float64, shared: ir.Value | None) -> None:
    """Give a layer its own bias, or the shared one where that is the same."""
    if linear.bias is None:
        return
    own = editor.graph.initializers[linear.bias]
    for known in (own if shared is None else shared, own):
        stored = _stored(known)
        if np.array_equal(stored.reshape(-1), numbers.astype(stored.dtype)):
            _redirect(editor, linear, linear.bias, known)
            return
    _redirect(editor, linear, linear.bias, _like(editor, f"{linear.node}_private.bias", numbers, own))


def _redirect(editor: GraphEditor, linear: Linear, name: str, shared: ir.Value) -> None:
    """Let the layer that reads an initializer, and the nodes between both, read another one instead."""
    old = editor.graph.initializers[name]
    if old is shared:
        return
    readers = {node for node, _ in old.uses()}
    layer = _nodes_to(editor.graph, linear, readers)
    for node, index in tuple(old.uses()):
        if node in layer:
            node.replace_input_with(index, shared)
    if not old.uses() and not old.is_graph_output() and not old.is_graph_input():
        editor.graph.initializers.pop(name)


def _nodes_to(graph: ir.Graph, linear: Linear, readers: set[ir.Node]) -> set[ir.Node]:
    """Return those of the readers that lead to the layer alone: its own nodes, or what turns its weight."""
    names = {linear.node, linear.bias_node}
    found = set()
    for reader in readers:
        node = reader
        while node.name not in names and len(node.outputs) == 1 and len(node.outputs[0].uses()) == 1:
            ((node, _),) = node.outputs[0].uses()
        if node.name in names and node.graph is graph:
            found.add(reader)
    return found


def _correct(editor: GraphEditor, linear: Linear, left: Float64, right: Float64) -> None:
    """Add x @ left @ right to what a layer gives."""
    if not left.shape[1]:
        return
    values = ir.convenience.create_value_mapping(editor.graph, include_subgraphs=False)
    product = values[linear.product]
    node = product.producer()
    if node is None or node.inputs[0] is None:
        return
    kind = np.float16 if product.dtype == ir.DataType.FLOAT16 else np.float32
    stem = f"{linear.node}_private"
    factors = [
        editor.add_initializer(f"{stem}.{side}", part.astype(kind)) for side, part in (("left", left), ("right", right))
    ]
    inner = editor.insert_before(node, "MatMul", (node.inputs[0], factors[0]), name=f"{stem}_left")
    outer = editor.insert_before(node, "MatMul", (inner.outputs[0], factors[1]), name=f"{stem}_right")
    editor.insert_on_uses(product, "Add", (outer.outputs[0],), name=f"{stem}_add")


def _like(editor: GraphEditor, name: str, array: Float64, old: ir.Value) -> ir.Value:
    """Add an initializer of the shape and type of another one."""
    stored = _stored(old)
    return editor.add_initializer(
        name, np.ascontiguousarray(array).reshape(stored.shape).astype(stored.dtype), old.dtype
    )


def _stored(value: ir.Value) -> NDArray[np.generic]:
    tensor = value.const_value
    return np.zeros(0) if tensor is None else np.asarray(tensor.numpy())


def _numbers(value: ir.Value) -> Float64:
    return _stored(value).astype(np.float64)
