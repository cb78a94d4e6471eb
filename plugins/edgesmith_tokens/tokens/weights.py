"""Attention that weighs its keys already: logarithms of sizes are added to its scores, as an earlier step left them.

softmax(q k^T / sqrt(d) + b) with one number b for each key counts that key exp(b) times. So two keys that are alike are
one whose exp(b) is the sum of both, and merging goes on from these sizes.
"""

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.shapes import Array


def weighing(flow: Dataflow, softmax: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the Add in front of a softmax that weighs its keys, and the number of its input that does.

    Returns:
        None where nothing is added, or it is not [batch, 1, 1, keys], or may hide keys as a padding mask does.
    """
    node = None if softmax.inputs[0] is None else softmax.inputs[0].producer()
    if node is None or node.op_type != "Add":
        return None
    keys = (flow.shapes.shape(softmax.inputs[0]) or (0,))[-1]
    for index, value in enumerate(node.inputs):
        shape = flow.shapes.shape(value) or ()
        if value is None or len(shape) != 4 or shape[1:] != (1, 1, keys) or keys < 2:
            continue
        known = _constant(flow, value)
        if sizes_behind(value) is not None or (known is not None and np.isfinite(known).all()):
            return node, index
    return None


def sizes_behind(logarithm: ir.Value) -> ir.Value | None:
    """Return the sizes [batch, tokens, 1] that `sizes.logarithms` made these logarithms of, or None."""
    reshape = logarithm.producer()
    log = None if reshape is None or reshape.op_type != "Reshape" else _producer(reshape)
    return log.inputs[0] if log is not None and log.op_type == "Log" else None


def constant_sizes(flow: Dataflow, logarithm: ir.Value) -> Array | None:
    """Return the sizes [1, tokens, 1] of logarithms that are the same for each image, or None."""
    known = _constant(flow, logarithm)
    return None if known is None else np.exp(known.astype(np.float64)).astype(np.float32).reshape(1, -1, 1)


def _constant(flow: Dataflow, value: ir.Value) -> Array | None:
    known = flow.shapes.evaluate(value, {})
    return known if known is not None and len(known) == 1 else None


def _producer(node: ir.Node) -> ir.Node | None:
    return None if node.inputs[0] is None else node.inputs[0].producer()
