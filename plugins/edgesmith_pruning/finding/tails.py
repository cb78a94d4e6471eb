"""What follows a layer up to the sum with the residual stream: a bias, scales, batch normalization.

All of that is one scale and one shift for each output, so a refit can aim at the sum itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import constant_value
from edgesmith_pruning.finding.records import Consumer

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tail:
    """`end = scale * (x W) + shift`, and `sum = end + other` where a residual stream follows."""

    end: str
    """Value behind bias, scales and normalization; the layer's own output where nothing follows."""
    scale: Float64
    """[outputs]."""
    shift: Float64
    """[outputs]; the bias, scaled, is in it."""
    bias: str | None
    """Initializer that holds the bias and nothing else, unscaled; None where there is none of its own."""
    total: str | None = None
    """The value that a residual sum makes."""
    other: str | None = None
    """What it adds to `end`."""


def find_tail(nodes: Mapping[str | None, ir.Node], consumer: Consumer) -> Tail:
    """Return what follows a consumer.

    Args:
        nodes: Nodes by their first output.
        consumer: The layer.
    """
    node = nodes[consumer.reader]
    weight = node.inputs[consumer.port]
    array = constant_value(weight)
    outputs = 0 if array is None else array.shape[1 - consumer.axis]
    walk = _Walk(node, outputs, channel_axis=1 if consumer.operator == "Conv" else -1)
    return walk.tail()


def has_plain_bias(node: ir.Node, outputs: int) -> bool:
    """Return whether what a layer itself adds, if anything, is one constant number or one for each output."""
    own = _own_bias(node)
    array = constant_value(own)
    return own is None or (array is not None and (array.size == 1 or array.shape[-1] == array.size == outputs))


def _own_bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None


class _Walk:
    """Goes from a layer to what reads it, as long as nothing else does."""

    def __init__(self, node: ir.Node, outputs: int, channel_axis: int) -> None:
        self._value = node.outputs[0]
        self._axis = channel_axis
        self._scale, self._shift = np.ones(outputs), np.zeros(outputs)
        self._bias: str | None = None
        own = _own_bias(node)
        if own is not None and has_plain_bias(node, outputs):
            self._add(own, constant_value(own))

    def tail(self) -> Tail:
        """Return where the way ends and what happens on it."""
        while (node := self._only_reader()) is not None:
            if not self._fold(node):
                break
            self._value = node.outputs[0]
        total, other = self._sum()
        name = str(self._value.name)
        return Tail(name, self._scale, self._shift, self._bias, total, other)

    def _only_reader(self) -> ir.Node | None:
        uses = tuple(self._value.uses())
        return uses[0].node if len(uses) == 1 and not self._value.is_graph_output() else None

    def _fold(self, node: ir.Node) -> bool:
        """Take a node into scale and shift; return whether it is of that kind."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "BatchNormalization" and self._axis == 1 and node.inputs[0] is self._value:
            return self._normalize(node)
        if node.op_type not in ("Add", "Mul"):
            return False
        operand = next((each for each in node.inputs if each is not self._value), None)
        numbers = None if operand is None else self._vector(operand)
        if numbers is None or operand is None:
            return False
        if node.op_type == "Add":
            self._add(operand, numbers)
        else:
            self._scale, self._shift = self._scale * numbers, self._shift * numbers
        return True

    def _add(self, operand: ir.Value, numbers: NDArray[np.floating] | None) -> None:
        if numbers is None:
            return
        self._shift = self._shift + numbers.reshape(-1)
        if self._bias is None and (self._scale == 1).all() and _is_own(operand, len(self._scale)):
            self._bias = operand.name

    def _normalize(self, node: ir.Node) -> bool:
        parts = [constant_value(value) for value in node.inputs[1:5]]
        if any(part is None for part in parts):
            return False
        gain, shift, mean, variance = (np.asarray(part, np.float64) for part in parts)
        factor = gain / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        self._scale, self._shift = self._scale * factor, (self._shift - mean) * factor + shift
        return True

    def _vector(self, operand: ir.Value) -> Float64 | None:
        """Return a constant as one number for each output, or None where it is something else."""
        array = constant_value(operand)
        rank = len(self._value.shape or ())
        if array is None or array.dtype.kind != "f" or array.ndim > rank:
            return None
        if array.size == 1:
            return np.full(len(self._scale), float(array.reshape(())))
        place = self._axis % rank - (rank - array.ndim)
        if place < 0 or array.size != len(self._scale) or array.shape[place] != array.size:
            return None
        return array.reshape(-1).astype(np.float64)

    def _sum(self) -> tuple[str | None, str | None]:
        """Return the residual sum that follows and what it adds, if both have one form."""
        node = self._only_reader()
        if node is None or node.op_type != "Add":
            return None, None
        other = next((each for each in node.inputs if each is not self._value), None)
        if other is None or constant_value(other) is not None or not _same_shape(other, self._value):
            return None, None
        return node.outputs[0].name, other.name


def _is_own(value: ir.Value, outputs: int) -> bool:
    """Whether a value is an initializer of the right length that one node reads alone."""
    tensor = value.const_value if value.is_initializer() else None
    return (
        tensor is not None and tensor.size == outputs and len(tuple(value.uses())) == 1 and not value.is_graph_output()
    )


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(a == b for a, b in zip(first.shape, second.shape, strict=True))
