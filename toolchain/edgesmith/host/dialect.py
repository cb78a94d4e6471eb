"""The quantized form that a target accepts. A method decides numerics; the dialect decides how they are written."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """How one kind of tensor is stored when quantized."""

    dtype: Literal["int8", "uint8", "int16", "uint16"]
    symmetric: bool
    """Symmetric means zero point 0 for signed types; asymmetric uses the whole range with a zero point."""
    granularity: Literal["tensor", "channel"] = "tensor"


@dataclass(frozen=True, slots=True)
class Dialect:
    """The Q/DQ form of a target (DESIGN, section 5)."""

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
