"""Options of `quantize-weights`."""

from typing import Literal

from pydantic import Field, model_validator

from edgesmith.host.records import Needs
from edgesmith_quantization.options.protected import ProtectedSelection

Bits = Literal[2, 4, 8]
BlockSize = Literal[16, 32, 64, 128]
Operator = Literal["MatMul", "Gemm", "Conv", "Gather"]


class QuantizeWeightsOptions(ProtectedSelection):
    """Options of `quantize-weights`."""

    bits: Bits = Field(
        default=4,
        description="Bits of a weight; each block adds a scale, and a zero point where it has one.",
        json_schema_extra={"searchable": [8, 4, 2]},
    )
    table_bits: Bits | None = Field(
        default=None,
        description="Bits of embedding tables and of heads that share them; none: the same as other weights.",
        json_schema_extra={"searchable": [8, 4]},
    )
    block_size: BlockSize | None = Field(
        default=32,
        description="Weights along the summed dimension that share a scale; none: one scale per output channel.",
        json_schema_extra={"searchable": [16, 32, 64, 128]},
    )
    symmetric: bool | None = Field(
        default=None,
        description="Whether 0 has code 0, without zero points. None: only where the target takes no zero points.",
    )
    offsets: bool = Field(
        default=False,
        description=(
            "Give each block of a product's weight an offset in float instead of a zero point: closer, also exact for "
            "weights that were rounded in such blocks before, but 0 is not kept. Not for tables."
        ),
        json_schema_extra={"searchable": [True, False]},
    )
    rounding: Literal["nearest", "mse", "second-order"] = Field(
        default="mse",
        description=(
            "nearest: grids cover the largest weight. mse: grids of least squared error. second-order: the error of "
            "each weight is taken up by others so that outputs on calibration data change least (GPTQ)."
        ),
        json_schema_extra={"searchable": ["nearest", "mse", "second-order"]},
    )
    activations: Literal["float", "int8"] = Field(
        default="int8",
        description=(
            "int8: the runtime may round the inputs of products to 8 bits, row by row as it runs, where its kernels "
            "for such weights are faster so. float: it may not."
        ),
        json_schema_extra={"searchable": ["float", "int8"]},
    )
    float_inputs: tuple[str, ...] = Field(
        default=(),
        description="Names of products whose inputs stay in float under `activations: int8`; `*` and `?` match.",
    )
    minimum_sqnr_db: float | None = Field(
        default=None,
        description=(
            "Under `activations: int8`: leave the inputs of products in float whose own output, measured on "
            "calibration data, would keep less than this signal-to-noise ratio in decibels."
        ),
        json_schema_extra={"searchable": [None, 36]},
    )
    operators: tuple[Operator, ...] = Field(
        default=("MatMul", "Gemm", "Gather"),
        description="Operators whose weights are quantized. Conv saves bytes and, on most runtimes, no time.",
    )
    damping: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Second-order: part of the mean second moment of inputs that is added to each of them.",
    )
    descending: bool = Field(
        default=True,
        description=(
            "Second-order: round inputs with large second moments first. Off: round in order, and fit the grid of each "
            "block when its turn comes."
        ),
    )
    samples: int = Field(default=128, ge=1, description="Second-order: largest number of calibration samples to use.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Second-order: samples per calibration run. Nothing: as many as fit in 24 MiB."
    )
    statistics_mib: int = Field(
        default=1024,
        ge=1,
        description="Second-order: memory for input statistics. Less means more passes over the calibration data.",
    )

    @model_validator(mode="after")
    def _keeps_zeros(self) -> "QuantizeWeightsOptions":
        if self.offsets and self.protect is not None:
            raise ValueError(
                "protected places become zeros beside a product in float, and offsets keep no zeros; set "
                "offsets to false, or leave protect out"
            )
        return self

    @property
    def needs(self) -> Needs:
        """What these options need: second-order rounding looks at the inputs of layers."""
        return Needs(data=self.rounding == "second-order")
