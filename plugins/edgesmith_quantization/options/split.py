"""Options of `quantize-split`."""

from typing import Literal

from pydantic import Field, model_validator

from edgesmith_quantization.options.protected import ProtectedSelection

Operator = Literal["MatMul", "Gemm", "Conv"]
SplitBy = Literal["auto", "value", "magnitude", "digits"]
Form = Literal["branches", "merged", "compact"]


class QuantizeSplitOptions(ProtectedSelection):
    """Options of `quantize-split`."""

    bits: Literal[2, 4, 8] = Field(
        default=4,
        description="Bits of a code in each part. In the forms branches and merged a weight has one code a part.",
        json_schema_extra={"searchable": [2, 4, 8]},
    )
    parts: Literal[2, 3, 4] = Field(
        default=3,
        description="Number of parts that add up to a weight.",
        json_schema_extra={"searchable": [2, 3]},
    )
    split_by: SplitBy = Field(
        default="auto",
        description=(
            "value: clusters of low, middle and high weights. magnitude: clusters of absolute values. auto: value "
            "where the target takes zero points, magnitude elsewhere. digits: the digits of one finer code."
        ),
        json_schema_extra={"searchable": ["auto", "digits"]},
    )
    clusters: Literal["auto", "weight", "channel"] = Field(
        default="auto",
        description=(
            "What is clustered at a time; digits have no clusters. auto: whole weights of MatMul and Gemm, each output "
            "channel of Conv."
        ),
    )
    scales: Literal["channel", "weight"] = Field(
        default="channel", description="One scale a part for each output channel, or for the whole weight."
    )
    block_size: Literal[16, 32, 64, 128] | None = Field(
        default=None,
        description=(
            "Weights along the summed dimension that share a scale; a smaller size that divides them where the target "
            "asks for that. None: see scales."
        ),
        json_schema_extra={"searchable": [32, 64, 128]},
    )
    clip: Literal["none", "mse"] = Field(
        default="mse", description="none: a part's grid covers all its members. mse: the grid of least squared error."
    )
    assignment: Literal["clusters", "nearest"] = Field(
        default="nearest",
        description=(
            "Which part holds a weight: that of its cluster, or the one with the nearest grid point. Not for digits, "
            "whose parts all hold it."
        ),
    )
    form: Form = Field(
        default="branches",
        description=(
            "branches: one product a part, added. merged: the parts are added, then one product. compact: one code a "
            "weight that is looked up in a table, and one product."
        ),
        json_schema_extra={"searchable": ["branches", "merged", "compact"]},
    )
    bias: Literal["keep", "split"] = Field(
        default="keep",
        description="Form branches: add the bias in the first branch, or split it by value over all of them.",
    )
    split_activations: bool = Field(
        default=False,
        description=(
            "Apply elementwise activation functions to three parts of the last axis, so that each can get a range of "
            "its own when activations are quantized later."
        ),
    )
    least_gain_db: float = Field(
        default=3.0,
        ge=0,
        description="Layers whose weights gain less over one part of as many bits stay in float.",
    )
    operators: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Conv"), description="Operators whose weights are split. Embeddings never are."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "QuantizeSplitOptions":
        if self.split_by == "digits" and self.bits * self.parts > 8:
            raise ValueError(
                f"{self.parts} digits of {self.bits} bits hold {self.bits * self.parts} bits, more than weights need; "
                "set bits to 2, or bits to 4 and parts to 2"
            )
        if self.split_by == "digits" and (self.clusters != "auto" or self.assignment != "nearest"):
            raise ValueError("digits have no clusters; leave clusters and assignment out, or set split_by to value")
        if self.block_size is not None and self.scales == "weight":
            raise ValueError("block_size gives each block a scale, scales: weight one to all; set only one of them")
        if self.bias == "split" and self.form != "branches":
            raise ValueError("a bias is split over branches; set form to branches, or bias to keep")
        if self.form == "compact":
            self._require_table()
        return self

    def _require_table(self) -> None:
        if self.split_by == "digits":
            raise ValueError("digits in one code are plain codes of more bits; use quantize-weights for them")
        if self.parts << self.bits > 256:
            raise ValueError("a table of more than 256 entries needs codes of 16 bits; set bits to 2 or 4")
        if self.block_size is not None:
            raise ValueError("a table for each block would be larger than its codes; leave block_size out")
