"""What a method may use while it checks and applies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from edgesmith.host.dialect import Dialect
from edgesmith.host.trial import Scoring, Trial
from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from edgesmith.model import Model
    from edgesmith_calibration.sources import DataSource

OptionsT = TypeVar("OptionsT")


@dataclass(slots=True)
class Notes:
    """Collects what a method wants the report to say. The only thing a method may write to besides its result."""

    remarks: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Node name to the reason it was left alone."""
    missed: list[str] = field(default_factory=list)
    """What the options asked for and the result does not keep. The run's verdict says it."""

    depends_on_times: bool = False
    """Whether times decided something, so that the result holds for what was timed on. The run's trial sets it."""

    def remark(self, text: str) -> None:
        """Add a sentence about the step as a whole."""
        self.remarks.append(text)

    def miss(self, text: str) -> None:
        """Add a limit that the options set and the result does not keep, with the distance to it."""
        self.missed.append(text)

    def skip(self, node: str, reason: str) -> None:
        """Say why `node` was left alone."""
        self.skipped[node] = reason


@dataclass(frozen=True, slots=True)
class Context(Generic[OptionsT]):
    """What `check` and `apply` may use: validated options, dialect, data, seed, progress, and a scratch directory."""

    options: OptionsT
    dialect: Dialect
    scratch: Path
    """An empty directory that is deleted after the step."""
    calibration: "DataSource | None" = None
    """Calibration data, never the data that accuracy is reported on."""
    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=SilentProgress)
    notes: Notes = field(default_factory=Notes)
    trial: Trial | None = None
    """Lowers and times models on the target and runner of the run; None where nothing is measured."""
    scoring: Scoring | None = None
    """The metric that the run is judged by; None where there is none."""
    source: "Model | None" = None
    """The model that the run started from, for methods that learn from it; None where it is not known. Read only."""
    checkpoint: Path | None = None
    """A directory for the state of long work. It outlives a run that is killed or stopped with Ctrl-C: the same step
    of the next run finds there what this one wrote. It is deleted when the step ends. None: there is no such place."""
    source_calibration: "DataSource | None" = None
    """The samples of `calibration` with all inputs of `source`, where a step before took inputs from the graph, such as
    caches of blocks that it removed; None where `calibration` has them."""
