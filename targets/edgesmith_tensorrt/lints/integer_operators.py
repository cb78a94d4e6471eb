"""Quantization must be written as pairs: operators on codes, and those of other domains, are unknown to the parser."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith.serialization import PROCESSOR_DOMAINS
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

OPERATORS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield findings for integer operators and for those of other domains than ONNX's own, in TensorRT."""
    if not isinstance(dialect, TensorRTDialect):
        return
    # Operators for one processor have a rule of their own, for all targets.
    known = PROCESSOR_DOMAINS | {""}
    foreign = [node for node in model.graph.all_nodes() if node.domain not in known]
    if foreign:
        domains = ", ".join(sorted({node.domain for node in foreign}))
        yield Finding(
            f"Operators of {domains} are unknown to the parser.",
            "Compile from the float model for this target, not from an artifact for ONNX Runtime.",
            tuple(map(name_of, foreign)),
        )
    wrong = [name_of(node) for node in nodes_of(model.ir, *OPERATORS)]
    if wrong:
        yield Finding(
            "Operators compute on codes directly, and the parser does not know them.",
            "Quantize the float model again with quantize-int8 for this target; it writes Q/DQ pairs.",
            tuple(wrong),
        )
