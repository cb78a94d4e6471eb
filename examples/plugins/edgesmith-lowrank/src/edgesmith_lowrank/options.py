"""What a recipe may set. The host makes command-line help, checks and the schema of recipes from it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith import Needs


class Options(BaseModel):
    """Options of factorise-low-rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_by: Literal["energy", "ratio"] = Field(
        default="energy",
        description="How ranks are chosen: the smallest that keeps `energy`, or the largest that costs `ratio`.",
    )
    energy: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Share of the energy of a layer's output to keep, on calibration data.",
        json_schema_extra={"searchable": [0.9, 0.95, 0.99, 0.999]},
    )
    ratio: float = Field(
        default=0.5, gt=0, lt=1, description="Share of a layer's multiply-accumulates that its two products may cost."
    )
    multiple: int = Field(default=8, ge=1, description="Ranks are rounded up to a multiple of this, for fast kernels.")
    whiten: bool = Field(
        default=True, description="Weigh directions by what inputs hold on calibration data; false takes plain SVD."
    )
    samples: int = Field(default=64, ge=1, description="Calibration samples to use at most.")
    statistics_mib: int = Field(
        default=512, ge=1, description="Memory for statistics; with less, the data is read several times."
    )
    skip: tuple[str, ...] = Field(default=(), description="Names of nodes to leave alone.")

    @property
    def needs(self) -> Needs:
        """What these very options need, which the host checks before it loads a model."""
        return Needs(data=self.whiten)
