"""Output shapes of ONNX Runtime's own operators, for which the `onnx` package has no inference."""

from collections.abc import Sequence

import onnx_ir as ir

Shape = tuple[int, ...]

_LIKE_FIRST = frozenset(
    {
        "BiasGelu", "DynamicQuantizeLinear", "FastGelu", "GatedRelativePositionBias", "Gelu", "MultiHeadAttention",
        "QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax",
        "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


def runtime_shape(node: ir.Node, shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape of a node's first output, or None when this operator is not known here.

    Args:
        node: A node of an ONNX Runtime domain, or a fused operator that it adds to ONNX's own domain.
        shapes: The shapes of the node's inputs.
    """
    first = shapes[0] if shapes else None
    if first is None:
        return None
    if node.op_type in ("FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "FusedGemm"):
        second = shapes[3 if node.op_type == "QGemm" else 1]
        return None if second is None else _product(node, first, second)
    if node.op_type == "MatMulNBits":
        return (*first[:-1], node.attributes["N"].as_int())
    if node.op_type == "GatherBlockQuantized" and len(shapes) > 1 and shapes[1] is not None:
        packed = 2 if "bits" not in node.attributes or node.attributes["bits"].as_int() == 4 else 1
        stored_packed = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8
        return (*shapes[1], first[-1] * (packed if stored_packed else 1))
    if node.op_type == "GroupQueryAttention":
        return _grouped(node, first, shapes[1] if len(shapes) > 1 else None)
    if node.op_type == "Attention" and node.domain == "com.microsoft" and shapes[1] is not None:
        return (*first[:-1], shapes[1][1] // 3)
    return first if node.op_type in _LIKE_FIRST else None


def _product(node: ir.Node, first: Shape, second: Shape) -> Shape:
    rows = first[-1 if _flag(node, "transA") else -2]
    columns = second[-2 if _flag(node, "transB") else -1]
    batches = first[:-2] if len(first) >= len(second) else second[:-2]
    return (*batches, rows, columns)


def _grouped(node: ir.Node, query: Shape, keys: Shape | None) -> Shape:
    if keys is not None:
        return query
    heads, groups = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    return (*query[:-1], query[-1] * heads // (heads + 2 * groups))


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1
