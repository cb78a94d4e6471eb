"""Attention that weighs its keys already: logarithms of sizes are added to its scores, as an earlier step left them.

softmax(q k^T / sqrt(d) + b) with one number b for each key counts that key exp(b) times. So two keys that are alike are
one whose exp(b) is the sum of both, and merging goes on from these sizes.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow, data_inputs
from edgesmith.graph.shapes import Array

SIZES = 0.5, 1e6
"""Bounds of constants that are taken for sizes. Below it stands what hides keys, such as exp(-1e4)."""


def weight_of_keys(flow: Dataflow, softmax: ir.Node, patches: Collection[ir.Node]) -> ir.Value | None:
    """Return the logarithms of sizes that are added in front of a softmax.

    Args:
        flow: The graph.
        softmax: Its input is [batch, heads, queries, keys].
        patches: What makes the first tokens of the pixels.

    Returns:
        None where nothing is added, or it is not [batch, 1, 1, keys], or may hide keys as a padding mask does.
    """
    node = None if softmax.inputs[0] is None else softmax.inputs[0].producer()
    if node is None or node.op_type != "Add":
        return None
    keys = (flow.shapes.shape(softmax.inputs[0]) or (0,))[-1]
    for value in node.inputs:
        shape = flow.shapes.shape(value) or ()
        if value is None or len(shape) != 4 or shape[1:] != (1, 1, keys) or keys < 2:
            continue
        known = _constant(flow, value)
        if _sizes_of_images(flow, value, patches) if known is None else _sizes_in(known):
            return value
    return None


def _sizes_in(logarithms: Array) -> bool:
    low, high = np.log(SIZES)
    return bool(((logarithms >= low) & (logarithms <= high)).all())


def _sizes_of_images(flow: Dataflow, logarithm: ir.Value, patches: Collection[ir.Node]) -> bool:
    """Whether these are logarithms of [batch, tokens, 1] that were computed from patches; an input may be a mask."""
    sizes = sizes_behind(logarithm)
    shape, full = flow.shapes.shape(sizes) or (), flow.shapes.shape(logarithm) or ()
    if sizes is None or shape != (full[0], full[3], 1):
        return False
    made = flow.ancestors(sizes, stop=patches.__contains__)
    read = {value for node in made.difference(patches) for value in data_inputs(node)}
    return not made.isdisjoint(patches) and read.isdisjoint(flow.model.graph.inputs)


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
