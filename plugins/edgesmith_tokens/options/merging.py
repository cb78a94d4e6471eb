"""Options of `merge-tokens`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.host.records import Needs

Schedule = Literal["constant", "decreasing"]
Form = Literal["one-hot", "scatter"]


class MergeTokensOptions(BaseModel):
    """Options of `merge-tokens`. Blocks are counted from 0 along the stream of the vision transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the tokens that are gone behind the last block, taken in equal parts by all blocks.",
        json_schema_extra={"searchable": [0.3, 0.5, 0.7]},
    )
    r: int | None = Field(default=None, ge=0, description="Tokens that each block merges, in place of ratio.")
    schedule: Schedule = Field(
        default="constant",
        description="How r goes along the blocks. constant: the same in each. decreasing: from 2 r to 0.",
    )
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="Tokens that each block merges, in place of ratio and r, from the first block on; further ones: 0.",
    )
    speedup: float | None = Field(
        default=None,
        gt=1,
        description="Merge until the model runs so many times as fast on the runner of the run, in place of ratio and "
        "r. Where to merge is chosen by the error of the outputs on calibration data per time saved.",
    )
    protected: int | None = Field(
        default=None,
        ge=0,
        description="Tokens in front that are never merged. None: those that are no patches, such as a class token.",
    )
    proportional: bool = Field(
        default=True,
        description="Whether attention weighs merged tokens by how many they stand for. Off for networks that were "
        "trained to reconstruct hidden patches and not adapted since.",
    )
    metric: Literal["keys", "input"] = Field(
        default="keys",
        description="What tokens are compared by. keys: the mean of their keys over heads. input: the stream before "
        "the block.",
    )
    score: Literal["similarity", "random"] = Field(
        default="similarity",
        description="Which tokens are merged. similarity: those that are most alike. random: pairs drawn once, as a "
        "baseline.",
    )
    form: Form = Field(
        default="one-hot",
        description="How merged tokens are added up. one-hot: a product with a matrix of zeros and ones, which every "
        "runtime takes. scatter: ScatterElements that adds, which TensorRT does not take.",
    )
    samples: int = Field(
        default=16, ge=1, description="Largest number of calibration samples that speedup measures on."
    )
    batch_size: int = Field(default=4, ge=1, description="Samples per calibration run; a fixed batch stays.")

    @property
    def needs(self) -> Needs:
        """What these options need: speedup compares outputs on calibration data."""
        return Needs(data=self.speedup is not None)
