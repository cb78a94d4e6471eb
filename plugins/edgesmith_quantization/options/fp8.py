"""Options of `quantize-fp8`."""

from typing import Literal

from pydantic import Field

from edgesmith.host.records import Needs
from edgesmith_quantization.options.protected import ProtectedSelection

Operator = Literal["MatMul", "Gemm", "Conv"]


class QuantizeFp8Options(ProtectedSelection):
    """Options of `quantize-fp8`."""

    mode: Literal["static", "weight-only"] = Field(
        default="static",
        description="static: inputs and weights of products, with scales from calibration data. "
        "weight-only: weights alone, which saves storage and needs no data.",
        json_schema_extra={"searchable": ["static", "weight-only"]},
    )
    format: Literal["e4m3", "e5m2"] = Field(
        default="e4m3",
        description="e4m3: the format that hardware runs. e5m2: more range and half the precision, for comparison.",
    )
    per_channel: bool = Field(
        default=True, description="One weight scale per output channel; off: one scale per weight."
    )
    range_estimator: Literal["absmax", "percentile", "mse"] = Field(
        default="absmax",
        description="How the scale of an activation follows from what calibration saw.",
        json_schema_extra={"searchable": ["absmax", "percentile", "mse"]},
    )
    percentile: float = Field(
        default=99.99,
        gt=50,
        le=100,
        description="Share of the magnitudes, in percent, that the percentile estimator keeps in range.",
    )
    attention: bool = Field(
        default=True, description="Quantize the products of queries with keys and of probabilities with values."
    )
    heads: bool = Field(
        default=False, description="Quantize poolers and heads too: the layers between the blocks and the outputs."
    )
    operators: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Conv"), description="Operator types with a constant weight to quantize."
    )
    minimum_channels: int = Field(
        default=16, ge=1, description="Convolutions with fewer input or output channels in a group stay in float."
    )
    minimum_head_size: int = Field(
        default=9,
        ge=1,
        description="Attention with smaller heads stays in float; so does attention with heads above 256.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")

    @property
    def needs(self) -> Needs:
        """What these options need: static scales come from data."""
        return Needs(data=self.mode == "static")
