"""Options of `share-blocks`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgesmith.host.records import Needs


class ShareBlocksOptions(BaseModel):
    """Options of `share-blocks`. Blocks are counted from 0 through the whole graph, as `edgesmith inspect` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group_size: int = Field(
        default=2,
        ge=1,
        description="Neighbouring blocks that share one set of weights. 1 shares nothing.",
        json_schema_extra={"searchable": [2, 3]},
    )
    grouping: Literal["neighbours", "loss"] = Field(
        default="neighbours",
        description="Which blocks share. neighbours: every group_size blocks in turn. loss: as many sets of weights, "
        "cut where the loss rises least, in groups of up to group_size + 1 blocks.",
        json_schema_extra={"searchable": ["neighbours", "loss"]},
    )
    groups: tuple[tuple[int, ...], ...] | None = Field(
        default=None, description="Share exactly within these groups of blocks, by number, in place of group_size."
    )
    keep_first: int = Field(default=2, ge=0, description="Blocks at the start of each stream that stay private.")
    keep_last: int = Field(default=2, ge=0, description="Blocks at the end of each stream that stay private.")
    weights: Literal["weighted", "mean", "first"] = Field(
        default="weighted",
        description="What a group uses. weighted: the least squared error over what each block's layers read on "
        "calibration data. mean: the mean of the blocks. first: the weights of its first block.",
        json_schema_extra={"searchable": ["weighted", "mean", "first"]},
    )
    correction_rank: int = Field(
        default=0,
        ge=0,
        description="Rank of a private correction beside each shared matrix, of what sharing took away: for weighted "
        "weights that of the least squared error on calibration data, else that of the largest singular values. "
        "0: none. It costs two thin products for each; biases stay private then.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    score_samples: int = Field(
        default=4, ge=1, description="Largest number of these samples that losses are measured on, for groups by loss."
    )
    score_tokens: int | None = Field(
        default=128, ge=1, description="Tokens of each of these samples whose loss counts, evenly spaced. None: all."
    )
    batch_size: int = Field(default=1, ge=1, description="Samples per calibration run; a fixed batch stays.")

    @model_validator(mode="after")
    def _apart(self) -> "ShareBlocksOptions":
        named = [number for group in self.groups or () for number in group]
        if len(named) != len(set(named)):
            raise ValueError("groups must not name a block twice")
        return self

    @property
    def needs(self) -> Needs:
        """What these options need: weighted weights and losses look at data."""
        return Needs(data=self.shares and (self.weights == "weighted" or self.measures))

    @property
    def measures(self) -> bool:
        """Whether groups are chosen by losses."""
        return self.grouping == "loss" and self.groups is None

    @property
    def shares(self) -> bool:
        """Whether any group has two blocks or more."""
        return self.group_size > 1 if self.groups is None else any(len(group) > 1 for group in self.groups)
