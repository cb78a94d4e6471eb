"""A bias must be float where the dialect says so: an int32 bias behind a DequantizeLinear is rejected by the parser."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import code_type, name_of, nodes_of


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for dequantized int32 tensors, where biases are float."""
    if dialect.bias != "float":
        return
    wrong = [name_of(node) for node in nodes_of(model.ir, "DequantizeLinear") if code_type(node) == ir.DataType.INT32]
    if wrong:
        yield Finding(
            "Biases are stored in int32, and the parser takes no DequantizeLinear of that type.",
            "Keep biases in float; with ONNX Runtime's tool that is QuantizeBias=False.",
            tuple(wrong),
        )
