"""What a runner must offer: latency of stages against each other, peak memory, and outputs, with their conditions."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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


def busy_remarks(waiting_share: float) -> tuple[str, ...]:
    """Return what a reader of times must know of the share of them that was spent waiting for a processor."""
    if waiting_share <= BUSY_SHARE:
        return ()
    return (
        f"The machine was busy: the timed thread waited for a processor {waiting_share:.0%} of the time. "
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
    threads: int
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
            "threads": self.threads,
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

    shapes = [f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in inputs.items()]
    return Conditions(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        provider=CPU_PROVIDER,
        optimization=optimization,
        threads=threads,
        batch=Batch(inputs).size,
        shapes=", ".join(shapes),
        processor=processor_name(),
    )


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
        return busy_remarks(self.waiting_share)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Resident memory of a process that does nothing but run the model."""

    peak_bytes: Measurement
    """Highest resident memory of the whole process, loading included."""
    resident_bytes: int
    """Resident memory after the last run."""
    baseline_bytes: int
    """Peak of the same process before it opened the model: interpreter, numpy and runtime."""


class Runner(ABC):
    """Runs artifacts somewhere and returns outputs, latencies and memory use."""

    measures_cost: bool = True
    """Whether latency and memory can be measured; otherwise it yields outputs only."""
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
        """The tier of every number from this runner; never above what its hardware is."""

    def most_threads(self) -> int:
        """Return the largest thread count that is of any use on the device."""
        return 1024

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

        Raises:
            MeasurementError: A model cannot be loaded or run.
        """

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


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile of a non-empty sequence."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
