"""Fuses attention into ONNX Runtime's MultiHeadAttention with the rules that onnxscript keeps."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.graph.edit import GraphEditor

_INTERMEDIATE_DOMAIN = "ai.onnxruntime._fusion"


def fuse_attention(model: ir.Model) -> tuple[ir.Model, int]:
    """Return a model with its attention fused, and how many were; `model` itself is left as it is when none is.

    Query, key and value projections stay separate products, so that quantized ones keep their integer form.
    """
    if not any(node.op_type == "Softmax" for node in model.graph):
        return model, 0
    from onnxscript import optimizer
    from onnxscript.rewriter.ort_fusions import mha, mha_scale, sdpa, shape_optimization

    fused = model.clone()
    common_passes.ShapeInferencePass()(fused)
    _separate_head_joins(fused.graph)
    shape_optimization.rules.apply_to_model(fused)
    optimizer.remove_unused_nodes(fused)
    if not sdpa.fuse_sdpa(fused, apply_shape_inference=True):
        return model, 0
    count = mha.fuse_mha2(fused)
    mha_scale.fuse_mha_scale(fused)
    common_passes.CommonSubexpressionEliminationPass()(fused)
    common_passes.RemoveUnusedNodesPass()(fused)
    if count == 0 or any(node.domain == _INTERMEDIATE_DOMAIN for node in fused.graph.all_nodes()):
        return model, 0
    fused.graph.opset_imports.pop(_INTERMEDIATE_DOMAIN, None)
    fused.graph.opset_imports.setdefault("com.microsoft", 1)
    return fused, count


def _separate_head_joins(graph: ir.Graph) -> None:
    """Let every Reshape that joins heads give [batch, sequence, width], with a further Reshape where it gave another.

    The rules replace the first Reshape behind the heads by an output of that form, whatever its own was.
    """
    editor = GraphEditor(graph)
    for node in [each for each in graph if each.op_type == "Reshape" and each.domain == ""]:
        heads = node.inputs[0]
        transpose = heads.producer() if heads is not None else None
        joined = node.outputs[0].shape
        if heads is None or heads.shape is None or len(heads.shape) != 4 or transpose is None:
            continue
        if transpose.op_type != "Transpose" or list(transpose.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
            continue
        if joined is not None and len(joined) == 3 and joined[:2] == heads.shape[:2]:
            continue
        target = editor.add_initializer("joined_heads", np.array([0, 0, -1], np.int64))
        rows = editor.insert_before(node, "Reshape", (heads, target), name=f"{node.name}_join").outputs[0]
        batch, sequence, count, width = heads.shape
        last = count * width if isinstance(count, int) and isinstance(width, int) else None
        rows.shape, rows.type = ir.Shape([batch, sequence, last]), heads.type
        node.replace_input_with(0, rows)
