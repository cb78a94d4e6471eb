"""Outputs of a graph."""

import onnx_ir as ir


def float_outputs(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of outputs that can be compared by their distance; class numbers, for instance, cannot."""
    return tuple(each.name or "" for each in graph.outputs if each.dtype is not None and each.dtype.is_floating_point())
