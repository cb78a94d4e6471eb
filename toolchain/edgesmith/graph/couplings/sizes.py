"""Sizes of axes, static or dynamic, and the small integer tensors that shapes are computed with.

Exporters write `Reshape` targets as chains of Shape, Gather, Slice and Concat. Where such a chain ends in a static
number or in the size of a known axis, `Sizes` knows it, so a Reshape can be read although its value_info is empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import constant_tensor

Dim = int | str
"""A static length, or the identity of a dynamic one: equal strings are equal lengths at run time."""

SHAPE_PORTS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Which input of an operator is the shape of its result. It may hold lengths of channel axes: removal rewrites it."""

_UNKNOWN = "?"
_INVENTED = "unk__"
"""How ONNX Runtime's shape inference begins such names. A Slice to an end from run time gets them on every axis."""
_LIMIT = 65536
_CONVEYORS = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "ReduceProd", "Abs", "Neg"}


@dataclass(frozen=True, slots=True)
class Element:
    """One number of a shape tensor."""

    dim: Dim
    sources: frozenset[tuple[str, int]] = frozenset()
    """Axes (value name, axis) whose length it is, or is computed from."""
    computed: bool = False
    """Whether arithmetic made it, so that it is not simply the length of one axis."""


def constant_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return a small constant, or None. Weights are not read from disk for this."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > _LIMIT or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def constant_integers(value: ir.Value | None) -> list[int] | None:
    """Return a small constant of integers as a flat list, or None."""
    array = constant_array(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(number) for number in array.reshape(-1)]


def is_unknown(dim: Dim) -> bool:
    """Whether nothing is known of a length: it has no name, or one that shape inference made up for want of a rule."""
    return isinstance(dim, str) and dim.startswith((_UNKNOWN, _INVENTED))


class Sizes:
    """Axis lengths and shape tensors of one graph, filled node by node in the order of the graph."""

    def __init__(self) -> None:
        self._dims: dict[str, list[Dim]] = {}
        self._elements: dict[str, tuple[Element, ...]] = {}

    def dims(self, value: ir.Value) -> list[Dim] | None:
        """Return the lengths of a value's axes, or None when its rank is unknown. The list may be refined."""
        name = value.name or ""
        if name not in self._dims:
            if value.shape is None:
                return None
            self._dims[name] = [
                dim if isinstance(dim, int) else (dim.value or f"{_UNKNOWN}{name}.{index}")
                for index, dim in enumerate(value.shape.dims)
            ]
        return self._dims[name]

    def adopt(self, value: ir.Value, rank: int) -> None:
        """Note the rank of a value if nothing was known about it."""
        name = value.name or ""
        if self.dims(value) is None:
            self._dims[name] = [f"{_UNKNOWN}{name}.{index}" for index in range(rank)]

    def learn(self, value: ir.Value, index: int, dim: Dim) -> None:
        """Note the length of an axis if nothing was known about it."""
        dims = self.dims(value)
        if dims is not None and is_unknown(dims[index]):
            dims[index] = dim

    def elements(self, value: ir.Value | None) -> tuple[Element, ...] | None:
        """Return the numbers of a shape tensor of rank 0 or 1, or None when the value is not one."""
        if value is None:
            return None
        known = self._elements.get(value.name or "")
        if known is not None:
            return known
        numbers = constant_integers(value) if len(value.shape or ()) <= 1 else None
        return None if numbers is None else tuple(Element(number) for number in numbers)

    def follow(self, node: ir.Node) -> bool:
        """Track the shape tensor that a node computes; return whether it does so."""
        output = node.outputs[0]
        elements = self._compute(node) if node.domain in ("", "ai.onnx") else None
        if elements is None or output.name is None:
            return False
        self._elements[output.name] = elements
        return True

    def _compute(self, node: ir.Node) -> tuple[Element, ...] | None:
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type not in _CONVEYORS | _ARITHMETIC | {"Gather", "Slice", "Concat", "Where"}:
            return None
        if not self._is_shape_tensor(node.outputs[0]):
            return None
        if node.op_type == "Gather":
            return self._gather(node)
        if node.op_type == "Slice":
            return self._slice(node)
        if node.op_type == "Where":
            return self._where(node)
        if node.op_type == "Concat":
            return self._concat(node)
        inputs = [self.elements(value) for value in node.inputs if value is not None]
        if any(elements is None for elements in inputs):
            return None if node.op_type not in _CONVEYORS or not inputs or inputs[0] is None else inputs[0]
        known = [elements for elements in inputs if elements is not None]
        return known[0] if node.op_type in _CONVEYORS else self._mix(node, known)

    def _is_shape_tensor(self, value: ir.Value) -> bool:
        integer = value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
        return integer and value.shape is not None and len(value.shape) <= 1

    def _shape(self, node: ir.Node) -> tuple[Element, ...] | None:
        value = node.inputs[0]
        dims = None if value is None else self.dims(value)
        if value is None or dims is None:
            return None
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
        return tuple(
            Element(dims[axis], frozenset({(value.name or "", axis)})) for axis in range(len(dims))[slice(start, end)]
        )

    def _concat(self, node: ir.Node) -> tuple[Element, ...] | None:
        """Join shape tensors; what is not one keeps its places open."""
        joined: list[Element] = []
        for value in node.inputs:
            elements = self.elements(value)
            if elements is None:
                dims = None if value is None else self.dims(value)
                if value is None or dims is None or len(dims) != 1 or not isinstance(dims[0], int):
                    return None
                elements = tuple(Element(f"{_UNKNOWN}{value.name}.{i}", computed=True) for i in range(dims[0]))
            joined.extend(elements)
        return tuple(joined)

    def _gather(self, node: ir.Node) -> tuple[Element, ...] | None:
        elements, indices = self.elements(node.inputs[0]), constant_integers(node.inputs[1])
        if elements is None or indices is None or any(not -len(elements) <= i < len(elements) for i in indices):
            return None
        return tuple(elements[index] for index in indices)

    def _slice(self, node: ir.Node) -> tuple[Element, ...] | None:
        elements = self.elements(node.inputs[0])
        bounds = [constant_integers(value) for value in node.inputs[1:3]]
        steps = constant_integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
        if elements is None or steps is None or any(bound is None for bound in bounds):
            return None
        start, end = (bound[0] for bound in bounds if bound)
        return elements[slice(start, end, steps[0])]

    def _mix(self, node: ir.Node, inputs: Sequence[tuple[Element, ...]]) -> tuple[Element, ...] | None:
        length = 1 if node.op_type == "ReduceProd" else max(len(elements) for elements in inputs)
        name = node.outputs[0].name or ""
        sources: frozenset[tuple[str, int]] = frozenset().union(
            *(element.sources for elements in inputs for element in elements)
        )
        return tuple(Element(f"{_UNKNOWN}{name}.{index}", sources, computed=True) for index in range(length))

    def _where(self, node: ir.Node) -> tuple[Element, ...] | None:
        """Read Where(shape == -1, ones, shape), with which exporters write an expand to a shape."""
        chosen = self.elements(node.inputs[2])
        name = node.outputs[0].name or ""
        if chosen is None:
            return None
        return tuple(
            replace(element, dim=f"{_UNKNOWN}{name}.{index}", computed=True)
            if element.computed or element.dim == -1
            else element
            for index, element in enumerate(chosen)
        )


