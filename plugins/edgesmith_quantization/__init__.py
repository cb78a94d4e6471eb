"""The quantization family. Registers its methods; nothing heavy is imported until one of them is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Order

EDGESMITH_API = 1


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return (
        MethodRecord(
            name="quantize-int8",
            version="0.1.0",
            summary="8-bit integers for MatMul, Gemm and Conv, static or dynamic, in the dialect of the target.",
            entry="edgesmith_quantization.quantize_int8:QuantizeInt8",
            kind=Kind.QUANTIZE,
            options="edgesmith_quantization.options.int8:QuantizeInt8Options",
            guarantee=Guarantee.LOSSY,
            order=Order(after=(Kind.PRUNE, Kind.FOLD, Kind.LOW_RANK)),
            tags=("int8", "q/dq"),
            source="Jacob et al. 2018, arXiv 1712.05877, sections 2 and 3",
        ),
        MethodRecord(
            name="quantize-fp8",
            version="0.1.0",
            summary="8-bit floats for weights and inputs of products, attention's own included; or for weights alone.",
            entry="edgesmith_quantization.quantize_fp8:QuantizeFp8",
            kind=Kind.QUANTIZE,
            options="edgesmith_quantization.options.fp8:QuantizeFp8Options",
            guarantee=Guarantee.LOSSY,
            order=Order(after=(Kind.PRUNE, Kind.FOLD, Kind.LOW_RANK)),
            tags=("fp8", "q/dq"),
            source="Li et al. 2023, arXiv 2312.05725; Micikevicius et al. 2022, arXiv 2209.05433",
        ),
    )
