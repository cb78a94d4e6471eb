"""ONNX operators that the QNN provider lists as supported (documentation of onnxruntime-qnn 2.7, read 2026-11).

Erf is listed within a written-out Gelu, which is where networks have it.
"""

import onnx_ir as ir

SUPPORTED = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "BatchNormalization", "Cast",
        "Ceil", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear",
        "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements",
        "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
        "GridSample", "GroupNormalization", "GRU", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "Inverse", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool",
        "MaxRoiPool", "Mean", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or",
        "PRelu", "Pad", "Pow", "QuantizeLinear", "RandomNormalLike", "RandomUniformLike", "Reciprocal",
        "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "Relu", "RMSNormalization", "Reshape", "Resize", "RoiAlign", "RotaryEmbedding", "Round", "STFT",
        "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax",
        "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh",
        "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip

DYNAMIC = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
"""Quantization with ranges computed at run time."""
INTEGER = frozenset({"QLinearConv", "QLinearMatMul"})
"""Quantized operators that must be pairs around float ones here."""


def obstacle(node: ir.Node) -> tuple[str, str] | None:
    """Return why nothing is compiled from a graph with such an operator, and what to do; None for other operators."""
    if node.op_type in DYNAMIC:
        return f"{node.op_type} computes ranges as it runs", "quantize with mode: static and calibration data"
    if node.op_type in INTEGER:
        return f"{node.op_type} is an operator on codes", f"write QuantizeLinear pairs around {node.op_type[7:]}"
    if node.domain == "com.microsoft":
        return f"{node.op_type} of ONNX Runtime's own kernels is unknown to QNN", "compile the source, not an artifact"
    return None
