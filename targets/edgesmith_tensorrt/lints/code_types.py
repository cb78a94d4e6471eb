"""Codes must be of a type that the device has: no uint8, no 2 bits, float8 from compute capability 8.9 on."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import PAIRS, code_type, name_of, nodes_of


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for each type of codes that the dialect has neither for activations nor for weights."""
    known: set[str] = {dialect.activation.dtype, dialect.weight.dtype, *(form.dtype for form in dialect.weight_only)}
    if dialect.wide_activation is not None:
        known.add(dialect.wide_activation.dtype)
    if dialect.bias == "int32":
        known.add("int32")
    if dialect.float8 != "none":
        known |= {"float8e4m3fn"} | ({"float8e5m2"} if dialect.float8 == "simulated" else set())
    wrong: dict[ir.DataType, list[str]] = {}
    for node in nodes_of(model.ir, *PAIRS):
        dtype = code_type(node)
        if dtype is not None and dtype.name.lower() not in known and dtype != ir.DataType.INT32:
            wrong.setdefault(dtype, []).append(name_of(node))
    for dtype, nodes in sorted(wrong.items()):
        name = dtype.name.lower()
        reason = dialect.refusals.get(name.removesuffix("e4m3fn").removesuffix("e5m2"), "the runtime has no kernels")
        yield Finding(f"Codes are {name}: {reason}.", f"Use one of {', '.join(sorted(known))}.", tuple(nodes))
