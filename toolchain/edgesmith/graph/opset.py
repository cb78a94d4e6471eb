"""The opset of a graph: what is too new for a runtime, and how it is raised for forms that older ones cannot write."""

import onnx_ir as ir

from edgesmith.errors import ModelError

_NATIVE = 18
"""First opset that onnxscript's converter knows. Of older ones it would change the number and leave the operators."""
_IR_VERSIONS = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}
"""First IR version of files with that opset."""


def too_new(graph: ir.Graph, reader: str, newest: int) -> str:
    """Return why `reader` does not take the opset of a graph, and which one to export, or an empty string."""
    opset = graph.opset_imports.get("", 0)
    if opset <= newest:
        return ""
    return f"the graph uses opset {opset}; {reader} reads up to {newest}; export it with opset_version={newest}"


def raise_opset(model: ir.Model, version: int) -> None:
    """Raise the ONNX opset of a cloned model to `version` in place; newer ones stay as they are.

    Operators whose definition changed are rewritten by onnxscript's converter, before opset 18 by that of ONNX. That
    outputs stay the same is for the caller's checks to show.

    Raises:
        ModelError: An operator has no equal form in that opset, or the converter does not reach it.
    """
    from onnxscript import version_converter

    before = model.graph.opset_imports.get("", 0)
    if before >= version:
        return
    try:
        if before < _NATIVE:
            version_converter.convert_version(model, _NATIVE, fallback=True)
        if model.graph.opset_imports.get("", 0) >= _NATIVE:
            version_converter.convert_version(model, version)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise _cannot(before, version, " ".join(str(error).split())[:200]) from error
    reached = model.graph.opset_imports.get("", 0)
    if reached < version:
        raise _cannot(before, version, f"the converter stops at opset {reached}")
    model.ir_version = max(model.ir_version or 0, _IR_VERSIONS.get(version, 13))


def _cannot(before: int, version: int, reason: str) -> ModelError:
    return ModelError(
        f"the graph cannot be raised from opset {before} to {version}: {reason}",
        expected=f"a graph whose operators all have an equal form in opset {version}",
        why="the chosen number format can only be written from that opset on",
        fix="export the model with a newer opset, or choose a format with more bits",
    )
