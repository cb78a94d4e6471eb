"""What each operator does to channels. One function per kind of operator; this table says which rule is whose."""

from collections.abc import Callable

from edgesmith.graph.couplings.emitter import Emitter
from edgesmith.graph.couplings.rules import attention, elementwise, layout, linear, quantization, statistics

Rule = Callable[[Emitter], None]

RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BROADCASTING, elementwise.broadcasting),
    **dict.fromkeys(statistics.POOLS, statistics.pooling),
    **dict.fromkeys(statistics.SOFTMAXES, statistics.softmax),
    **dict.fromkeys(statistics.SUMS + statistics.OTHER_REDUCTIONS, statistics.reduction),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), statistics.selection),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), statistics.layer_normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantization.scaling),
    "Attention": attention.attention,
    "BatchNormalization": statistics.batch_normalization,
    "Concat": layout.concat,
    "ConstantOfShape": layout.constant_of_shape,
    "Conv": linear.convolution,
    "ConvTranspose": linear.transposed_convolution,
    "CumSum": statistics.running_sum,
    "DepthToSpace": layout.depth_to_space,
    "Einsum": linear.einsum,
    "Expand": layout.expand,
    "Flatten": layout.flatten,
    "Gather": layout.gather,
    "Gemm": linear.gemm,
    "GroupNormalization": statistics.group_normalization,
    "InstanceNormalization": statistics.instance_normalization,
    "LRN": statistics.local_response,
    "LpNormalization": statistics.norm_division,
    "MatMul": linear.matmul,
    "MeanVarianceNormalization": statistics.mean_variance_normalization,
    "Pad": layout.pad,
    "Reshape": layout.reshape,
    "Resize": layout.resize,
    "Slice": layout.slice_,
    "SpaceToDepth": layout.space_to_depth,
    "Split": layout.split,
    "Squeeze": layout.squeeze,
    "Tile": layout.tile,
    "Transpose": layout.transpose,
    "Unsqueeze": layout.unsqueeze,
}
"""Rules for operators of the ONNX domain. Any other operator holds all channels that touch it."""
