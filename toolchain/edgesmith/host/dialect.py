"""The quantized form that a target accepts. A method decides numerics; the dialect decides how they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ACTIVATIONS_KEY = "edgesmith.activations"
"""Metadata of a product whose weight is dequantized. The value "int8" lets a target round its input to 8 bits, row by
row as it runs, where its kernels for such weights are faster so. Without it a target computes on the input as it is."""
MINIMUM_SQNR_KEY = "edgesmith.minimum_sqnr_db"
"""Metadata beside `ACTIVATIONS_KEY`: the signal-to-noise ratio (dB) that the output of the product has to keep on
calibration data when its input is rounded. A target that measures less leaves the input as it is."""


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """How one kind of tensor is stored when quantized."""

    dtype: Literal["int8", "uint8", "int16", "uint16"]
    symmetric: bool
    """Symmetric means zero point 0 for signed types; asymmetric uses the whole range with a zero point."""
    granularity: Literal["tensor", "channel"] = "tensor"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.dtype.removeprefix("u").removeprefix("int"))


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way to store a weight that is dequantized before it is used (weight-only quantization)."""

    dtype: Literal["int8", "uint8", "int4", "uint4", "int2", "uint2", "float8e4m3fn"]
    symmetric: bool = True
    """Whether zero points must be 0. A target that takes zero points takes symmetric weights too."""
    block_sizes: tuple[int, ...] = ()
    """Sizes that blocks along the summed dimension may have; empty where only whole channels share a scale."""
    opset: int = 20
    """First ONNX opset that can write it."""
    offsets: bool = False
    """Whether blocks may have an offset in float that is added after they are dequantized."""
    whole_blocks: bool = False
    """Whether the last block of a row must be as long as the others, so that a block size divides the row."""

    def fitting_block(self, length: int, wanted: int) -> int | None:
        """Return the largest block size up to `wanted` that rows of `length` may have; None where none fits."""
        if not self.whole_blocks:
            return wanted
        return max((size for size in self.block_sizes if size <= wanted and length % size == 0), default=None)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The Q/DQ form of a target: which formats, layers and number types a quantized graph may have there."""

    name: str
    opset: int
    """Highest ONNX opset that the runtime reads."""
    activation: TensorFormat
    weight: TensorFormat
    operators: frozenset[str]
    """Operator types whose inputs the runtime executes in integers."""
    bias: Literal["float", "int32"] = "float"
    """Form of the bias of a quantized Conv or Gemm. An int32 bias has the scale of input times weight."""
    dynamic: bool = False
    """Whether ranges computed at run time (DynamicQuantizeLinear) are fast on this runtime."""
    quantize_outputs: frozenset[str] = frozenset()
    """Members of `operators` that run in integers only if their output is quantized too (behind Relu or Clip)."""
    carried: frozenset[str] = frozenset()
    """Operator types between quantized operators that run in integers once all their inputs and outputs are
    quantized, such as Add in residual connections of convolutional networks."""
    attention_products: bool = False
    """Whether products of two activations, as in attention, run in integers."""
    weight_only: tuple[WeightFormat, ...] = ()
    """Formats of weights that are stored small and dequantized before a product in float."""
    float8: Literal["none", "simulated", "hardware"] = "none"
    """Whether float8 Q/DQ pairs load (simulated: rounded, then computed in float) or run on float8 hardware."""
    fixed_shapes: bool = False
    """Whether the runtime takes no graph with open dimensions, so that a run fixes them before its first step."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Format name, such as "int2", to the reason the runtime takes none of it and what would work instead."""

    alignment: Mapping[str, int] = field(default_factory=dict)
    """Precision, such as "float16", to the multiple that channels must be of for the fast kernels."""

    sparse_weights: str = ""
    """Pattern N:M of zeros that the runtime has kernels for; empty where zeros cost what other numbers cost."""

    wide_activation: TensorFormat | None = None
    """Form of activations in 16 bits, where the runtime multiplies those by weights of 8 bits in integers. None where
    it does not; `refusals` may say under "int16" why."""

    def weight_format(self, dtype: str) -> WeightFormat | None:
        """Return the weight-only format of that type, or None where the runtime has none."""
        return next((each for each in self.weight_only if each.dtype == dtype), None)
