"""Options of `analyse-units`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["heads", "channels", "convolution-channels"]


class AnalyseUnitsOptions(BaseModel):
    """Options of `analyse-units`. The attribute is named by `attribute` or by `attribute_labels`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Path | None = Field(
        default=None,
        description="File with samples of the attribute (.npz, .csv, .tsv, .jsonl or .txt), all of which are used. "
        "Calibration data without them is the utility.",
    )
    attribute_labels: tuple[int, ...] = Field(
        default=(), description="Classes whose calibration samples are the attribute; the others are the utility."
    )
    redundant_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the units' parameters that get the role redundant."
    )
    attribute_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of the units' parameters that get the role attribute."
    )
    utility_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the units' parameters that get the role utility."
    )
    protected_mixed_share: float = Field(
        default=0.06,
        ge=0,
        le=1,
        description="Share of the units' parameters that is protected besides the role attribute: the mixed units that "
        "matter most for it.",
    )
    kinds: tuple[Kind, ...] = Field(
        default=("heads", "channels"), min_length=1, description="What counts as a unit, as in prune-structure."
    )
    ablations: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Random groups to hold each role against: what removing it does to outputs, on a quarter of the "
        "samples that is then kept out of the statistics. 0: roles are not tested.",
    )
    samples: int = Field(default=128, ge=2, description="Largest number of samples of each of the two slices.")
    batch_size: int = Field(default=1, ge=1, description="Samples per run; a fixed batch stays.")
