"""What a mask hides, found by evaluating it: causal or not, and whether the data of an input decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.shapes import Array

# Scores are pushed below anything a softmax can see; exporters use -1e4, -1e9, the smallest float or -inf.
_HIDDEN = -1e3


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask on attention scores."""

    value: str | None
    """Value that masks, or None when there is none."""
    causal: bool | None
    """Whether each position sees only itself and earlier ones; None when the mask cannot be evaluated."""
    padding: bool
    """Whether the data of an input decides what is hidden."""


def read_mask(
    flow: Dataflow,
    operands: Sequence[tuple[ir.Node, ir.Value]],
    scores: ir.Value | None,
    masked: ir.Value | None,
) -> Mask:
    """Return what stands between scores and softmax as one mask.

    Inputs of the graph are taken as all ones, which hides no padding, so what is hidden then is hidden by position.

    Args:
        flow: The graph.
        operands: Nodes on the way from scores to softmax, each with the operand that is not the scores.
        scores: The product of queries and keys.
        masked: What enters the softmax.
    """
    found = [(node, value) for node, value in operands if _is_mask(flow, node, value)]
    if not found:
        return Mask(None, False, False)
    padding = any(flow.reads_input(value) for _, value in found)
    hidden = [_hidden(flow, node, value) for node, value in found]
    name = found[-1][1].name
    if any(each is None for each in hidden):
        return Mask(name, None, padding)
    causal = any(each is not None and _is_causal(each) for each in hidden)
    visible = all(each is not None and not each.any() for each in hidden)
    if visible and not padding:
        # A mask that hides nothing whatever the input is no mask.
        return Mask(None, False, False)
    return Mask(name, causal, padding)


def _is_mask(flow: Dataflow, node: ir.Node, value: ir.Value) -> bool:
    """Whether an operand can hide scores: what is added, or chooses; scales do not."""
    if node.op_type == "Where":
        return value is node.inputs[0]
    return node.op_type in ("Add", "Sub", "Min", "Attention", "MultiHeadAttention")


def _hidden(flow: Dataflow, node: ir.Node, value: ir.Value) -> Array | None:
    """Return which pairs of query and key a mask hides, with all inputs of the graph set to one."""
    given = {}
    for source in flow.model.graph.inputs:
        shape = flow.shapes.shape(source)
        if shape is not None and source.dtype is not None and source.dtype != ir.DataType.STRING:
            given[source] = np.ones(shape, source.dtype.numpy())
    array = flow.shapes.evaluate(value, given)
    if array is None:
        return None
    if array.dtype != np.bool_:
        return np.asarray(array > -_HIDDEN if node.op_type == "Sub" else array < _HIDDEN)
    if node.op_type != "Where":
        return ~array
    # The branch that holds a constant, very negative number is the hidden one.
    chosen = node.inputs[1]
    filled = None if chosen is None else flow.shapes.known(chosen)
    return array if filled is not None and filled.size and filled.max() < _HIDDEN else ~array


def _is_causal(hidden: Array) -> bool:
    """Whether all later positions are hidden and the own one is not; a window may hide distant earlier ones too.

    Where there are more keys than queries, the first query may stand at any place that leaves room for the others.
    """
    if hidden.ndim < 2 or hidden.shape[-1] < 2 or hidden.shape[-2] < 2:
        return False
    rows, columns = hidden.shape[-2:]
    distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    return any(
        bool(hidden[..., distance > offset].all()) and not bool(hidden[..., distance == offset].any())
        for offset in range(max(columns - rows, 0) + 1)
    )
