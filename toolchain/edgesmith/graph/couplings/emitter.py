"""What an operator rule writes to: ports with axes, and statements about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.couplings.records import Obstacle, Role
from edgesmith.graph.couplings.relations import Axis, Positions, Product, Relations, Same, Site
from edgesmith.graph.couplings.sizes import Dim, Sizes, is_unknown


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a node, with known rank."""

    value: ir.Value
    site: Site
    dims: list[Dim]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.dims)

    def axis(self, index: int) -> Axis:
        """Return an axis; negative numbers count from the end."""
        return Axis(self.site, index % self.rank)

    def axes(self) -> Iterator[Axis]:
        """Return all axes in order."""
        return (Axis(self.site, index) for index in range(self.rank))

    def static(self, index: int) -> int | None:
        """Return the length of an axis, or None when it is dynamic."""
        dim = self.dims[index]
        return dim if isinstance(dim, int) else None


class UnknownRankError(Exception):
    """A rule needs the rank of a value that no shape inference could tell."""


def site_of(node: ir.Node, index: int, value: ir.Value) -> Site:
    """Return how the axes of a node's input are named: an initializer has axes of its own at each reader."""
    is_weight = value.producer() is None and value.const_value is not None
    return (node.outputs[0].name or "", index) if is_weight else (value.name or "")


def describe(node: ir.Node) -> str:
    """Return a name for a node, for messages."""
    return node.name or f"the node that makes {node.outputs[0].name}"


class Emitter:
    """Statements of one node's rule about its axes."""

    def __init__(self, node: ir.Node, sizes: Sizes, relations: Relations) -> None:
        self.node = node
        self.sizes = sizes
        self.relations = relations
        self._helpers = 0

    # -- ports ---------------------------------------------------------------------------------------------------

    def input(self, index: int) -> Port:
        """Return an input that must be there."""
        value = self.node.inputs[index]
        if value is None:
            raise UnknownRankError
        return self._port(value, site_of(self.node, index, value))

    def optional(self, index: int) -> Port | None:
        """Return an input, or None when it was left out."""
        present = index < len(self.node.inputs) and self.node.inputs[index] is not None
        return self.input(index) if present else None

    def inputs(self) -> list[Port]:
        """Return all inputs that are there."""
        return [self.input(index) for index, value in enumerate(self.node.inputs) if value is not None]

    def output(self, index: int = 0, *, rank: int | None = None) -> Port:
        """Return an output, with the rank that follows from the inputs should no inference have told it."""
        value = self.node.outputs[index]
        if rank is not None:
            self.sizes.adopt(value, rank)
        return self._port(value, value.name or "")

    def _port(self, value: ir.Value, site: Site) -> Port:
        dims = self.sizes.dims(value)
        if dims is None:
            raise UnknownRankError
        port = Port(value, site, dims)
        for index, axis in enumerate(port.axes()):
            self.relations.mention(axis, port.static(index))
        return port

    # -- statements ----------------------------------------------------------------------------------------------

    def same(self, source: Port, source_axis: int, target: Port, target_axis: int) -> None:
        """State that two axes carry the same channels in the same order."""
        source_axis, target_axis = source_axis % source.rank, target_axis % target.rank
        first, second = source.dims[source_axis], target.dims[target_axis]
        if is_unknown(second) and not is_unknown(first):
            self.sizes.learn(target.value, target_axis, first)
            target = self._port(target.value, target.site)
            second = first
        if 1 in (first, second):
            return
        axes = source.axis(source_axis), target.axis(target_axis)
        if isinstance(first, int) != isinstance(second, int) or (isinstance(first, int) and first != second):
            for axis in axes:
                self.fix(axis, "meets an axis of another or of unknown length")
            return
        self.relations.add(Same(*axes))

    def some(self, first: Axis, first_positions: Positions, second: Axis, second_positions: Positions) -> None:
        """State that listed positions of two axes are the same channels, pair by pair."""
        lengths = self.relations.lengths
        for axis, other, positions in ((first, second, second_positions), (second, first, first_positions)):
            if axis not in lengths and len(positions):
                # An axis of length one carries no labels, so the channel on it must stay where it comes from.
                self.fix(other, "is the only channel of a part", [int(position) for position in positions])
        if first in lengths and second in lengths:
            self.relations.add(Same(first, second, first_positions, second_positions))

    def product(self, whole: Axis, parts: Sequence[Axis]) -> None:
        """State that an axis is the row-major product of others. A dynamic whole repeats with their product."""
        lengths = self.relations.lengths
        parts = [part for part in parts if lengths.get(part, 1) > 1]
        period = int(np.prod([lengths[part] for part in parts], dtype=np.int64))
        if not parts:
            return
        if lengths.setdefault(whole, period) != period:
            for axis in (whole, *parts):
                self.fix(axis, "is regrouped in two ways that do not fit")
        elif len(parts) == 1:
            self.relations.add(Same(whole, parts[0]))
        else:
            self.relations.add(Product(whole, tuple(parts)))

    def helper(self, length: int) -> Axis:
        """Return an axis that exists only between two statements of this node."""
        self._helpers += 1
        axis = Axis(self.node.outputs[0].name or "", -self._helpers)
        self.relations.mention(axis, length)
        return axis

    def fix(self, axis: Axis, reason: str, positions: Sequence[int] | None = None) -> None:
        """State that channels on an axis (or at some positions of it) cannot be removed at all."""
        self.relations.obstruct(axis, self._obstacle(reason, structural=True), positions)

    def inexact(self, axis: Axis, reason: str) -> None:
        """State that removing channels on an axis is possible but changes what is left."""
        self.relations.obstruct(axis, self._obstacle(reason, structural=False))

    def role(self, axis: Axis, role: Role) -> None:
        """State what an axis does to channels, should it belong to a weight."""
        self.relations.roles.setdefault(axis, set()).add(role)

    def fix_all(self, reason: str) -> None:
        """State that nothing at this node can be removed."""
        values = [(site_of(self.node, i, value), value) for i, value in enumerate(self.node.inputs) if value]
        values += [(value.name or "", value) for value in self.node.outputs if value.name]
        for site, value in values:
            for index in range(len(self.sizes.dims(value) or ())):
                self.fix(Axis(site, index), reason)

    def _obstacle(self, reason: str, *, structural: bool) -> Obstacle:
        return Obstacle(describe(self.node), self.node.op_type, reason, "structure" if structural else "exactness")
