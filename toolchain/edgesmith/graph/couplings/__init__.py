"""Channel couplings: which channels of a graph must be removed together, and their removal."""

from edgesmith.graph.couplings.find import find_couplings
from edgesmith.graph.couplings.nesting import find_nestings
from edgesmith.graph.couplings.records import Coupling, Nesting, Obstacle, Role, Slot
from edgesmith.graph.couplings.remove import remove_channels, remove_many, remove_within

__all__ = [
    "Coupling",
    "Nesting",
    "Obstacle",
    "Role",
    "Slot",
    "find_couplings",
    "find_nestings",
    "remove_channels",
    "remove_many",
    "remove_within",
]
