"""What the analysis found, as it is written beside the model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

UNITS_ASSET = "units.json"
"""Name of the file among the assets of a model."""

Role = Literal["attribute", "utility", "mixed", "redundant"]
"""In the paper: exclusive safety unit, exclusive utility unit, complex unit, redundant unit."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnitGroup(_Record):
    """The units of one layer, in the order of their atoms."""

    layer: str
    """Node that sums over them."""
    kind: str
    roles: tuple[Role, ...]
    attribute: tuple[float, ...]
    """Standardized importance on the attribute."""
    utility: tuple[float, ...]
    """Standardized importance on the utility."""
    parameters: tuple[int, ...]
    """What each costs, in the layers that make and read it."""


class Effect(_Record):
    """What removing one group of units does to the outputs, and what removing random groups of that form does.

    Numbers are squared differences from the dense outputs over the squared dense outputs.
    """

    role: Role
    units: int
    attribute: float
    utility: float
    random_attribute: tuple[float, ...]
    random_utility: tuple[float, ...]

    @property
    def counts(self) -> bool:
        """Whether the role does what its name says, beyond everything that random groups do."""
        match self.role:
            case "attribute":
                return self.attribute > max(self.random_attribute)
            case "utility":
                return self.utility > max(self.random_utility)
            case _:
                return self.attribute < min(self.random_attribute) and self.utility < min(self.random_utility)


class UnitRoles(_Record):
    """The role of every unit of a model."""

    format: Literal["edgesmith-units-1"] = "edgesmith-units-1"
    model: str
    """Digest of the model that was analysed (`Model.digest`)."""
    data: str
    """The two slices, for people."""
    shares: dict[Role, float]
    """Share of the units' parameters that each role got."""
    groups: tuple[UnitGroup, ...]
    ablations: tuple[Effect, ...] = ()
