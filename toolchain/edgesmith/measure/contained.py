"""A runner and a metric of a plugin whose faults are errors that name them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgesmith.errors import EdgesmithError, MeasurementError
from edgesmith.host.containment import call_plugin, plugin_fault
from edgesmith.host.records import Tier
from edgesmith.measure.runner import Conditions, LatencyComparison, LatencyPlan, MemoryPlan, MemoryUse, Runner
from edgesmith_calibration.metrics import Metric

if TYPE_CHECKING:
    from edgesmith_calibration.sources import Batch

ResultT = TypeVar("ResultT")
Arrays = Mapping[str, np.ndarray]


class ContainedRunner(Runner):
    """Asks another runner.

    Args:
        author: How errors name it.
        kind: Its class.
        threads: Threads on the device.
        tier: The tier of its numbers.
    """

    def __init__(self, author: str, kind: type[Runner], *, threads: int, tier: Tier) -> None:
        self._author, self._module = author, kind.__module__
        self._runner = self._call("start", lambda: kind(threads=threads, tier=tier))
        self.threads, self.tier = self._runner.threads, self._runner.tier
        self.measures_cost, self.rounds_half = self._runner.measures_cost, self._runner.rounds_half

    def conditions(self, inputs: Arrays) -> Conditions:
        """Return its conditions."""
        return self._answer("conditions", Conditions, lambda: self._runner.conditions(inputs))

    def latency(
        self, entries: Mapping[str, Path], inputs: Arrays, plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Return its times, which are those of the stages that were asked for."""
        found = self._answer("latency", LatencyComparison, lambda: self._runner.latency(entries, inputs, plan))
        missing = [label for label in entries if not found.runs.get(label) or not found.rounds.get(label)]
        if missing:
            raise self._fault("latency", f"has no times of {', '.join(missing)}")
        return found

    def peak_memory(self, entry: Path, inputs: Arrays, plan: MemoryPlan | None = None) -> MemoryUse:
        """Return its peak memory."""
        return self._answer("peak_memory", MemoryUse, lambda: self._runner.peak_memory(entry, inputs, plan))

    def outputs(self, entry: Path, batches: "Iterable[Batch]") -> Iterator[Arrays]:
        """Yield its outputs."""
        stream = self._call("outputs", lambda: iter(self._runner.outputs(entry, batches)))
        while (found := self._call("outputs", lambda: next(stream, None))) is not None:
            if not isinstance(found, Mapping) or not all(isinstance(one, np.ndarray) for one in found.values()):
                raise self._fault("outputs", "yielded something else than a mapping of arrays")
            yield found

    def _answer(self, hook: str, kind: type[ResultT], work: Callable[[], object]) -> ResultT:
        found = self._call(hook, work)
        if not isinstance(found, kind):
            raise self._fault(hook, f"returned an object of type {type(found).__name__}, not {kind.__name__}")
        return found

    def _call(self, hook: str, work: Callable[[], ResultT]) -> ResultT:
        return call_plugin(work, f"{self._author}: its {hook}", MeasurementError, module=self._module)

    def _fault(self, hook: str, problem: str) -> EdgesmithError:
        return plugin_fault(MeasurementError, f"{self._author}: its {hook}", problem)


@dataclass(frozen=True, slots=True)
class MetricMaker:
    """Makes metrics of one kind whose faults name `author`."""

    author: str
    kind: type[Metric]

    def __call__(self) -> Metric:
        """Return a fresh metric."""
        return ContainedMetric(self.author, self.kind)


class ContainedMetric(Metric):
    """Asks another metric, which gets arrays that it cannot change.

    Args:
        author: How errors name it.
        kind: Its class.
    """

    def __init__(self, author: str, kind: type[Metric]) -> None:
        self._author, self._module = author, kind.__module__
        self._metric = self._call("start", kind)

    def update(self, outputs: Arrays, labels: Any = None, reference: Arrays | None = None) -> None:
        """Add one batch."""
        given = (_frozen(outputs), None if labels is None else _read_only(labels))
        compared = None if reference is None else _frozen(reference)
        self._call("update", lambda: self._metric.update(*given, compared))

    def result(self) -> float:
        """Return the score."""
        found: object = self._call("result", self._metric.result)
        if not isinstance(found, Real) or isinstance(found, bool):
            problem = f"returned an object of type {type(found).__name__}, not a number"
            raise plugin_fault(MeasurementError, f"{self._author}: its result", problem)
        return float(found)

    def _call(self, hook: str, work: Callable[[], ResultT]) -> ResultT:
        return call_plugin(work, f"{self._author}: its {hook}", MeasurementError, module=self._module)


def _frozen(arrays: Arrays) -> Arrays:
    return {name: _read_only(array) for name, array in arrays.items()}


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
