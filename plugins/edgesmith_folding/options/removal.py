"""Options of `remove-blocks`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.host.records import Needs

Score = Literal["sleb", "perplexity", "block-influence", "angular", "taylor", "gates", "random"]
Compensation = Literal["auto", "folded", "product", "none"]


class RemoveBlocksOptions(BaseModel):
    """Options of `remove-blocks`. Blocks are counted from 0 through the whole graph, as `edgesmith inspect` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of all blocks to remove, rounded down, but at least one block.",
        json_schema_extra={"searchable": [0.1, 0.2, 0.3]},
    )
    count: int | None = Field(default=None, ge=0, description="Number of blocks to remove, in place of ratio.")
    blocks: tuple[int, ...] | None = Field(
        default=None, description="Remove exactly these blocks, by number, whatever they are worth."
    )
    score: Score = Field(
        default="angular",
        description="What a block is worth. angular: how far a run of blocks turns the residual stream; one run goes, "
        "or several where none is long enough. block-influence: the same for single blocks. sleb: the loss without "
        "it, measured anew after each removal. perplexity: the same, measured once. taylor: the loss of a language "
        "model, to first order. gates: how far a gate stays open that is trained to close. random: nothing.",
        json_schema_extra={"searchable": ["angular", "block-influence", "sleb"]},
    )
    candidates: int | None = Field(
        default=10,
        ge=1,
        description="sleb tries only so many blocks in each round: those of the least block influence. None: all.",
    )
    gate_steps: int = Field(default=500, ge=1, description="Steps that gates are trained for.")
    gate_rate: float = Field(default=1e-2, gt=0, le=1, description="Learning rate of gates.")
    fold_gates: bool = Field(
        default=False,
        description="Scale the output projections of blocks that stay by their trained gates. Off: those gates are "
        "set to 1.",
    )
    keep_first: int = Field(default=1, ge=0, description="Blocks at the start of each stream that stay.")
    keep_last: int = Field(default=1, ge=0, description="Blocks at the end of each stream that stay.")
    protect_blocks: tuple[int, ...] = Field(default=(), description="Numbers of further blocks that stay.")
    merge: Literal["none", "laco", "laco-release"] = Field(
        default="none",
        description="What becomes of the projections of removed blocks. none: they go. laco: their differences are "
        "added to those of the block before the run. laco-release: that block takes those of the last one, as the "
        "released code of LaCo does.",
    )
    compensation: Compensation = Field(
        default="auto",
        description="What makes up for a removed run, by least squares. folded: the output projection before it is "
        "solved anew, where that is exact; no new node but an Add where it had no bias. product: one MatMul and one "
        "Add in place of the run. auto: folded, and product where nothing can be folded. Taken only where the error on "
        "samples held out falls.",
    )
    repair_blocks: int = Field(
        default=0,
        ge=0,
        description="Blocks behind each removed run whose output projections are solved anew too, towards what the "
        "stream held there in the model that was given.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        description="How strongly solved weights are pulled to those that were there. None: chosen on the samples held "
        "out.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    score_samples: int = Field(
        default=8,
        ge=1,
        description="Largest number of these samples that sleb, perplexity and taylor measure losses on.",
    )
    score_tokens: int | None = Field(
        default=128,
        ge=1,
        description="Tokens of each of these samples whose loss sleb and perplexity measure, evenly spaced. None: all.",
    )
    batch_size: int = Field(default=1, ge=1, description="Samples per calibration run; a fixed batch stays.")

    @property
    def chooses(self) -> bool:
        """Whether blocks are chosen by what they are worth."""
        return self.blocks is None and self.count != 0

    @property
    def reads_data(self) -> bool:
        """Whether anything is measured on calibration data."""
        return self.blocks != () and (
            self.compensation != "none" or self.repair_blocks > 0 or (self.chooses and self.score != "random")
        )

    @property
    def needs(self) -> Needs:
        """What these options need: scores and compensation look at data, some scores at gradients."""
        return Needs(data=self.reads_data, gradients=self.chooses and self.score in ("taylor", "gates"))
