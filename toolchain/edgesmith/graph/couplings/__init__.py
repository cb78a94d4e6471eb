"""Channel couplings: which channels of a graph must be removed together, and their removal."""

from edgesmith.graph.couplings.find import find_couplings
from edgesmith.graph.couplings.records import Coupling, Obstacle, Role, Slot
from edgesmith.graph.couplings.remove import remove_channels, remove_many

__all__ = ["Coupling", "Obstacle", "Role", "Slot", "find_couplings", "remove_channels", "remove_many"]
