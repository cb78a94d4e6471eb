"""The quantization family. Registers its methods; nothing heavy is imported until one of them is used."""

from collections.abc import Sequence

from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order

EDGESMITH_API = 1


_ORDER = Order(after=(Kind.PRUNE, Kind.FOLD, Kind.LOW_RANK))

METHODS = (
    MethodRecord(
        name="quantize-int8",
        version="0.2.0",
        summary="8-bit integers for MatMul, Gemm and Conv, static or dynamic, in the dialect of the target.",
        entry="edgesmith_quantization.quantize_int8:QuantizeInt8",
        kind=Kind.QUANTIZE,
        options="edgesmith_quantization.options.int8:QuantizeInt8Options",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("int8", "q/dq"),
        source="Jacob et al. 2018, arXiv 1712.05877, sections 2 and 3",
    ),
    MethodRecord(
        name="quantize-weights",
        version="0.2.0",
        summary="Weights in 8, 4 or 2 bits; a target may round inputs of products too, unless activations is float.",
        entry="edgesmith_quantization.quantize_weights:QuantizeWeights",
        kind=Kind.QUANTIZE,
        options="edgesmith_quantization.options.weights:QuantizeWeightsOptions",
        guarantee=Guarantee.LOSSY,
        order=_ORDER,
        tags=("int8", "int4", "int2", "weight-only"),
        source="Frantar et al. 2023, GPTQ, arXiv 2210.17323, section 3",
    ),
    MethodRecord(
        name="quantize-fp8",
        version="0.2.0",
        summary="8-bit floats for weights and inputs of products, attention's own included; or for weights alone.",
        entry="edgesmith_quantization.quantize_fp8:QuantizeFp8",
        kind=Kind.QUANTIZE,
        options="edgesmith_quantization.options.fp8:QuantizeFp8Options",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("fp8", "q/dq"),
        source="Li et al. 2023, arXiv 2312.05725; Micikevicius et al. 2022, arXiv 2209.05433",
    ),
    MethodRecord(
        name="quantize-auto",
        version="0.2.0",
        summary="Mixed precision: a format for each layer by measured sensitivity and speed, within a budget.",
        entry="edgesmith_quantization.quantize_auto:QuantizeAuto",
        kind=Kind.QUANTIZE,
        options="edgesmith_quantization.options.auto:QuantizeAutoOptions",
        guarantee=Guarantee.LOSSY,
        needs=Needs(data=True),
        order=_ORDER,
        tags=("mixed-precision", "q/dq"),
        # It searches within a time and selects by times, so another run may end elsewhere.
        deterministic=False,
        source="Own search over Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11",
    ),
    MethodRecord(
        name="quantize-split",
        version="0.2.0",
        summary="Weights as sums of parts of few bits, by clusters or digits, for hardware that fixes the bits.",
        entry="edgesmith_quantization.quantize_split:QuantizeSplit",
        kind=Kind.QUANTIZE,
        options="edgesmith_quantization.options.split:QuantizeSplitOptions",
        guarantee=Guarantee.LOSSY,
        order=_ORDER,
        tags=("int2", "int4", "weight-only", "q/dq"),
        source="Song and Lin 2025, SplitQuant, arXiv 2501.12428; SplitQuantV2, arXiv 2503.07657",
    ),
)


@hookimpl
def register_methods() -> Sequence[MethodRecord]:
    """Return the methods of this family."""
    return METHODS
