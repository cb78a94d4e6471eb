"""ONNX operators that the QNN provider lists as supported (documentation of onnxruntime-qnn 2.7, read 2026-11).

Erf is listed within a written-out Gelu, which is where networks have it.
"""

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
