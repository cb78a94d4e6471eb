"""What a runner must offer: latency of stages against each other, peak memory, and outputs, with their conditions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.device.worker.turns import quartiles
from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier
from edgesmith.ledger import Measurement

if TYPE_CHECKING:
    import numpy as np

    from edgesmith_calibration.sources import Batch

CPU_PROVIDER = "CPUExecutionProvider"
"""ONNX Runtime's name for its own kernels on processors."""

BUSY_SHARE = 0.05
"""Above this share of time spent waiting for a processor, absolute times are too long to be taken as they are."""


TOO_BUSY_SHARE = 0.2
"""Above this share, times tell more of the other work than of the model, and no later run takes them over."""
BUSY = "The machine was busy"
"""Begins the remark on times taken then."""


def busy_remarks(waiting_share: float) -> tuple[str, ...]:
    """Return what a reader of times must know of the share of them that was spent waiting for a processor."""
    if waiting_share <= BUSY_SHARE:
        return ()
    return (
        f"{BUSY}: the timed thread waited for a processor {waiting_share:.0%} of the time. "
        "Absolute times are too long, and ratios less exact than on an idle machine.",
    )


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """How long and how often to time. The defaults suit models of 1 ms to 1 s."""

    warmup_runs: int = 20
    """Most untimed runs per stage before the first round; fewer once times are stable."""
    runs_per_visit: int = 3
    """Timed runs each time a stage has its turn, after one untimed run that refills the caches."""
    min_rounds: int = 7
    max_rounds: int = 100
    max_seconds: float = 30.0
    """Time budget for all rounds together. Checked between rounds; `min_rounds` are always run."""
    precision: float = 0.01
    """Stop once the median ratio of each stage to the first is known to this relative half-width."""
    seed: int = 0
    """Seed of the order of the stages within each round."""

    def __post_init__(self) -> None:
        counts = (self.warmup_runs, self.runs_per_visit, self.min_rounds)
        if min(counts) < 1 or self.max_rounds < self.min_rounds or self.max_seconds <= 0 or self.precision <= 0:
            raise MeasurementError(
                f"latency plan {self} cannot be followed",
                expected="at least one run, visit and round, max_rounds >= min_rounds, positive time and precision",
                why="without rounds there is no median to report",
                fix="use LatencyPlan() or correct the value",
            )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How to measure peak memory."""

    runs: int = 3
    """Inferences in the child after loading."""
    repeats: int = 1
    """Fresh children. With more than one, quartiles are reported."""
    timeout_seconds: float = 300.0
    """Time after which one child is stopped."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must be equal for two numbers to be comparable."""

    runtime: str
    """Runtime with version, such as "onnxruntime 1.31.1"."""
    provider: str
    optimization: str
    threads: int | None
    """None on a GPU."""
    batch: int
    shapes: str
    """Input shapes, such as "input_ids 1x128"."""
    processor: str
    extra: Mapping[str, str | int | float] = field(default_factory=dict)
    """Further conditions of a device: power mode, clocks, cooling."""

    def as_mapping(self) -> dict[str, str | int | float]:
        """Return the conditions as the ledger stores them."""
        return {
            "runtime": self.runtime,
            "provider": self.provider,
            "optimization": self.optimization,
            **({} if self.threads is None else {"threads": self.threads}),
            "batch": self.batch,
            "shapes": self.shapes,
            "processor": self.processor,
            **self.extra,
        }


def onnxruntime_conditions(inputs: "Mapping[str, np.ndarray]", *, optimization: str, threads: int) -> Conditions:
    """Return the conditions under which ONNX Runtime runs `inputs` on the CPU of this machine."""
    import onnxruntime

    from edgesmith.measure.machine import processor_name
    from edgesmith_calibration.sources import Batch

    return Conditions(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        provider=CPU_PROVIDER,
        optimization=optimization,
        threads=threads,
        batch=Batch(inputs).size,
        shapes=name_shapes(inputs),
        processor=processor_name(),
    )


