"""Options of `aggregate-tokens`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgesmith.host.records import Needs

Form = Literal["pool", "cluster", "attention-guided", "learned", "pca", "random"]
Share = Annotated[float, Field(gt=0, le=1)]
Side = Annotated[int, Field(gt=0)]


class AggregateTokensOptions(BaseModel):
    """Options of `aggregate-tokens`. Blocks are counted from 0 through the whole graph, as `edgesmith inspect` does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    form: Form = Field(
        default="attention-guided",
        description="How patch tokens become fewer. pool: means of neighbours on the grid of patches. cluster: means "
        "of places that are alike on calibration data. attention-guided: means of tokens that are alike in an "
        "image. learned: means weighted by trained layers. For comparison, pca: leading eigenvectors of "
        "E[X X^T], and random: means of places drawn by chance.",
        json_schema_extra={"searchable": ["pool", "cluster", "attention-guided"]},
    )
    at: tuple[int, ...] | None = Field(
        default=None,
        description="Blocks before which tokens are aggregated. None: at one third and two thirds of the depth.",
    )
    keep: Share | tuple[Share, ...] = Field(
        default=0.5,
        description="Share of the patch tokens that stay at each place: one number, or one for each place.",
        json_schema_extra={"searchable": [0.5, 0.7]},
    )
    protected: int | None = Field(
        default=None,
        ge=0,
        description="Number of tokens in front that stay as they are. None: those that are no patches, such as a class "
        "token.",
    )
    grid: tuple[Side, Side] | None = Field(
        default=None,
        description="Rows and columns of the patches, for pool. None: read from the patch embedding, or square.",
    )
    proportional: bool | None = Field(
        default=None,
        description="Add the logarithm of how many patches a token stands for to later attention scores. None: on, "
        "except for learned and pca.",
    )
    metric: Literal["input", "keys"] = Field(
        default="input",
        description="What tokens are compared by, for attention-guided. input: the stream before the block. keys: the "
        "keys of the block before, where it has some.",
    )
    rounds: int = Field(
        default=3,
        ge=0,
        le=10,
        description="For attention-guided: rounds of soft k-means on the tokens of each image, which start from cells "
        "of the grid. 0: centroids are the same for all images, from calibration data.",
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="For attention-guided: tokens go to groups by a softmax of squared distances to centroids over "
        "twice this number. None: from how far tokens are apart.",
    )
    epochs: float = Field(default=3.0, gt=0, description="Passes over the calibration data, for learned.")
    minutes: float = Field(
        default=10.0, gt=0, description="Longest time of the training, for learned; it ends earlier with its epochs."
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="Highest learning rate, for learned.")
    held_out: float = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="Share of the calibration data that learned does not train on, and decides by.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    batch_size: int = Field(default=8, ge=1, description="Samples per calibration run; a fixed batch stays.")

    @model_validator(mode="after")
    def _fits(self) -> "AggregateTokensOptions":
        if self.at is not None and len(set(self.at)) != len(self.at):
            raise ValueError("at must not name a block twice")
        if isinstance(self.keep, tuple) and len(self.keep) != (2 if self.at is None else len(self.at)):
            raise ValueError("keep must be one number, or one for each place in at")
        if self.proportional and self.form in ("learned", "pca"):
            raise ValueError(f"{self.form} gives tokens no sizes, so proportional must not be on")
        return self

    @property
    def sized(self) -> bool:
        """Whether sizes of tokens count in later attention."""
        return self.form not in ("learned", "pca") if self.proportional is None else self.proportional

    @property
    def needs(self) -> Needs:
        """What these very options need: groups of the grid, of an image and of chance need no data."""
        reads = self.form in ("cluster", "learned", "pca") or (self.form == "attention-guided" and not self.rounds)
        return Needs(data=reads, gradients=self.form == "learned")
