"""What a recipe may set."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith import Needs


class Options(BaseModel):
    """Options of gate-channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["masked", "gathered", "static"] = Field(
        default="masked",
        description="masked: all filters run, and those not chosen are set to zero; saves no time. gathered: as many "
        "filters as `share` or `mass` asks for on average, chosen for each image (all images of a batch together). "
        "static: filters that few images need go for good.",
    )
    choose: Literal["mass", "share"] = Field(
        default="mass", description="Filters wanted for an image: the strongest that hold `mass`, or a fixed `share`."
    )
    mass: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of the sum of all filters' strongest responses that the chosen ones hold at most.",
        json_schema_extra={"searchable": [0.8, 0.9, 0.95]},
    )
    share: float = Field(default=0.5, gt=0, le=1, description="With `choose: share`: share of the filters to choose.")
    needed_by: float = Field(
        default=0.1, ge=0, le=1, description="static: filters stay that at least this share of the images needs."
    )
    multiple: int = Field(
        default=16,
        ge=1,
        description="gathered and static: how many filters run is rounded up to a multiple of this, for fast kernels.",
    )
    pool: Literal["max", "average"] = Field(
        default="max", description="What the predictor sees of each input channel. Paper: max; its code: average."
    )
    softmax: bool = Field(default=True, description="Put a softmax over the channels before the predictor.")
    steps: int = Field(default=200, ge=1, description="Steps of gradient descent for each predictor.")
    samples: int = Field(default=256, ge=4, description="Calibration samples to use at most.")
    skip: tuple[str, ...] = Field(default=(), description="Names of nodes whose inputs are left alone.")

    @property
    def needs(self) -> Needs:
        """Which filters images need is seen on images."""
        return Needs(data=True)
