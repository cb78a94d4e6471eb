"""The quantized form that TensorRT takes, derived from a device profile.

TensorRT quantizes symmetrically with zero point 0, wants Q/DQ on the inputs of a product and none on outputs that it
fuses, keeps biases in float, and takes INT4 only as weights (TensorRT developer guide, Explicit Quantization). Its
parser takes the block size from the shapes of weight and scales, so a shorter last block would move all others.
"""

from dataclasses import dataclass, field

from edgesmith.errors import TargetError
from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith.profile import Profile

_BLOCK_SIZES = (16, 32, 64, 128)
_BLOCKED_OPSET = 21
"""First opset whose DequantizeLinear has blocks and 4-bit types."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A deep learning accelerator (DLA) that an engine is to be built for."""

    core: int
    layers: frozenset[str]
    """ONNX operators that it may run; `dla.py` knows the limits of each."""
    largest_batch: int
    largest_dimension: int
    loadables: int
    """Most parts of networks that one core holds."""


@dataclass(frozen=True, slots=True)
class TensorRTDialect(Dialect):
    """What the rules of this package ask beyond the form of pairs."""

    formats: frozenset[str] = field(default=frozenset())
    """Number formats that the device executes, by their names in profiles."""
    accelerator: Accelerator | None = None
    """The DLA to build for; None where the engine runs on the GPU."""


_CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
"""Of the GPUs that TensorRT 10 and 11 build for; source: CUDA GPU compute capability table."""


def dialect_of(profile: Profile) -> TensorRTDialect:
    """Return the dialect of TensorRT on the device of `profile`.

    Raises:
        TargetError: Its compute capability is none that TensorRT builds for.
    """
    capability = profile.device.compute_capability
    if capability is not None and capability not in _CAPABILITIES:
        raise TargetError(
            f"Profile {profile.name} has the compute capability {capability}, which no GPU for TensorRT has.",
            expected=f"one of {', '.join(_CAPABILITIES)}",
            why="Formats and engines depend on it.",
            fix="Ask nvidia-smi --query-gpu=compute_cap --format=csv on the device.",
        )
    weight_only = [WeightFormat("int8", block_sizes=_BLOCK_SIZES, opset=_BLOCKED_OPSET, whole_blocks=True)]
    if profile.has("int4-weights"):
        weight_only.append(WeightFormat("int4", block_sizes=_BLOCK_SIZES, opset=_BLOCKED_OPSET, whole_blocks=True))
    if profile.has("float8"):
        weight_only.append(WeightFormat("float8e4m3fn"))
    return TensorRTDialect(
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
        formats=frozenset(profile.formats.hardware),
        sparse_weights=_sparse_weights(profile),
        accelerator=_accelerator(profile),
    )


def _sparse_weights(profile: Profile) -> str:
    """Return the pattern of sparse tensor cores, which NVIDIA's GPUs have from Ampere (8.0) on."""
    capability = profile.device.compute_capability
    on_gpu = profile.dla is None or profile.dla.core is None
    return "2:4" if on_gpu and capability is not None and float(capability) >= 8 else ""


def _accelerator(profile: Profile) -> Accelerator | None:
    dla = profile.dla
    if dla is None or dla.core is None:
        return None
    return Accelerator(
        dla.core, frozenset(dla.layers), dla.largest_batch, dla.largest_dimension, dla.loadables_per_core
    )
