"""What is known about channels that stand or fall together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Role = Literal["produces", "consumes", "passes"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One axis of one value on which a coupling's atoms live."""

    value: str
    """Name of the initializer, or of the activation."""
    axis: int
    role: Role
    """A weight axis that makes the channels, one that is summed over them, or one that channels only pass."""
    length: int
    """Length of the axis. On an axis of dynamic length it is the period with which the pattern repeats."""
    indices: tuple[tuple[int, ...], ...]
    """For each atom, its positions on the axis; empty where the atom does not come by."""
    reader: str | None = None
    """First output of the node that reads the initializer; None for an activation. One initializer may be read by
    several nodes, and each use is a slot of its own: removing channels for one reader leaves the others alone."""
    port: int = 0
    """Which input of the reader it is."""

    @property
    def site(self) -> str | tuple[str, int]:
        """What the axis belongs to: an activation by name, or one use of an initializer by reader and port."""
        return (self.reader, self.port) if self.reader else self.value

    def positions(self, atoms: Iterable[int]) -> list[int]:
        """Return the positions that these atoms occupy, in increasing order."""
        return sorted({position for atom in atoms for position in self.indices[atom]})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a coupling's atoms cannot be removed, or not without changing the result."""

    node: str
    """Name of the node, of the input or of the output concerned."""
    operator: str
    """Operator type; empty for an input or output of the graph."""
    reason: str
    kind: Literal["structure", "exactness"]
    """`structure`: no smaller graph exists. `exactness`: one exists, but what is left takes other values."""

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}" if self.operator else f"{self.node}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels of a graph that must be removed together, wherever they appear.

    A coupling holds `size` atoms. An atom is the least that can go: one channel with everything tied to it, an
    attention head, a group of query heads with the key and value heads they share, a group of a convolution.

    Removing an exact atom gives the outputs that the graph has when the atom's channels are zero wherever a weight,
    a product of two activations or a sum reads them.
    """

    size: int
    slots: tuple[Slot, ...]
    """Axes of initializers, in the order of the graph."""
    activations: tuple[Slot, ...]
    """Axes of the values between them, in the order of the graph."""
    obstacles: tuple[Obstacle, ...] = ()

    @property
    def places(self) -> tuple[Slot, ...]:
        """All slots, of initializers and of activations."""
        return self.slots + self.activations

    @property
    def removable(self) -> bool:
        """Whether atoms can be removed and the rest keeps its values."""
        return not self.obstacles

    @property
    def sliceable(self) -> bool:
        """Whether a smaller graph exists, though what is left may take other values (as behind a LayerNorm)."""
        return all(obstacle.kind == "exactness" for obstacle in self.obstacles)

    @property
    def reason(self) -> str:
        """Why atoms are not removable, naming the node; empty when they are."""
        structural = [obstacle for obstacle in self.obstacles if obstacle.kind == "structure"]
        return str((structural or list(self.obstacles))[0]) if self.obstacles else ""

    def with_role(self, role: Role) -> tuple[Slot, ...]:
        """Return the slots of initializers that have this role."""
        return tuple(slot for slot in self.slots if slot.role == role)


@dataclass(frozen=True, slots=True)
class Nesting:
    """Two couplings of which each outer atom may lose inner atoms of its own choice, equally many everywhere."""

    outer: Coupling
    """For example the heads of attention."""
    inner: Coupling
    """For example the channels within a head."""

    def cell(self, slot: Slot, outer_atom: int, inner_atom: int) -> list[int]:
        """Return the positions that one inner atom has within one outer atom, on an axis that carries both."""
        outer = next(each for each in self.outer.places if (each.site, each.axis) == (slot.site, slot.axis))
        return sorted(set(outer.indices[outer_atom]) & set(slot.indices[inner_atom]))
