"""Options of `quantize-int8`."""

from typing import Literal

from pydantic import Field

from edgesmith.host.records import Needs
from edgesmith_quantization.options.protected import ProtectedSelection

Operator = Literal["MatMul", "Gemm", "Conv"]


class QuantizeInt8Options(ProtectedSelection):
    """Options of `quantize-int8`."""

    mode: Literal["static", "dynamic"] = Field(
        default="static",
        description="static: activation ranges from calibration data. dynamic: ranges computed at run time, no data.",
        json_schema_extra={"searchable": ["static", "dynamic"]},
    )
    activation_bits: Literal[8, 16] | None = Field(
        default=None,
        description="Bits of activations in static mode. 16 where the target multiplies those by weights of 8 bits "
        "(android-qnn). Nothing: 16 there for networks with attention, and 8 elsewhere.",
    )
    range_estimator: Literal["min-max", "percentile", "mse", "entropy"] = Field(
        default="percentile",
        description="How the range of an activation of 8 bits follows from what calibration saw. Used in static mode.",
        json_schema_extra={"searchable": ["min-max", "percentile", "mse", "entropy"]},
    )
    percentile: float = Field(
        default=99.999,
        gt=50,
        le=100,
        description="Share of the observed values, in percent, that the percentile estimator keeps in range.",
        json_schema_extra={"searchable": [99.9, 99.99, 99.999]},
    )
    range_shrinking: bool = Field(
        default=True,
        description="Shrink ranges that few values stretch, where that brings the outputs on calibration data closer "
        "to those in float. Static mode.",
        json_schema_extra={"searchable": [True, False]},
    )
    per_channel: bool = Field(
        default=True, description="One weight scale per output channel; off: one scale per weight."
    )
    operators: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Conv"),
        description="Operator types to quantize. Those that the target's dialect does not list stay in float.",
    )
    attention: bool = Field(
        default=False,
        description="Quantize both inputs of the products of attention as well, where the target runs those in "
        "integers. Costs accuracy; TensorRT then fuses attention in INT8.",
        json_schema_extra={"searchable": [False, True]},
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to use.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Samples per calibration run. More can be faster and take more memory; fixed batches stay. "
        "Nothing: as many of equal shapes as keep the observed values in 24 MiB.",
    )
    smoothing: bool = Field(
        default=True,
        description="Shift the range of activation channels into weights where that is exact and lowers the expected "
        "rounding noise (SmoothQuant). Needs calibration data.",
        json_schema_extra={"searchable": [True, False]},
    )
    equalization: bool = Field(
        default=False,
        description="Let the weights of two products in a row reach equally far in each channel between them, also "
        "behind Relu. Needs no data.",
        json_schema_extra={"searchable": [True, False]},
    )
    bias_correction: bool = Field(
        default=True,
        description="Take back what rounding weights adds to the mean of outputs, in the biases of convolutions and in "
        "those added behind matrix products. Static mode; needs calibration data.",
        json_schema_extra={"searchable": [True, False]},
    )
    outlier_channels: int = Field(
        default=16,
        ge=0,
        description="Largest number of channels per activation whose peaks are multiplied in float beside the integer "
        "product, where its error would be large and this shortens the range by 30 % or more. 0: none. Needs data.",
        json_schema_extra={"searchable": [0, 8, 16]},
    )
    rounding: Literal["nearest", "second-order"] = Field(
        default="nearest",
        description="second-order: round the weights of matrix products to least output error on calibration data. "
        "Holds one Gram matrix of width x width per activation.",
        json_schema_extra={"searchable": ["nearest", "second-order"]},
    )
    minimum_sqnr_db: float | None = Field(
        default=None,
        description="Leave matrix products in float whose own output, measured on calibration data, would keep less "
        "than this signal-to-noise ratio in decibels.",
        json_schema_extra={"searchable": [None, 25, 28]},
    )
    reduce_range: bool = Field(
        default=False,
        description="Keep weights in 7 bits. For x86 processors without VNNI, whose 8-bit products saturate.",
    )

    @property
    def needs(self) -> Needs:
        """What these options need: static mode takes its ranges from data."""
        return Needs(data=self.mode == "static")
