"""Values must have types that the device computes with. Codes of quantized values have a rule of their own."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import PAIRS, name_of

_FORMATS: Mapping[ir.DataType, str] = {
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E4M3FN: "float8",
    ir.DataType.FLOAT4E2M1: "float4",
}
_NEVER = (
    ir.DataType.DOUBLE,
    ir.DataType.INT16,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.STRING,
    ir.DataType.COMPLEX64,
    ir.DataType.COMPLEX128,
    ir.DataType.FLOAT8E5M2,
)
"""Types that no version of TensorRT has."""


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for each type of inputs and other values that the device or TensorRT lacks."""
    if not isinstance(dialect, TensorRTDialect):
        return
    wrong: dict[ir.DataType, list[str]] = {}
    written = [(name_of(node), node.outputs) for node in model.graph.all_nodes() if node.op_type not in PAIRS]
    for name, values in [*((str(value.name), (value,)) for value in model.graph.inputs), *written]:
        for dtype in {value.dtype for value in values if value.dtype is not None}:
            if dtype in _NEVER or _FORMATS.get(dtype, "float32") not in dialect.formats:
                wrong.setdefault(dtype, []).append(name)
    for dtype, nodes in sorted(wrong.items()):
        reason = "TensorRT has no such type" if dtype in _NEVER else dialect.refusals.get(_FORMATS[dtype], "")
        if dtype == ir.DataType.DOUBLE:
            # Its parser takes the type and says nothing.
            reason = "TensorRT computes them in float32"
        yield Finding(
            f"Values are {dtype.name.lower()}: {reason or 'the device does not compute in it'}.",
            "Export the model in float32 or float16, with int32 or int64 for indices.",
            tuple(nodes),
        )
