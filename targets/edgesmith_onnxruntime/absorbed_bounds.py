"""Finds Relu and Clip nodes that codes make superfluous: saturation at the outermost codes does what they do."""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import constant_scalar, constant_value
from edgesmith_onnxruntime.pairs import only_quantize


def absorbing_quantize(output: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a value, if need be behind a Relu or Clip that changes no code."""
    quantize = only_quantize(output)
    uses = tuple(output.uses())
    if quantize is not None or len(uses) != 1 or output.is_graph_output():
        return quantize
    bounded = uses[0].node
    if bounded.domain != "" or bounded.op_type not in ("Relu", "Clip") or uses[0].idx != 0:
        return None
    quantize = only_quantize(bounded.outputs[0])
    return quantize if quantize is not None and _saturates_within(quantize, bounded) else None


def _saturates_within(quantize: ir.Node, bounded: ir.Node) -> bool:
    """Return whether the bounds have the outermost codes, so that saturation alone does what the node does."""
    scale, zero_point = constant_scalar(quantize.inputs[1]), constant_value(quantize.inputs[2])
    if scale is None or zero_point is None:
        return False
    ends = _bounds(bounded)
    if ends is None:
        return False
    limits = np.iinfo(zero_point.dtype)
    codes = np.rint(np.asarray(ends, np.float32) / np.float32(scale)) + float(zero_point.reshape(()))
    return bool(codes[0] <= limits.min and codes[1] >= limits.max)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            bound = constant_scalar(value)
            if bound is None:
                return None
            ends[index] = bound
    return ends[0], ends[1]
