"""Casts between float types inside a network split what the builder could fuse, and each moves a tensor."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST_SHARE = 0.1


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding where more than a tenth of the nodes change between float types, in TensorRT."""
    if not isinstance(dialect, TensorRTDialect):
        return
    casts = [
        name_of(node)
        for node in nodes_of(model.ir, "Cast")
        if node.inputs[0] is not None and node.inputs[0].dtype in _FLOATS and node.outputs[0].dtype in _FLOATS
    ]
    if len(casts) > _LARGEST_SHARE * len(model.graph):
        yield Finding(
            f"{len(casts)} of {len(model.graph)} nodes change between float types.",
            "See the remarks of the lowering for what stays in float32 and why.",
            tuple(casts),
        )
