"""Computes what follows from constants alone, for runtimes that get the graph before ONNX Runtime has done so.

The frontends leave a few such nodes, since a graph with open dimensions needs them and what they fill may be large.
"""

from math import prod

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

_LARGEST_ELEMENTS = 1 << 18
# Folding these would undo a quantization.
_CODES = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a graph without nodes that compute from constants alone, and a remark; `model` itself where none is."""
    from onnxscript.optimizer import FOLDED_FROM_KEY
    from onnxscript.optimizer import fold_constants as fold

    folded = model.clone()
    before = sum(1 for _ in folded.graph)
    fold(
        folded,
        onnx_shape_inference=False,
        output_size_limit=_LARGEST_ELEMENTS,
        should_fold=_may_fold,
    )
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(folded)
    common_passes.RemoveUnusedNodesPass()(folded)
    for value in folded.graph.initializers.values():
        value.metadata_props.pop(FOLDED_FROM_KEY, None)
    gone = before - sum(1 for _ in folded.graph)
    return (folded, f"Computed {gone} nodes that follow from constants.") if gone else (model, "")


def _may_fold(node: ir.Node) -> bool | None:
    """Return None where the size of inputs and output decides."""
    if node.op_type in _CODES:
        return False
    shape = node.outputs[0].shape
    if node.op_type != "ConstantOfShape" or shape is None or not shape.is_static():
        return None
    return prod(shape.numpy()) <= _LARGEST_ELEMENTS