def regroup(source: Sequence[Dim], target: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the least groups of axes, as (source axes, target axes), that a reshape maps onto each other.

    Axes of length one are left out. A group is certain when both sides are static or are one equal axis; groups with
    a dynamic axis beside others hold everything between two certain ones.
    """
    left = [axis for axis, dim in enumerate(source) if dim != 1]
    right = [axis for axis, dim in enumerate(target) if dim != 1]
    head = _certain(source, target, left, right)
    taken = [sum(len(group[side]) for group in head) for side in (0, 1)]
    left, right = left[taken[0] :], right[taken[1] :]
    tail = [(group[0][::-1], group[1][::-1]) for group in reversed(_certain(source, target, left[::-1], right[::-1]))]
    taken = [sum(len(group[side]) for group in tail) for side in (0, 1)]
    left, right = left[: len(left) - taken[0]], right[: len(right) - taken[1]]
    yield from head
    if left or right:
        yield left, right
    yield from tail


def _certain(
    source: Sequence[Dim], target: Sequence[Dim], left: list[int], right: list[int]
) -> list[tuple[list[int], list[int]]]:
    """Return the groups that follow from one end on, up to the first dynamic axis that has no equal partner."""
    groups = []
    first = second = 0
    while first < len(left) and second < len(right):
        if source[left[first]] == target[right[second]]:
            group = ([left[first]], [right[second]])
        else:
            group = _static_group(source, target, left[first:], right[second:])
            if not group[0]:
                break
        groups.append(group)
        first, second = first + len(group[0]), second + len(group[1])
    return groups


def _static_group(
    source: Sequence[Dim], target: Sequence[Dim], left: list[int], right: list[int]
) -> tuple[list[int], list[int]]:
    taken: tuple[list[int], list[int]] = ([], [])
    products = [1, 1]
    while not taken[0] or products[0] != products[1]:
        side = 0 if products[0] <= products[1] else 1
        pool, dims = ((left, source), (right, target))[side]
        if len(taken[side]) == len(pool):
            return [], []
        axis = pool[len(taken[side])]
        dim = dims[axis]
        if not isinstance(dim, int):
            return [], []
        taken[side].append(axis)
        products[side] *= dim
    return taken
