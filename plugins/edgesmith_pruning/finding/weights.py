"""Weights of consumers as matrices [inputs, outputs], in whatever layout their operator keeps them."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith_pruning.finding.records import Consumer, Place

Array = NDArray[np.floating]


def weight_array(graph: ir.Graph, place: Place) -> Array:
    """Return the array of a place's initializer.

    Raises:
        ModelError: The graph has no such initializer.
    """
    value = graph.initializers.get(place.weight)
    if value is None or value.const_value is None:
        raise ModelError(
            f"the graph has no weight {place.weight}",
            expected="the graph that the units were found in",
            why="what is removed is chosen by the weights that read it",
            fix="find the units again on this graph",
        )
    return value.const_value.numpy()


def as_matrix(array: Array, consumer: Consumer) -> Array:
    """Return a weight as [inputs, outputs]; the places of a kernel stand within each input channel.

    Args:
        array: MatMul [inputs, outputs]; Gemm the same or transposed; Conv [outputs, inputs, *kernel].
        consumer: The layer; its axis is that of the inputs.
    """
    outputs = _output_axis(consumer)
    moved = np.moveaxis(array, (consumer.axis, outputs), (0, -1))
    return moved.reshape(-1, moved.shape[-1])


def from_matrix(matrix: Array, consumer: Consumer, shape: tuple[int, ...]) -> Array:
    """Return a matrix [inputs, outputs] in the layout of a weight of that shape; undoes `as_matrix`."""
    outputs = _output_axis(consumer)
    moved = np.moveaxis(np.empty(shape, np.bool_), (consumer.axis, outputs), (0, -1)).shape
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), (0, -1), (consumer.axis, outputs)))


def rows_of(consumer: Consumer, inputs: int, groups: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return for each atom its rows in a matrix with that many inputs.

    Args:
        consumer: The layer.
        inputs: Rows of the matrix.
        groups: Groups of a convolution; an atom lies in each at the same positions (see `beside_each_other`).
    """
    places = inputs // (consumer.length * groups)
    starts = [group * consumer.length for group in range(groups)]
    return tuple(
        tuple((start + p) * places + k for start in starts for p in positions for k in range(places))
        for positions in consumer.positions
    )


def beside_each_other(matrix: Array, groups: int) -> Array:
    """Return the matrix of a grouped convolution over all its inputs: each output reads its own group, and 0 elsewhere.

    Args:
        matrix: [inputs per group, outputs], outputs group by group.
        groups: Number of groups.
    """
    inputs, outputs = matrix.shape
    spread = np.zeros((groups, inputs, outputs), matrix.dtype)
    width = outputs // groups
    for group in range(groups):
        own = slice(group * width, (group + 1) * width)
        spread[group, :, own] = matrix[:, own]
    return spread.reshape(groups * inputs, outputs)


def _output_axis(consumer: Consumer) -> int:
    return 0 if consumer.axis == 1 else 1
