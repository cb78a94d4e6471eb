"""Lowers weights that are stored as sums of parts: one product with their sum, which is added up while loading.

A weight split into parts is a sum of products with one input, and each product would run. Products are linear in the
weight, so they are joined into one. ONNX Runtime would then dequantize and add the parts in every run; written with
Cast, Sub and Mul it does so once, when it loads the graph. The file keeps the codes, memory holds the float weight.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value
from edgesmith_onnxruntime.block_products import expand
from edgesmith_onnxruntime.stored_weights import find_stored_weights

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_FEWEST_PARTS = 2


def lower_weight_sums(graph: ir.Graph) -> int:
    """Join products with the parts of a weight, and expand weights that are sums of parts; return how many weights."""
    editor = GraphEditor(graph)
    joined: dict[tuple[ir.Value, ...], ir.Value] = {}
    for node in list(graph):
        products = _branches(node)
        if products:
            _join(editor, node, products, joined)
    blocked = {stored.dequantize: stored for stored in find_stored_weights(graph) if stored.block_size}
    count = 0
    for node in list(graph):
        parts = _parts(node)
        if not parts:
            continue
        for part in parts:
            if part in blocked:
                expand(editor, blocked[part])
            elif part.graph is not None:
                _expand_channels(editor, part)
        count += 1
    return count


def _branches(node: ir.Node) -> list[ir.Node]:
    """Return the products that a Sum adds, if they have one input and parts of a weight; otherwise nothing."""
    if node.op_type != "Sum" or node.domain != "" or len(node.inputs) < _FEWEST_PARTS:
        return []
    products: list[ir.Node] = []
    for value in node.inputs:
        product = value.producer() if value is not None else None
        if value is None or product is None or value.is_graph_output() or len(tuple(value.uses())) != 1:
            return []
        products.append(product)
    first = products[0]
    alike = all(
        each.op_type == first.op_type
        and each.domain == ""
        and each.inputs[0] is first.inputs[0]
        and {name: each.attributes[name].value for name in each.attributes}
        == {name: first.attributes[name].value for name in first.attributes}
        and _dequantize(each.inputs[1]) is not None
        for each in products
        if each.op_type in _PRODUCTS
    )
    biases = _biases(products)
    addable = len(biases) <= 1 or all(constant_tensor(each) is not None for each in biases)
    known = all(each.op_type in _PRODUCTS for each in products)
    return products if known and alike and addable else []


def _biases(products: list[ir.Node]) -> list[ir.Value]:
    return [each.inputs[2] for each in products if len(each.inputs) > 2 and each.inputs[2] is not None]


def _join(
    editor: GraphEditor, node: ir.Node, products: list[ir.Node], joined: dict[tuple[ir.Value, ...], ir.Value]
) -> None:
    """Put one product with the sum of all weights and biases in the place of the sum of products.

    Args:
        editor: Editor of the graph.
        node: The Sum of products.
        products: What it adds.
        joined: Sums of weights that stand already, by their parts.
    """
    weights = tuple(each.inputs[1] for each in products if each.inputs[1] is not None)
    if weights not in joined:
        total = editor.insert_before(node, "Sum", weights, name=f"{node.name}_weights").outputs[0]
        total.shape, total.type = weights[0].shape, weights[0].type
        joined[weights] = total
    first = products[0]
    biases = _biases(products)
    if len(biases) > 1:
        values = [array for array in map(constant_value, biases) if array is not None]
        biases = [editor.add_initializer(f"{node.name}_bias", np.asarray(sum(values[1:], values[0])))]
    inputs = (first.inputs[0], joined[weights], *biases)
    attributes = {name: attribute.value for name, attribute in first.attributes.items()}
    product = editor.insert_before(node, first.op_type, inputs, attributes, name=f"{first.name}_joined")
    editor.take_over(node, product.outputs[0])


def _parts(node: ir.Node) -> list[ir.Node]:
    """Return the DequantizeLinear nodes behind a Sum of float32 weights, or nothing."""
    if node.op_type != "Sum" or node.domain != "":
        return []
    parts = [_dequantize(value) for value in node.inputs]
    return [part for part in parts if part is not None] if all(part is not None for part in parts) else []


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    """Return the node that dequantizes a float32 constant, behind a Transpose at most."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose" and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    scale = constant_tensor(node.inputs[1])
    stored = all(each is None or constant_tensor(each) is not None for each in node.inputs)
    return node if stored and scale is not None and scale.dtype == ir.DataType.FLOAT else None


def _expand_channels(editor: GraphEditor, node: ir.Node) -> None:
    """Replace a DequantizeLinear with one scale per channel, or one block a channel, by Cast, Sub and Mul. Exact."""
    codes, scale, *rest = node.inputs
    scales = constant_value(scale)
    if codes is None or codes.shape is None or scales is None:
        return
    rank, axis = len(codes.shape), node.attributes.get_int("axis", 1)
    if scales.ndim > 1 and scales.shape[axis] > 1:
        return
    name = node.name or "weight"

    def constant(part: str, array: NDArray[np.float32]) -> ir.Value:
        if array.ndim == 1:
            array = array.reshape([-1 if place == axis % rank else 1 for place in range(rank)])
        return editor.add_initializer(f"{name}_{part}", array)

    def insert(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return editor.insert_before(node, op_type, inputs, attributes, name=f"{name}_{op_type}").outputs[0]

    values = insert("Cast", codes, to=int(ir.DataType.FLOAT))
    offset = constant_value(rest[0]) if rest and rest[0] is not None else None
    if offset is not None:
        values = insert("Sub", values, constant("offset", offset.astype(np.float32)))
    editor.take_over(node, insert("Mul", values, constant("step", scales)))
