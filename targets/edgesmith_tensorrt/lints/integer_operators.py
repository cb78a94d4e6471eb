"""Quantization must be written as pairs: operators that compute on codes are unknown to the parser."""

from collections.abc import Iterator

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

OPERATORS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for integer operators, where the dialect is symmetric and has no ranges at run time."""
    if dialect.dynamic or not dialect.activation.symmetric:
        return
    wrong = [name_of(node) for node in nodes_of(model.ir, *OPERATORS)]
    if wrong:
        yield Finding(
            "Operators compute on codes directly, and the parser does not know them.",
            "Quantize the float model again with quantize-int8 for this target; it writes Q/DQ pairs.",
            tuple(wrong),
        )
