"""Which weights of a graph are zero in groups, such as 2 of 4, so that a runtime can take its sparse kernels."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.convolution import find_convolutions
from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.linear import find_linears

_TRIED = 1 << 16
"""Entries that are looked at first: dense weights show themselves there."""


def is_group_sparse(array: NDArray[Any], axis: int, kept: int, group: int) -> bool:
    """Return whether at most `kept` of each `group` consecutive entries along an axis are not zero.

    False where the axis is no whole number of groups.
    """
    if array.shape[axis] % group:
        return False
    rows = np.moveaxis(array, axis, -1).reshape(-1, group)
    return all(bool((np.count_nonzero(part, axis=1) <= kept).all()) for part in (rows[:_TRIED], rows[_TRIED:]))


def group_sparse_weights(model: ir.Model, kept: int, group: int) -> tuple[str, ...]:
    """Return the names of the weights of products and convolutions that are sparse so along their inputs.

    Weights may be floats or codes whose zeros stand for 0; codes with zero points do not count.

    Args:
        model: The graph.
        kept: Most entries of a group that are not zero.
        group: Consecutive inputs that make a group.
    """
    flow = Dataflow(model)
    axes = {linear.weight: 1 - linear.weight_axis for linear in find_linears(flow) if linear.weight_axis is not None}
    axes |= {each.weight: 1 for each in find_convolutions(flow) if not each.transposed}
    found = []
    for name, axis in axes.items():
        value = model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or len(tensor.shape) < 2:
            continue
        if is_group_sparse(tensor.numpy(), axis, kept, group):
            found.append(name)
    return tuple(found)
