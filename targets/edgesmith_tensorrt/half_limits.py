"""Finds what float16 cannot hold in a graph by reading it: indices, large counts, constants, guards of divisions.

Float16 counts whole numbers up to 2048 only, and its normal numbers reach from 6.1e-5 to 65504.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.dataflow import ELEMENTWISE, MOVING
from edgesmith.graph.edit import constant_scalar, constant_tensor, constant_value
from edgesmith_tensorrt.half_precision import LARGEST, SMALLEST_NORMAL

STAND_IN = 1e30
"""Beyond this, a number stands for infinity, as in masks. Clipping it to the largest float16 changes nothing."""

_ROUNDING = frozenset(("Floor", "Ceil", "Round"))
_CARRYING = MOVING | {"Identity", "Cast", "CastLike", "Dropout"}
_TO_INDICES = ELEMENTWISE | _CARRYING | _ROUNDING | {"Mod", "Range", "CumSum"}
_WHOLE_STAYS_WHOLE = MOVING | frozenset(
    ("Identity", "Add", "Sub", "Mul", "Mod", "Neg", "Abs", "Max", "Min", "Where", "Range", "CumSum", "ReduceSum")
)
_FACTORS = {"Mul": (0, 1), "Div": (0, 1), "MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
"""Operator to the inputs that a result grows and shrinks with."""
_GUARDS = {"Add": (0, 1), "Max": (0, 1), "Clip": (1,)}
"""Operator to the inputs whose small constant keeps a result away from 0."""
_MOST_COUNTS = 65536
"""Larger constants are weights, and not looked through for whole numbers."""
_BEFORE_DIVISIONS = _CARRYING | {"Sqrt", "Mul", "Max", "Clip"}


def index_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the float32 nodes whose numbers become integers: a last digit decides which row a Gather reads."""
    found: set[ir.Node] = set()
    pending = [node.inputs[0] for node in graph if node.op_type == "Cast" and _is_integer(node.outputs[0])]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None and value.dtype == ir.DataType.FLOAT else None
        if node is not None and node.op_type in _TO_INDICES and node not in found:
            found.add(node)
            pending += node.inputs
    return found


def whole_values(graph: ir.Graph) -> set[ir.Value]:
    """Return the float32 values that hold whole numbers whatever the inputs of the graph are: counts and positions."""
    found: set[ir.Value] = set()

    def is_whole(value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        if tensor is None or tensor.size > _MOST_COUNTS:
            return value in found
        numbers = tensor.numpy()
        return bool(np.all(numbers == np.round(numbers)))

    for node in graph:
        floats = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        counted = node.op_type == "Cast" and _is_integer(node.inputs[0])
        stays = node.op_type in _WHOLE_STAYS_WHOLE and bool(floats) and all(map(is_whole, floats))
        if counted or stays or node.op_type in _ROUNDING:
            found |= {value for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    return found


def constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that multiply or divide by constants too large or too small for float16.

    Of constants that are added, only those too small that keep a divisor away from 0 matter; with them go the nodes up
    to the division. What is added or compared and too large shows in the values themselves.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if any(_is_small(array) or _is_large(array) for array in _constants(node, _FACTORS.get(node.op_type, ()))):
            found.add(node)
        if any(map(_is_small, _constants(node, _GUARDS.get(node.op_type, ())))):
            divisions = _up_to_divisions(node.outputs[0])
            found |= {node, *divisions} if divisions else set()
    return found


def _constants(node: ir.Node, indices: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    for index in indices:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.dtype == ir.DataType.FLOAT:
            constant = constant_value(value)
            if constant is not None and constant.size:
                yield constant


def _peak(array: NDArray[np.float32]) -> float:
    return max(float(array.max()), -float(array.min()))


def _is_large(array: NDArray[np.float32]) -> bool:
    return _peak(array) > LARGEST and bool(np.any((np.abs(array) > LARGEST) & (np.abs(array) < STAND_IN)))


def _is_small(array: NDArray[np.float32]) -> bool:
    """Return whether all numbers are small; beside larger ones, small ones in a weight change no sum."""
    return 0 < _peak(array) < SMALLEST_NORMAL


def _up_to_divisions(value: ir.Value) -> set[ir.Node]:
    """Return the nodes from a divisor to what it divides; empty where nothing is divided by it."""
    found: set[ir.Node] = set()
    for reader, index in value.uses():
        power = constant_scalar(reader.inputs[1]) if reader.op_type == "Pow" else None
        if reader.op_type == "Reciprocal" or (power is not None and power < 0):
            # One over a guard is as far beyond the range as the guard is below it.
            products = [use.node for use in reader.outputs[0].uses() if use.node.op_type == "Mul"]
            found |= {reader, *products}
        elif reader.op_type == "Log" or (reader.op_type == "Div" and index == 1):
            found.add(reader)
        elif reader.op_type in _BEFORE_DIVISIONS:
            divisions = _up_to_divisions(reader.outputs[0])
            found |= {reader, *divisions} if divisions else set()
    return found


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_integer()