def name_shapes(inputs: "Mapping[str, np.ndarray]") -> str:
    """Return names and shapes of inputs as conditions have them."""
    return ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in inputs.items())


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Times of stages that took turns, so that noise of the machine hits all of them alike.

    `rounds` holds one median per stage and round, in milliseconds. Position i of every stage belongs to the same
    round, which is what makes a ratio of two stages less noisy than either time.
    """

    runs: Mapping[str, Sequence[float]]
    """All timed runs per stage, in milliseconds."""
    rounds: Mapping[str, Sequence[float]]
    tier: Tier
    conditions: Conditions
    waiting_share: float = 0.0
    """Share of the time in which the timed thread could have run but had no processor: other work on the machine."""
    notes: tuple[str, ...] = ()
    """What else a reader of the times must know."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Stages that do not run there, with the reason. They have no times."""

    def latency_ms(self, label: str) -> Measurement:
        """Return the median time of one run of `label` in milliseconds, with quartiles."""
        return summarize(self.runs[label], unit="ms", tier=self.tier, conditions=self.conditions.as_mapping())

    def speedup(self, label: str, against: str) -> Measurement:
        """Return how many times faster `label` is than `against`: the median over rounds of their ratio."""
        ratios = [before / after for before, after in zip(self.rounds[against], self.rounds[label], strict=True)]
        return summarize(ratios, unit="x", tier=self.tier, conditions=self.conditions.as_mapping())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the times must know."""
        return (*self.notes, *busy_remarks(self.waiting_share))


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Resident memory of a process that does nothing but run the model."""

    peak_bytes: Measurement
    """Highest resident memory of the whole process, loading included."""
    resident_bytes: int
    """Resident memory after the last run."""
    baseline_bytes: int
    """Peak of the same process before it opened the model: interpreter, numpy and runtime."""


class Clock(ABC):
    """Times stages in turns on one machine."""

    measures_cost: bool = True
    """Whether there are times, and of a runner memory too."""
    times_lowered: bool = False
    """Whether only lowered stages can be timed, because the runtime there takes nothing else."""
    tier: Tier
    """The tier of every number from this clock; never above what its hardware is."""

    @property
    def facts(self) -> dict[str, str | int]:
        """Return what is known of a device that was named to be timed on."""
        return {}

    @abstractmethod
    def conditions(self, inputs: "Mapping[str, np.ndarray]") -> Conditions:
        """Return the conditions under which `inputs` would be timed."""

    @abstractmethod
    def latency(
        self, entries: Mapping[str, Path], inputs: "Mapping[str, np.ndarray]", plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Time the model files of all stages in turns.

        Args:
            entries: Stage label to model file. Ratios in the stopping rule are taken against the first.
            inputs: One batch, fed to every stage. Names that a stage does not have are left out.
            plan: Rounds and time budget.

        Returns:
            Times of all stages. A device may leave those out that it does not run, with the reason.

        Raises:
            MeasurementError: A model cannot be loaded or run.
        """


class Runner(Clock):
    """Runs artifacts somewhere and returns outputs, latencies and memory use."""

    rounds_half: bool = False
    """Whether outputs are those of a device that rounds values in float16, which ONNX Runtime on a CPU does not."""

    def __init__(self, *, threads: int = 1, tier: Tier = Tier.REFERENCE) -> None:
        most = self.most_threads()
        if not 1 <= threads <= most:
            raise MeasurementError(
                f"{threads} threads were asked for",
                expected=f"a thread count from 1 to {most}",
                why="times need a fixed thread count, and far more threads than cores hang the device",
                fix="pass --threads with the number of cores that the deployed program will have",
            )
        self.threads = threads
        self.tier = tier

    def most_threads(self) -> int:
        """Return the largest thread count that is of any use on the device."""
        return 1024

    @abstractmethod
    def peak_memory(self, entry: Path, inputs: "Mapping[str, np.ndarray]", plan: MemoryPlan | None = None) -> MemoryUse:
        """Return the peak memory of a process that loads `entry` and runs `inputs`.

        Raises:
            MeasurementError: The process failed, was stopped by a signal, or took too long.
        """

    @abstractmethod
    def outputs(self, entry: Path, batches: "Iterable[Batch]") -> "Iterator[Mapping[str, np.ndarray]]":
        """Yield the outputs of `entry` for each batch, by output name. Keeps one batch at a time.

        Raises:
            MeasurementError: The model cannot be loaded or run.
        """


def summarize(
    values: Sequence[float],
    *,
    unit: str,
    tier: Tier,
    conditions: Mapping[str, str | int | float] | None = None,
) -> Measurement:
    """Return the median of `values` with quartiles (if there are several) as a ledger number."""
    low, median, high = quartiles(values)
    several = len(values) > 1
    return Measurement(
        value=median,
        unit=unit,
        tier=tier,
        samples=len(values),
        low=low if several else None,
        high=high if several else None,
        conditions=conditions or {},
    )
