"""The quantized form that TensorRT takes, derived from a device profile.

TensorRT quantizes symmetrically with zero point 0, wants Q/DQ on the inputs of a product and none on outputs that it
fuses, keeps biases in float, and takes INT4 only as weights (TensorRT developer guide, Explicit Quantization).
"""

from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith.profile import Profile

_BLOCK_SIZES = (16, 32, 64, 128)
_BLOCKED_OPSET = 21
"""First opset whose DequantizeLinear has blocks and 4-bit types."""


def dialect_of(profile: Profile) -> Dialect:
    """Return the dialect of TensorRT on the device of `profile`."""
    weight_only = [WeightFormat("int8", block_sizes=_BLOCK_SIZES, opset=_BLOCKED_OPSET)]
    if profile.has("int4-weights"):
        weight_only.append(WeightFormat("int4", block_sizes=_BLOCK_SIZES, opset=_BLOCKED_OPSET))
    if profile.has("float8"):
        weight_only.append(WeightFormat("float8e4m3fn"))
    return Dialect(
        name=profile.name,
        opset=profile.opset,
        activation=TensorFormat("int8", symmetric=True),
        weight=TensorFormat("int8", symmetric=True, granularity="channel"),
        operators=frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"}),
        attention_products=True,
        weight_only=tuple(weight_only),
        float8="hardware" if profile.has("float8") else "none",
        alignment={} if profile.alignment is None else profile.alignment.model_dump(exclude={"source"}),
        refusals={name.removesuffix("-weights"): reason for name, reason in profile.formats.absent.items()},
    )
