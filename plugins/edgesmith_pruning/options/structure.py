"""Options of `prune-structure`."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from edgesmith.host.records import Needs
from edgesmith.host.selection import Selection
from edgesmith.protection import Choice

Kind = Literal["heads", "query-heads", "value-channels", "channels", "convolution-channels"]
Score = Literal[
    "elimination",
    "second-moment",
    "second-moment-released",
    "similarity",
    "beta-rank",
    "wanda",
    "fluctuation",
    "taylor",
    "magnitude",
    "random",
]


DEFAULT_RIDGE = 0.05
"""Of layers that read tokens. From 0.01 to 0.1 little changes on samples held out; below, refits follow the data."""


class PruneStructureOptions(Selection):
    """Options of `prune-structure`. `only` and `skip` name the nodes that sum over what is removed."""

    ratio: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Share to remove of what `budget` counts.",
        json_schema_extra={"searchable": [0.1, 0.2, 0.3, 0.5]},
    )
    budget: Literal["atoms", "macs", "parameters", "latency"] = Field(
        default="atoms",
        description="What `ratio` is a share of: heads and channels, MACs, parameters, or measured latency.",
    )
    allocation: Literal["uniform", "global", "measured"] = Field(
        default="uniform",
        description="uniform: the same share of each unit. global: more where it costs less error for what it saves. "
        "measured: the same with errors measured at the outputs of the network, on samples held out; for networks "
        "of convolutions.",
        json_schema_extra={"searchable": ["uniform", "global", "measured"]},
    )
    largest_share: float = Field(
        default=0.8, gt=0, lt=1, description="Most that may go of one unit where the budget decides."
    )
    alignment: int | None = Field(
        default=None,
        ge=1,
        description="Multiple that widths of channels are rounded to. None: what the target's fast kernels like.",
    )
    keep_first_blocks: int = Field(default=0, ge=0, description="Blocks at the start that stay whole.")
    keep_last_blocks: int = Field(default=0, ge=0, description="Blocks at the end that stay whole.")
    kinds: tuple[Kind, ...] = Field(
        default=("heads", "channels", "convolution-channels"),
        min_length=1,
        description="What may be removed: attention heads (whole groups where queries share keys), query heads within "
        "such groups, value channels within heads, hidden channels of MLPs, channels of convolutions.",
    )
    ratios: Mapping[Kind, float] = Field(
        default_factory=dict, description="Another share for some kinds, such as {heads: 0.25}; 0 keeps all."
    )
    score: Score = Field(
        default="elimination",
        description="What an atom is worth. elimination: by how much the error rises after the others made up for it, "
        "weighed anew after each removal. second-moment (as published, or as released), wanda, fluctuation (FLAP): "
        "weights times what they meet. similarity: of two heads that attend alike one; other kinds by second-moment. "
        "beta-rank: weights of filters times how their output varies against their input; other kinds by "
        "second-moment. taylor: weights times gradients. magnitude, random: without data.",
        json_schema_extra={"searchable": ["elimination", "second-moment", "fluctuation", "taylor"]},
    )
    beta_direction: Literal["out_over_in", "in_over_out"] = Field(
        default="out_over_in",
        description="Which deviation beta-rank divides by which. in_over_out is the printed formula; it ranks filters "
        "that never vary highest.",
    )
    refit: Literal["least-squares", "two-step", "statistics", "bias", "none"] = Field(
        default="least-squares",
        description="How layers make up for what they no longer read. least-squares: weights anew on what stays. "
        "two-step: before that the layers that make the channels too. statistics: each output keeps its mean and "
        "variance, as if batch normalization were estimated anew. bias: what was removed held on average goes into the "
        "bias. All but statistics are taken for a layer only where its error falls.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        description="How strongly a refit is pulled to the weights that were there. None: for convolutions "
        "chosen on samples held out, since places of one photo are alike; 0.05 for other layers.",
    )
    sequential: bool = Field(
        default=True,
        description="Measure each layer in the network as pruned so far, so that it makes up for what was lost before.",
    )
    token_weights: bool = Field(
        default=True,
        description="In transformers, weigh errors of each token by its size in the residual stream, as the next "
        "normalization does. For elimination and refits.",
        json_schema_extra={"searchable": [True, False]},
    )
    add_biases: bool = Field(default=True, description="Give layers without a bias one where that helps.")
    batch_size: int = Field(default=1, ge=1, description="Samples per calibration run; a fixed batch stays.")
    protect: Choice = Field(
        default=None,
        description="Places of weights that must stay: a file, or units for what analyse-units found before.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")

    @model_validator(mode="after")
    def _shares(self) -> "PruneStructureOptions":
        wrong = {kind: share for kind, share in self.ratios.items() if not 0 <= share < 1}
        if wrong:
            raise ValueError(f"ratios must be at least 0 and below 1, not {wrong}")
        return self

    def share(self, kind: Kind) -> float:
        """Return the share of a kind that is to go."""
        return self.ratios.get(kind, self.ratio if kind in self.kinds else 0.0)

    @property
    def needs(self) -> Needs:
        """What these options need: scores of activations and refits look at data."""
        return Needs(data=self.reads_data, gradients=self.score == "taylor")

    def ridge_of(self, operator: str) -> float | None:
        """Return the ridge of a layer of that type; None where samples held out choose it."""
        return None if self.ridge is None and operator == "Conv" else self.ridge or DEFAULT_RIDGE

    @property
    def weighs_tokens(self) -> bool:
        """Whether rows are weighed; published scores are left as they were published."""
        return self.token_weights and (self.score == "elimination" or self.refit in ("least-squares", "two-step"))

    def holds_out(self, operator: str) -> bool:
        """Return whether samples are held out from the statistics of a layer of that type."""
        return self.allocation == "measured" or self.ridge_of(operator) is None

    @property
    def reads_data(self) -> bool:
        """Whether anything is measured on calibration data."""
        return self.allocation == "measured" or self.refit != "none" or self.score not in ("magnitude", "random")
