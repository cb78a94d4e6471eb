"""Options of `recover`."""

from typing import Literal

from pydantic import ConfigDict, Field

from edgesmith.host.records import Needs
from edgesmith.host.selection import Selection
from edgesmith.protection import Choice

Parameters = Literal["all", "low-rank", "biases-and-norms"]
Adapter = Literal["mask-lora", "scale-lora", "lora-prune", "lora"]

_TRAINING = Needs(data=True, gradients=True, packages=("safetensors>=0.4",))


class RecoverOptions(Selection):
    """Options of `recover`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    how: Literal["distill", "blocks", "closed-form"] = Field(
        default="distill",
        description="distill: train the whole graph to answer as the source does. blocks: train each block to give the "
        "source's output, one after the other, in the memory of one block. closed-form: least squares, no training.",
    )
    parameters: Parameters = Field(
        default="all",
        description="What is trained: all weights; or biases, scales of normalizations and low-rank updates that are "
        "merged into the weights; or biases and scales of normalizations alone.",
        json_schema_extra={"searchable": ["all", "low-rank", "biases-and-norms"]},
    )
    adapter: Adapter = Field(
        default="mask-lora",
        description="Form of low-rank updates. mask-lora and scale-lora keep zeros while training; lora-prune puts "
        "them back at the end, so training sees another network; lora fills them, also where keep_zeros is "
        "set, which makes a sparse weight dense.",
    )
    rank: int = Field(default=16, ge=1, le=4096, description="Rank of low-rank updates.")
    alpha: float = Field(default=32.0, gt=0, description="Low-rank updates count alpha / rank times.")
    closed_form: Literal["least-squares", "scale-and-shift"] = Field(
        default="least-squares",
        description="What closed-form solves for: all weights of a layer and its bias, or one factor and one shift per "
        "output channel.",
    )
    outputs: Literal["auto", "kl", "mse", "none"] = Field(
        default="auto",
        description="How outputs are compared with the source's: divergence of probabilities, squared error, or not. "
        "auto: divergence for classifiers and language models, squared error for other outputs.",
    )
    temperature: float = Field(default=2.0, gt=0, le=100, description="Logits are divided by it before comparing.")
    outputs_weight: float = Field(default=1.0, ge=0, description="Weight of the outputs in the loss.")
    caches: bool = Field(
        default=False,
        description="For how: distill, compare keys and values that a decoder hands out for its cache, too; only those "
        "of its blocks that are left.",
    )
    blocks: Literal["all", "tail", "none"] = Field(
        default="tail",
        description="Block outputs to compare: all, the last ones, or none.",
        json_schema_extra={"searchable": ["all", "tail", "none"]},
    )
    tail_blocks: int = Field(default=3, ge=1, description="How many blocks the tail has.")
    blocks_weight: float = Field(default=1.0, ge=0, description="Weight of the block outputs in the loss.")
    labels_weight: float = Field(
        default=1.0, ge=0, description="Weight of the cross entropy with labels, where the data has them."
    )
    epochs: float = Field(default=3.0, gt=0, description="Passes over the data, unless steps are given.")
    steps: int | None = Field(default=None, ge=1, description="Number of updates; of each block, for blocks.")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Stop after this time even if epochs or steps are left; decay fits to it. Blocks share it evenly.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Highest learning rate. By default 1e-4 for all weights, 5e-4 for low-rank updates and 1e-3 for "
        "biases and scales to begin with, and a tenth each time that a score is worse than the start.",
        json_schema_extra={"searchable": [5e-5, 1e-4, 5e-4]},
    )
    warm_up: float = Field(default=0.1, ge=0, lt=1, description="Share of the training in which the rate rises.")
    decay: Literal["linear", "cosine", "none"] = Field(default="linear", description="How the rate falls afterwards.")
    batch_size: int = Field(default=8, ge=1, description="Samples per run; graphs with a fixed batch keep theirs.")
    accumulate: int = Field(default=1, ge=1, description="Runs per update.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of matrices and kernels.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient; longer ones are shortened.")
    held_out: float = Field(
        default=0.1,
        gt=0,
        le=0.5,
        description="Share of the calibration data, at most 64 samples, that is not trained on and decides.",
    )
    evaluations: int = Field(default=20, ge=1, description="How often the held-out share is scored, at most.")
    patience: int = Field(
        default=6,
        ge=1,
        description="Stop after so many scores in a row that are no better than the best; those in the warm-up and at "
        "rates that were given up do not count.",
    )
    checkpoint_steps: int = Field(default=200, ge=1, description="Updates between two checkpoints.")
    samples: int | None = Field(default=None, ge=2, description="Largest number of calibration samples to use.")
    select: Literal["all", "paser"] = Field(
        default="all",
        description="Which samples to train on: all, or more of those kinds on which the model lost most.",
    )
    select_share: float = Field(default=0.2, gt=0, le=1, description="Share of the samples that paser selects.")
    clusters: int = Field(default=10, ge=1, description="Kinds of samples that paser tells apart.")
    train_codes: bool = Field(
        default=True,
        description="Train weights that are stored as codes through their quantizer, with its scales as they are. Off: "
        "they stay.",
    )
    keep_zeros: bool = Field(default=True, description="Leave exact zeros of matrices and kernels zero.")
    protect: Choice = Field(
        default=None,
        description="Channels that are not changed: a file, or units for what analyse-units found before.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train. auto takes a GPU where torch finds one."
    )
    precision: Literal["auto", "float32"] = Field(
        default="auto", description="auto computes in bfloat16 on a GPU, with weights and loss in float32."
    )

    @property
    def needs(self) -> Needs:
        """What these very options need: closed forms need no gradients."""
        return Needs(data=True) if self.how == "closed-form" else _TRAINING

    @property
    def fills_zeros(self) -> bool:
        """Whether zeros of matrices may become other numbers: where they need not be kept, and with plain LoRA."""
        plain = self.how != "closed-form" and self.parameters == "low-rank" and self.adapter == "lora"
        return plain or not self.keep_zeros

    @property
    def highest_rate(self) -> float:
        """The learning rate, or the default for what is trained."""
        return self.learning_rate or {"all": 1e-4, "low-rank": 5e-4, "biases-and-norms": 1e-3}[self.parameters]
