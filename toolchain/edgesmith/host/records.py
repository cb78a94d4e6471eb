"""Frozen descriptions of what a plugin brings. From these alone the host lists, validates, orders and caches.

Records are plain dataclasses of strings and numbers, so that registering and listing costs nothing. `entry` and
`options` are dotted paths ("package.module:Name"), imported on first use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """The family of a method. Order constraints may name a kind instead of a method."""

    GRAPH = "graph"
    PRUNE = "prune"
    QUANTIZE = "quantize"
    FOLD = "fold"
    TOKENS = "tokens"
    EXIT = "exit"
    LOW_RANK = "low-rank"
    RECOVER = "recover"
    ANALYSE = "analyse"


class Guarantee(StrEnum):
    """What a method promises about outputs. The host verifies it on sample data after every step."""

    EXACT = "exact"
    """Outputs equal up to floating-point reassociation (relative error 1e-4)."""
    TOLERANCE = "tolerance"
    """Outputs stay within the record's `tolerance` (relative error)."""
    LOSSY = "lossy"
    """Outputs change; the ledger reports by how much."""


class Tier(StrEnum):
    """Where a number comes from, from the weakest to the strongest evidence."""

    SIMULATED = "simulated"
    REFERENCE = "reference"
    PROXY = "proxy"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method must be given before it can run."""

    data: bool = False
    labels: bool = False
    gradients: bool = False
    gpu: bool = False
    packages: tuple[str, ...] = ()
    """Requirement strings such as "torch>=2.8", checked before a model is loaded."""


@dataclass(frozen=True, slots=True)
class Order:
    """Where a method may stand in a recipe. Entries are method names, kinds or tags."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MethodRecord:
    """Says of a method that rewrites a Model what it does, needs and promises, without importing it."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a `Method` subclass."""
    kind: Kind
    options: str
    """Dotted path of a pydantic model with the method's options."""
    guarantee: Guarantee
    tolerance: float = 0.0
    needs: Needs = field(default_factory=Needs)
    order: Order = field(default_factory=Order)
    tags: tuple[str, ...] = ()
    deterministic: bool = True
    source: str = ""
    """Paper or repository the method comes from."""
    drops_caches: bool = False
    """Whether it may take whole slots of a decoder's key/value cache away, each with its input and its output. All
    other inputs and outputs of the graph stay, whatever a method does."""


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """Says of a target (a device and its runtime) where its class is, and what measures its artifacts."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a `Target` subclass."""
    runner: str = "local"
    """Name of the runner that measures its artifacts by default."""
    tier: Tier = Tier.REFERENCE
    """The strongest tier that measurements with this target's default runner can claim."""
    packages: tuple[str, ...] = ()
    profile: str = ""
    """Facts of the device as "package:resource.toml" (see `edgesmith.profile`); empty for a target without any."""
    extends: str = ""
    """Name of the installed target that a user's profile extends, whose rules hold for this one too."""


@dataclass(frozen=True, slots=True)
class FrontendRecord:
    """Says where the class is that reads one kind of source, and when it is asked."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a `Frontend` subclass."""
    priority: int = 0
    """Frontends are asked in descending priority whether they accept a source."""


@dataclass(frozen=True, slots=True)
class RunnerRecord:
    """Says where the class is that runs artifacts somewhere, such as here or over SSH, and measures them."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a `Runner` subclass."""


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """Says where the class of a metric is, in which unit it scores, and whether more is better."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a `edgesmith_calibration.metrics.Metric` subclass."""
    higher_is_better: bool = True
    unit: str = ""
    needs_labels: bool = True


@dataclass(frozen=True, slots=True)
class LintRecord:
    """Says where a rule over lowered graphs is, and which targets it is about."""

    name: str
    version: str
    summary: str
    entry: str
    """Dotted path of a callable `(Model, Dialect) -> Iterable[Finding]`."""
    targets: tuple[str, ...] = ()
    """Names of the targets it is about; empty means all."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """What observers are told about a step: its method, whose it is, its options, and how it went."""

    index: int
    method: str
    distribution: str
    options: Mapping[str, object]
    seconds: float | None = None
    """Wall time of `apply`; None before the step."""
    status: Literal["ok", "skip"] | None = None
    """Whether the method was applied or had nothing to do; None before the step."""


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A section that a plugin adds to the report. `html` is inserted into an isolated frame."""

    title: str
    html: str


Record = MethodRecord | TargetRecord | FrontendRecord | RunnerRecord | MetricRecord | LintRecord
