"""Folds a constant factor per channel behind an integer product into its scales and bias.

Layer scale in vision transformers is such a factor. An integer product multiplies its accumulators by one scale per
channel anyway, so the factor costs nothing there: `(a b s + c) g = a b (s g) + c g`.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Array, GraphEditor, constant_value

_WEIGHT, _WEIGHT_SCALE, _BIAS = 1, 3, 6


def fold_output_scales(graph: ir.Graph) -> int:
    """Fold each factor that is the only reader of an integer product; return how many. Edits `graph`."""
    editor, changed = GraphEditor(graph), 0
    for node in [each for each in graph if each.op_type == "MatMulIntegerToFloat"]:
        reader, factor = _factor(node)
        if reader is None or factor is None:
            continue
        _multiply(editor, node, _WEIGHT_SCALE, factor)
        if len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
            _multiply(editor, node, _BIAS, factor)
        editor.take_over(reader, node.outputs[0])
        changed += 1
    return changed


def _factor(node: ir.Node) -> tuple[ir.Node | None, Array | None]:
    """Return the Mul that alone reads a product, and its constant factor [channels]."""
    output, uses = node.outputs[0], tuple(node.outputs[0].uses())
    weight = constant_value(node.inputs[_WEIGHT])
    if len(uses) != 1 or output.is_graph_output() or weight is None or uses[0].node.op_type != "Mul":
        return None, None
    factor = constant_value(uses[0].node.inputs[1 - uses[0].idx])
    constants = [constant_value(node.inputs[index]) for index in (_WEIGHT_SCALE, _BIAS) if index < len(node.inputs)]
    if factor is None or factor.shape != (weight.shape[-1],) or any(each is None for each in constants):
        return None, None
    # A zero or subnormal scale is not a scale any more.
    if factor.dtype != np.float32 or np.abs(factor).min() < np.finfo(np.float32).tiny:
        return None, None
    return uses[0].node, factor


def _multiply(editor: GraphEditor, node: ir.Node, index: int, factor: Array) -> None:
    old = node.inputs[index]
    values = constant_value(old)
    if old is None or values is None:
        raise ValueError(node.name)  # _factor has looked
    node.replace_input_with(index, editor.add_initializer(f"{old.name}_folded", (values * factor).astype(np.float32)))
