"""The ledger: one row per stage, every number with its tier, spread and conditions."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier

FILE_NAME = "ledger.json"

MaybeInfinite = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""A number that may be infinite. JSON has no infinity: it is written as null, and null is read back as infinity."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measurement(_Record):
    """One measured number.

    `low` and `high` are absent for numbers that do not vary; `spread` says what they are.
    """

    value: MaybeInfinite
    unit: str
    tier: Tier
    samples: int = 1
    low: float | None = None
    high: float | None = None
    spread: Literal["quartiles", "confidence-95"] = "quartiles"
    """Quartiles over `samples` repetitions, or a 95 % confidence interval from `samples` data points."""
    conditions: Mapping[str, str | int | float] = Field(default_factory=dict)
    """What makes the number comparable: threads, batch, shape, runtime, optimization level."""


class OutputError(_Record):
    """How far the outputs moved from those of another stage, on the same data."""

    against: str
    """Stage label compared with."""
    sqnr_db: MaybeInfinite
    """Signal to quantization-noise ratio in decibels; infinite (serialised as null) when equal."""
    cosine: float
    max_abs: MaybeInfinite


class LayerError(_Record):
    """How far one value inside the graph moved from the stage before."""

    value: str
    layer: str
    """Where it stands in the structure, for people: "block 3 / mlp / output"."""
    sqnr_db: MaybeInfinite


class LedgerRow(_Record):
    """One stage: the source, a step of the recipe, or the lowering to the target."""

    index: int
    stage: str
    method: str = ""
    distribution: str = ""
    """Distribution and version that the method comes from, as "name version"."""
    options: Mapping[str, object] = Field(default_factory=dict)
    status: Literal["ok", "skipped", "undone"] = "ok"
    reason: str = ""
    metric: Measurement | None = None
    metric_change: Measurement | None = None
    """Change of the metric against the source on the same samples; `low` and `high` are a 95 % interval."""
    metric_step: Measurement | None = None
    """Change of the metric against the stage before, likewise."""
    latency_ms: Measurement | None = None
    speedup: Measurement | None = None
    """Latency of the source divided by this stage's, measured interleaved with it; above 1 is faster."""
    speedup_step: Measurement | None = None
    """Latency of the stage before divided by this stage's, measured interleaved with it; above 1 is faster."""
    size_bytes: Measurement | None = None
    peak_memory_bytes: Measurement | None = None
    parameters: int | None = None
    macs: int | None = None
    errors: tuple[OutputError, ...] = ()
    layers: tuple[LayerError, ...] = ()
    seconds: float = 0.0
    """Wall time that the step itself took when it was computed."""
    cached: bool = False
    """Whether this run took the step from the store."""
    remarks: tuple[str, ...] = ()
    untimed: str = ""
    """Why the stage has no times though it was to be timed."""
    missed: tuple[str, ...] = ()
    """What the step's options asked for and its result does not keep."""
    skipped: Mapping[str, str] = Field(default_factory=dict)
    """Node name to the reason it was left alone."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader is to know: the remarks, and why there are no times."""
        return (*self.remarks, f"Not timed: {self.untimed}") if self.untimed else self.remarks


class Ledger(_Record):
    """Everything that one compile measured and decided."""

    source: str
    target: str
    metric: str
    """Name of the metric in the rows."""
    metric_higher_is_better: bool = True
    rows: tuple[LedgerRow, ...]
    chosen: int
    """Index of the row that became the artifact."""
    verdict: str
    """One sentence: what the chosen stage gained, what it cost, and the distance to the budget if one was set."""
    budget: Mapping[str, float] = Field(default_factory=dict)
    seed: int = 0
    threads: int = 1
    data: Mapping[str, str] = Field(default_factory=dict)
    """Role ("calibration", "evaluation") to a description with sample count and fingerprint."""
    versions: Mapping[str, str] = Field(default_factory=dict)
    machine: Mapping[str, str | int] = Field(default_factory=dict)
    device: Mapping[str, str | int] = Field(default_factory=dict)
    """What stages were timed on, where that was asked for: its address and what it tells of itself."""
    plugins: tuple[str, ...] = ()
    """Loaded distributions as "name version"."""

    @property
    def chosen_row(self) -> LedgerRow:
        """The row that became the artifact."""
        return next(row for row in self.rows if row.index == self.chosen)


def load_ledger(directory: Path) -> Ledger:
    """Return the ledger in an artifact directory.

    Raises:
        MeasurementError: There is no ledger, or it is not one that this version reads.
    """
    path = directory / FILE_NAME
    fix = "pass the directory that `edgesmith compile --out` wrote, or compile again with this version"
    try:
        ledger = Ledger.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MeasurementError(
            f"{path} cannot be read: {error.strerror or error}",
            expected="an artifact directory with a ledger",
            why="without the ledger there are no numbers to show",
            fix=fix,
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise MeasurementError(
            f"{path} is not a valid ledger: {place}: {first['msg']}",
            expected="a ledger written by `edgesmith compile`",
            why="numbers from a damaged or foreign file cannot be trusted",
            fix=fix,
        ) from error
    if all(row.index != ledger.chosen for row in ledger.rows):
        raise MeasurementError(
            f"{path} names row {ledger.chosen} as chosen and has rows {[row.index for row in ledger.rows]}",
            expected="a chosen row among the rows",
            why="without it nobody knows which numbers belong to the artifact",
            fix=fix,
        )
    return ledger
