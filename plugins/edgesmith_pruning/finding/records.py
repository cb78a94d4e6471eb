"""What can be removed: units of atoms, with the layers that make their channels and the layers that sum over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgesmith.graph.couplings import Coupling, Nesting, Role

Kind = Literal["heads", "query-heads", "value-channels", "channels", "convolution-channels"]


@dataclass(frozen=True, slots=True)
class Place:
    """One weight axis that a unit's atoms lie on."""

    reader: str
    """First output of the node that reads the weight."""
    port: int
    """Which input of that node it is."""
    operator: str
    weight: str
    """Name of the initializer."""
    axis: int
    length: int
    positions: tuple[tuple[int, ...], ...]
    """For each atom its positions on the axis; empty where the atom does not come by."""
    role: Role
    """What the axis does to the channels."""


@dataclass(frozen=True, slots=True)
class Consumer(Place):
    """A layer that sums over the unit's channels (second level): MatMul, Gemm or Conv."""

    source: str = ""
    """The activation that is multiplied with the weight."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One removable coupling or nesting, as the pipeline sees it.

    Atoms are numbered from 0 to `size` - 1. They stand in `groups` of equal size, one behind the other, and each
    group loses equally many: one group for a coupling, one for each outer atom (head) of a nesting.
    """

    name: str
    """Node that sums over the channels first; options select units by it."""
    kind: Kind
    size: int
    groups: int
    producers: tuple[Place, ...]
    """Weights that make the channels (first level), biases and scales that they pass included."""
    consumers: tuple[Consumer, ...]
    coupling: Coupling
    """The coupling; for a nesting the inner one."""
    nesting: Nesting | None = None

    @property
    def key(self) -> str:
        """A name that no other unit of the graph has."""
        # The groups of a convolution and the channels within them have one name and one kind; so have the halves of a
        # concatenation, which lie elsewhere in the layer that sums them.
        first = next((position for atom in self.consumers[0].positions for position in atom), 0)
        return f"{self.name} {self.size} {self.kind} from {first}"

    @property
    def group_size(self) -> int:
        """Number of atoms in each group."""
        return self.size // self.groups

    def choices(self, removed: Sequence[int]) -> list[list[int]]:
        """Return removed atoms group by group, numbered within the group, as `remove_within` takes them."""
        choices: list[list[int]] = [[] for _ in range(self.groups)]
        for atom in removed:
            choices[atom // self.group_size].append(atom % self.group_size)
        return choices
