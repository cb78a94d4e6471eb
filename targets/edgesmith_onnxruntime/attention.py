"""Fuses attention into ONNX Runtime's MultiHeadAttention with the rules that onnxscript keeps."""

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

_INTERMEDIATE_DOMAIN = "ai.onnxruntime._fusion"


def fuse_attention(model: ir.Model) -> tuple[ir.Model, int]:
    """Return a model with its attention fused, and how many were; `model` itself is left as it is when none is.

    Query, key and value projections stay separate products, so that quantized ones keep their integer form.
    """
    from onnxscript import optimizer
    from onnxscript.rewriter.ort_fusions import mha, mha_scale, sdpa, shape_optimization

    fused = model.clone()
    common_passes.ShapeInferencePass()(fused)
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
