"""Options of `static-attention`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.host.records import Needs

Choice = Literal["threshold", "first", "greedy"]
Form = Literal["best", "mean", "least-squares"]


class StaticAttentionOptions(BaseModel):
    """Options of `static-attention`. Blocks are counted from 0 through the whole graph, as `edgesmith inspect` does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choose: Choice = Field(
        default="threshold",
        description="Which blocks get a static map. threshold: those whose maps are most alike from sample to sample. "
        "first: the first ones. greedy: one after another, each time the one that moves the outputs least.",
        json_schema_extra={"searchable": ["threshold", "greedy"]},
    )
    count: int | None = Field(
        default=None,
        ge=0,
        description="Largest number of blocks with a static map. None: a third of all, rounded down, but at least one.",
    )
    threshold: float = Field(
        default=0.8,
        le=1,
        description="Least similarity, for threshold: 1 where all samples have the same map.",
        json_schema_extra={"searchable": [0.7, 0.8, 0.9]},
    )
    max_layer_error: float | None = Field(
        default=0.3,
        gt=0,
        description="threshold leaves a layer whose output its map would move further than this, relative to its size, "
        "on samples held out: attention near uniform is alike in all samples, and still no constant. None: no limit.",
    )
    max_error: float | None = Field(
        default=0.1,
        gt=0,
        description="greedy ends where the outputs would move further than this, relative to their size. None: where "
        "count is reached.",
    )
    blocks: tuple[int, ...] | None = Field(
        default=None, description="Give exactly these blocks a static map, by number, whatever choose says."
    )
    form: Form = Field(
        default="best",
        description="The map. mean: the mean of all maps, whose rows sum to 1. least-squares: that whose product with "
        "the values comes closest. best: in each block the one of lower error on samples held out.",
        json_schema_extra={"searchable": ["mean", "least-squares"]},
    )
    bias: bool = Field(
        default=False, description="Add the mean of what the map leaves, at the cost of one addition for each block."
    )
    ridge: float = Field(
        default=1e-3,
        gt=0,
        description="Ridge of least-squares, relative to the mean of the diagonal of the Gram matrix.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    verify_samples: int = Field(
        default=16, ge=1, description="Largest number of these samples that outputs are compared on."
    )
    batch_size: int = Field(default=4, ge=1, description="Samples per calibration run; a fixed batch stays.")
    epochs: float = Field(
        default=0.0,
        ge=0,
        description="Passes over the calibration data that train the maps, as softmax of logits, to give the features "
        "of the model before. 0: no training.",
    )
    minutes: float = Field(
        default=10.0, gt=0, description="Longest time of the training; it ends earlier with its epochs."
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="Highest learning rate of the logits.")
    guidance: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the divergence of the trained maps from the mean maps, in the loss of the training.",
    )
    labels_weight: float = Field(
        default=0.0, ge=0, description="Weight of the cross entropy of the labels in that loss, where there are labels."
    )
    held_out: float = Field(
        default=0.2, gt=0, le=0.5, description="Share of the samples that the training does not see, and decides by."
    )

    @property
    def needs(self) -> Needs:
        """What these very options need."""
        return Needs(data=self.blocks != () and self.count != 0, gradients=self.epochs > 0)
