"""Options of `prune-weights`."""

from typing import Literal

from pydantic import Field

from edgesmith.host.records import Needs
from edgesmith.host.selection import Selection
from edgesmith.protection import Choice

Criterion = Literal["knowledge-retention", "sparsegpt", "wanda", "magnitude", "randomized"]
Operator = Literal["MatMul", "Gemm", "Conv"]


class PruneWeightsOptions(Selection):
    """Options of `prune-weights`."""

    sparsity: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of each layer's weights to set to zero. A pattern of groups sets its own.",
        json_schema_extra={"searchable": [0.5, 0.3, 0.7]},
    )
    pattern: str = Field(
        default="unstructured",
        pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$",
        description=(
            "unstructured: any places. N:M: at most N of each M consecutive inputs stay; 2:4 is what the sparse tensor "
            "cores of NVIDIA GPUs take, from Ampere on."
        ),
        json_schema_extra={"searchable": ["unstructured", "2:4"]},
    )
    criterion: Criterion = Field(
        default="knowledge-retention",
        description=(
            "knowledge-retention: remove what the others make up for best, aiming at outputs of the dense network. "
            "sparsegpt: one sweep over the columns. wanda: weight times norm of its input. magnitude: smallest "
            "weights. randomized: masks drawn at random around the largest weights; that of least output error stays."
        ),
        json_schema_extra={"searchable": ["knowledge-retention", "sparsegpt", "wanda"]},
    )
    adaptive_hessian: bool = Field(
        default=True,
        description="Choose by inputs as the layers pruned before make them. Off: by those of the dense network.",
    )
    adaptive_weight: bool = Field(
        default=True,
        description="Aim at weights that make up for errors of the input too. Off: at the weights as they are.",
    )
    refit: bool = Field(
        default=True,
        description=(
            "Fit the weights that stay to the dense network's outputs by least squares. Taken for each output only "
            "where its error on calibration data falls. Magnitude needs no data without it."
        ),
    )
    biases: bool = Field(default=True, description="Let biases keep the mean of each output. Needs refit.")
    damping: float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="Part of the mean second moment of inputs that is added to each; more where samples are few.",
    )
    exact_width: int = Field(
        default=1024,
        ge=0,
        le=8192,
        description="knowledge-retention: widest inputs of layers that lose weight by weight; a sweep beyond.",
    )
    candidates: int = Field(default=4, ge=1, le=64, description="randomized: masks drawn for each layer.")
    training_steps: int = Field(
        default=0,
        ge=0,
        description=(
            "randomized, magnitude: updates with the chosen masks in each of four stages, towards the dense network's "
            "outputs. 0: no training; drawn masks are compared by the error of each layer alone."
        ),
    )
    check_steps: int = Field(
        default=200, ge=1, description="With training_steps: updates to try each drawn mask with, in each stage."
    )
    heads: bool = Field(default=False, description="Prune the layers that make the outputs too.")
    operators: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Conv"), min_length=1, description="Operators whose weights are pruned."
    )
    protect: Choice = Field(
        default=None,
        description="Places of weights that must stay: a file, or units for what analyse-units found before.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    batch_size: int = Field(default=1, ge=1, description="Samples per calibration run; a fixed batch stays.")
    activations_mib: int = Field(
        default=256,
        ge=0,
        description="Memory for values that wait between two layers, in each network. What is more goes to disk.",
    )

    @property
    def needs(self) -> Needs:
        """What these options need: data, unless the smallest weights go and nothing else moves."""
        return Needs(data=self.criterion != "magnitude" or self.refit or self.trains, gradients=self.trains)

    @property
    def trains(self) -> bool:
        """Whether the network is trained stage by stage."""
        return self.criterion in ("randomized", "magnitude") and self.training_steps > 0
