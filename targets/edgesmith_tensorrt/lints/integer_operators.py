"""Quantization must be written as pairs: operators on codes, and those of ONNX Runtime, are unknown to the parser."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

RUNTIME_DOMAIN = "com.microsoft"
"""Where ONNX Runtime keeps operators of its own."""
OPERATORS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield findings for integer operators and for those of ONNX Runtime, where only symmetric pairs are known."""
    if dialect.dynamic or not dialect.activation.symmetric:
        return
    foreign = [name_of(node) for node in model.graph.all_nodes() if node.domain == RUNTIME_DOMAIN]
    if foreign:
        yield Finding(
            "Operators of ONNX Runtime are unknown to the parser.",
            "Compile from the float model for this target, not from an artifact for ONNX Runtime.",
            tuple(foreign),
        )
    wrong = [name_of(node) for node in nodes_of(model.ir, *OPERATORS)]
    if wrong:
        yield Finding(
            "Operators compute on codes directly, and the parser does not know them.",
            "Quantize the float model again with quantize-int8 for this target; it writes Q/DQ pairs.",
            tuple(wrong),
        )
