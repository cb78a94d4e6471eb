"""Pairs that follow each other without a node between them round twice, and pairs that nobody fuses only cost."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

_TRANSPARENT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Concat", "Slice", "Split")
"""Pairs move across these, so that what follows decides."""

_ON_CODES = "an operator on codes"


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield findings for doubled pairs, and for pairs none of whose readers run quantized, in TensorRT."""
    # Elsewhere a second pair may be how codes change their scale, and every operator may compute on codes.
    if not isinstance(dialect, TensorRTDialect):
        return
    doubled, idle = [], []
    executed = dialect.operators | dialect.carried | {"Add", _ON_CODES}
    for node in nodes_of(model.ir, "QuantizeLinear"):
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        codes = source.inputs[0] if source is not None and source.op_type == "DequantizeLinear" else None
        if codes is not None and codes.producer() is not None:
            doubled.append(name_of(node))
        readers = set(_readers(node.outputs[0]))
        if readers and not readers & executed:
            idle.append(name_of(node))
    if doubled:
        yield Finding(
            "Values are quantized twice in a row.",
            "Remove the second pair, or give both one scale.",
            tuple(doubled),
        )
    if idle:
        yield Finding(
            "Values are quantized for readers that compute in float, which costs two reformats and gains nothing.",
            "Leave these out of the quantizing step.",
            tuple(idle),
        )


def _readers(codes: ir.Value) -> Iterator[str]:
    """Yield the operator types that read what `codes` stand for, and `_ON_CODES` for those that read codes."""
    pending, seen, floats = [codes], {codes}, set[ir.Value]()
    while pending:
        value = pending.pop()
        for node, _ in value.uses():
            dequantizes = node.op_type == "DequantizeLinear"
            if dequantizes or (node.op_type in _TRANSPARENT and node.domain == ""):
                new = [output for output in node.outputs if output not in seen]
                pending.extend(new)
                seen.update(new)
                floats.update(new if dequantizes or value in floats else ())
            else:
                yield node.op_type if value in floats else _ON_CODES
