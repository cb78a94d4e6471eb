"""Options of `quantize-auto`."""

from typing import Literal

from pydantic import Field

from edgesmith.host.records import Needs
from edgesmith_quantization.options.protected import ProtectedSelection

FormatName = Literal[
    "int8",
    "int8-dynamic",
    "fp8",
    "int8-weights",
    "int4-weights",
    "int4-weights-128",
    "int2-weights",
    "int4-split",
    "int2-split",
]

DEFAULT_MIN_SQNR_DB = 20.0
"""Budget where none is named: the outputs' noise is a hundredth of their energy."""


class QuantizeAutoOptions(ProtectedSelection):
    """Options of `quantize-auto`."""

    formats: tuple[FormatName, ...] = Field(
        default=(),
        description="Formats to choose from, besides float. Empty means every one that the target runs as such, "
        "split forms apart.",
    )
    max_metric_drop: float | None = Field(
        default=None,
        ge=0,
        description="Budget: largest loss of the run's metric, in its unit, on held-out calibration samples with "
        "labels.",
        json_schema_extra={"searchable": [0.2, 0.5, 1.0]},
    )
    min_sqnr_db: float | None = Field(
        default=None,
        description="Budget: smallest ratio of signal to noise at the outputs, in decibels, on held-out calibration "
        f"samples. {DEFAULT_MIN_SQNR_DB:g} where no budget is named.",
        json_schema_extra={"searchable": [15.0, 20.0, 25.0, 30.0]},
    )
    max_bits_per_weight: float | None = Field(
        default=None,
        gt=0,
        description="Budget: largest mean size of a weight in bits, over all weight tensors of the model, scales and "
        "zero points included. The search then looks for the least output error within it.",
        json_schema_extra={"searchable": [3.0, 4.5, 6.0, 8.5]},
    )
    objective: Literal["latency", "size"] = Field(
        default="latency",
        description="What to make small within the budget: latency measured on the target's runner (size where "
        "nothing is measured), or stored size.",
        json_schema_extra={"searchable": ["latency", "size"]},
    )
    time_budget_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds that the search may take. Checked between measurements; what is best by then is kept.",
    )
    samples: int = Field(default=128, ge=1, description="Largest number of calibration samples to take ranges from.")
    sensitivity_samples: int = Field(
        default=32, ge=1, description="Largest number of held-out samples on which single groups are measured."
    )
    validation_samples: int = Field(
        default=256, ge=1, description="Largest number of held-out samples on which whole assignments are measured."
    )

    @property
    def needs(self) -> Needs:
        """What these options need: data always, and labels where the budget is a metric's."""
        return Needs(data=True, labels=self.max_metric_drop is not None)

    @property
    def least_sqnr_db(self) -> float | None:
        """The budget of output error that holds: as given, or the default where no budget is named at all."""
        unlimited = self.max_metric_drop is None and self.max_bits_per_weight is None
        return DEFAULT_MIN_SQNR_DB if self.min_sqnr_db is None and unlimited else self.min_sqnr_db
