"""Relations between axes: the language in which operator rules say how channels travel.

A rule is written once per operator and knows nothing of channels that are searched for. It states that positions on
two axes are the same channel (`Same`), that one axis is the row-major product of others (`Product`), or that an axis
stands in the way of removal (`Obstacle`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesmith.graph.couplings.records import Obstacle, Role

Positions = NDArray[np.int64]

Site = str | tuple[str, int]
"""An activation by its name, or one use of an initializer: the reader's first output and the input's number."""


class Axis(NamedTuple):
    """One axis of one site. A negative number is a helper axis that exists only between two relations."""

    site: Site
    number: int


@dataclass(frozen=True, slots=True)
class Same:
    """Position `first_positions[i]` of one axis and `second_positions[i]` of the other are one channel.

    None stands for all positions in order.
    """

    first: Axis
    second: Axis
    first_positions: Positions | None = None
    second_positions: Positions | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes concerned."""
        return (self.first, self.second)


@dataclass(frozen=True, slots=True)
class Product:
    """One axis is the row-major product of others, as in a Reshape from [heads * width] to [heads, width]."""

    whole: Axis
    parts: tuple[Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes concerned."""
        return (self.whole, *self.parts)


Relation = Same | Product


class PlacedObstacle(NamedTuple):
    """An obstacle for the channels at some positions of an axis; None means all."""

    obstacle: Obstacle
    positions: Positions | None


@dataclass(slots=True)
class Relations:
    """Everything that the rules have said about one graph."""

    places: dict[Axis, int] = field(default_factory=dict)
    """Rank of each axis in the order in which the graph mentions them."""
    lengths: dict[Axis, int] = field(default_factory=dict)
    """Length of each static axis, or period of a dynamic one whose period is known. Lengths of one are left out."""
    obstacles: dict[Axis, list[PlacedObstacle]] = field(default_factory=dict)
    roles: dict[Axis, set[Role]] = field(default_factory=dict)
    touching: dict[Axis, list[Relation]] = field(default_factory=dict)

    def mention(self, axis: Axis, length: int | None) -> None:
        """Give an axis its place in the order, and its length if it is static."""
        self.places.setdefault(axis, len(self.places))
        if length is not None and length > 1:
            self.lengths.setdefault(axis, length)

    def add(self, relation: Relation) -> None:
        """Record a relation under each of its axes."""
        for axis in relation.axes:
            self.touching.setdefault(axis, []).append(relation)

    def obstruct(self, axis: Axis, obstacle: Obstacle, positions: Sequence[int] | NDArray[Any] | None = None) -> None:
        """Record an obstacle on an axis."""
        where = None if positions is None else np.asarray(positions, np.int64)
        self.obstacles.setdefault(axis, []).append(PlacedObstacle(obstacle, where))

    def role(self, axis: Axis) -> Role:
        """Return what an axis of a weight does to the channels; making them outweighs summing over them."""
        roles = self.roles.get(axis, set())
        return "produces" if "produces" in roles else "consumes" if "consumes" in roles else "passes"
