"""The ledger: one row per stage, every number with its tier, spread and conditions."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesmith.host.records import Tier


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measurement(_Record):
    """One measured number.

    `low` and `high` are the quartiles over `samples` repetitions, absent for numbers that do not vary.
    """

    value: float
    unit: str
    tier: Tier
    samples: int = 1
    low: float | None = None
    high: float | None = None
    conditions: Mapping[str, str | int | float] = Field(default_factory=dict)
    """What makes the number comparable: threads, batch, shape, runtime, optimization level."""


class OutputError(_Record):
    """How far the outputs moved from those of another stage, on the same data."""

    against: str
    """Stage label compared with."""
    sqnr_db: float
    """Signal to quantization-noise ratio in decibels; infinite (serialised as null) when equal."""
    cosine: float
    max_abs: float


class LayerError(_Record):
    """How far one value inside the graph moved from the stage before."""

    value: str
    layer: str
    """Where it stands in the structure, for people: "block 3 / mlp / output"."""
    sqnr_db: float


class LedgerRow(_Record):
    """One stage: the source, a step of the recipe, or the lowering to the target."""

    index: int
    stage: str
    method: str = ""
    distribution: str = ""
    """Distribution and version that the method comes from, as "name version"."""
    options: Mapping[str, object] = Field(default_factory=dict)
    status: Literal["ok", "skipped", "refused", "undone"] = "ok"
    reason: str = ""
    metric: Measurement | None = None
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
    skipped: Mapping[str, str] = Field(default_factory=dict)
    """Node name to the reason it was left alone."""


class Ledger(_Record):
    """Everything that one compile measured and decided."""

    source: str
    target: str
    metric: str
    """Name of the metric in the rows."""
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
    plugins: tuple[str, ...] = ()
    """Loaded distributions as "name version"."""
