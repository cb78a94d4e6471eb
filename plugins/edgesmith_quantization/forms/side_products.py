"""Adds products in float beside a product that is quantized."""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_tensor


def add_beside(editor: GraphEditor, node: ir.Node, factor: ir.Value, matrix: ir.Value, name: str) -> ir.Node:
    """Add `factor @ matrix` to what a product makes, and return the new product. Edits the graph.

    It is added behind the product's bias, so that product and bias stay side by side, where runtimes join them.

    Args:
        editor: Editor of the graph.
        node: The product.
        factor: [..., k], computed before the output of the product.
        matrix: [k, outputs].
        name: Stem of the names of new nodes.
    """
    total = _with_bias(node)
    product = editor.insert_after(total, "MatMul", (factor, matrix), name=f"{name}_product")
    part = product.outputs[0]
    part.type = total.type
    # A bias may broadcast the product into further dimensions, which the part does not have.
    if factor.shape is not None and total.shape is not None:
        part.shape = ir.Shape([*factor.shape[:-1], total.shape[-1]])
    addition = editor.insert_after(part, "Add", (total, part), name=f"{name}_sum")
    addition.outputs[0].shape, addition.outputs[0].type = total.shape, total.type
    editor.replace_uses(total, addition.outputs[0], keep=(addition,))
    return product


def _with_bias(node: ir.Node) -> ir.Value:
    """Return the output of a product, behind a constant bias if that is its only reader."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
        return output
    reader, index = uses[0]
    return reader.outputs[0] if constant_tensor(reader.inputs[1 - index]) is not None else output
