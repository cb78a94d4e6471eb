"""The runner on this machine: ONNX Runtime on the CPU, optimized as far as it goes, since that is what users run."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.device.worker.turns import Run, interleave
from edgesmith.errors import MeasurementError
from edgesmith.measure.machine import usable_cores
from edgesmith.measure.memory import measure_in_child
from edgesmith.measure.runner import (
    CPU_PROVIDER,
    Conditions,
    LatencyComparison,
    LatencyPlan,
    MemoryPlan,
    MemoryUse,
    Runner,
    onnxruntime_conditions,
    summarize,
)

if TYPE_CHECKING:
    import numpy as np

    from edgesmith_calibration.sources import Batch


class LocalRunner(Runner):
    """Measures with ONNX Runtime on this machine's CPU.

    Graph optimization is at its highest level, intra-op threads are those of the constructor, and operators run one
    after another (one inter-op thread).
    """

    def most_threads(self) -> int:
        """Return four times the cores of this machine: enough to see what too many threads cost."""
        return 4 * usable_cores()

    def conditions(self, inputs: "Mapping[str, np.ndarray]") -> Conditions:
        """Return the conditions under which `inputs` would be timed."""
        return onnxruntime_conditions(inputs, optimization="all", threads=self.threads)

    def latency(
        self, entries: Mapping[str, Path], inputs: "Mapping[str, np.ndarray]", plan: LatencyPlan | None = None
    ) -> LatencyComparison:
        """Time the model files of all stages in turns, all loaded at once."""
        if not entries:
            raise MeasurementError(
                "no stage to time",
                expected="at least one model file",
                why="a comparison needs something to run",
                fix="pass the source or an artifact",
            )
        runs = {label: self._runner_of(entry, inputs) for label, entry in entries.items()}
        timing = interleave(runs, plan or LatencyPlan())
        return LatencyComparison(
            runs=timing.runs,
            rounds=timing.rounds,
            tier=self.tier,
            conditions=self.conditions(inputs),
            waiting_share=timing.waiting_share,
        )

    def peak_memory(self, entry: Path, inputs: "Mapping[str, np.ndarray]", plan: MemoryPlan | None = None) -> MemoryUse:
        """Return the peak memory of a fresh process that loads `entry` and runs `inputs`."""
        plan = plan or MemoryPlan()
        _require_file(entry)
        children = [
            measure_in_child(entry, inputs, plan, threads=self.threads, provider=CPU_PROVIDER)
            for _ in range(plan.repeats)
        ]
        conditions = self.conditions(inputs).as_mapping()
        baseline = max(child.baseline_bytes for child in children)
        return MemoryUse(
            peak_bytes=summarize(
                [float(child.peak_bytes) for child in children],
                unit="bytes",
                tier=self.tier,
                conditions={**conditions, "baseline_bytes": baseline},
            ),
            resident_bytes=max(child.resident_bytes for child in children),
            baseline_bytes=baseline,
        )

    def outputs(self, entry: Path, batches: "Iterable[Batch]") -> "Iterator[Mapping[str, np.ndarray]]":
        """Yield the outputs of `entry` for each batch, by output name."""
        session = self._session(entry)
        names = [output.name for output in session.get_outputs()]
        for batch in batches:
            values = _run(session, entry, _feed(session, entry, batch.inputs))
            yield dict(zip(names, values, strict=True))

    def _runner_of(self, entry: Path, inputs: "Mapping[str, np.ndarray]") -> Run:
        session = self._session(entry)
        feed = _feed(session, entry, inputs)
        _run(session, entry, feed)
        # Timed runs call the session directly: the guard above has shown that it accepts the feed.
        return functools.partial(session.run, None, feed)

    def _session(self, entry: Path) -> Any:
        import onnxruntime

        _require_file(entry)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that keep spinning after a run would take cores from the stage whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            return onnxruntime.InferenceSession(str(entry), options, providers=[CPU_PROVIDER])
        except _runtime_errors() as error:
            raise MeasurementError(
                f"ONNX Runtime cannot load {entry}: {_first_line(error)}",
                expected="a model that ONNX Runtime accepts on the CPU",
                why="a stage that does not load can neither be measured nor shipped",
                fix="open the file with `edgesmith inspect`, or undo the step that produced it",
            ) from error


def _run(session: Any, entry: Path, feed: "Mapping[str, np.ndarray]") -> "list[np.ndarray]":
    try:
        values: list[np.ndarray] = session.run(None, feed)
    except _runtime_errors() as error:
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feed.items())
        raise MeasurementError(
            f"ONNX Runtime cannot run {entry} on {shapes}: {_first_line(error)}",
            expected="inputs of the dtypes and shapes that the graph declares",
            why="a stage that does not run can neither be measured nor shipped",
            fix="compare the data with the inputs listed by `edgesmith inspect`",
        ) from error
    return values


def _feed(session: Any, entry: Path, inputs: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
    wanted = [value.name for value in session.get_inputs()]
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise MeasurementError(
            f"no data for input {', '.join(missing)} of {entry}",
            expected=f"arrays named {', '.join(wanted)}",
            why="the graph cannot run without all of its inputs",
            fix=f"rename the arrays (given: {', '.join(inputs) or 'none'}) or add the missing ones",
        )
    return {name: inputs[name] for name in wanted}


def _require_file(entry: Path) -> None:
    if not entry.is_file():
        raise MeasurementError(
            f"{entry} is not a file",
            expected="the model file of a stage",
            why="there is nothing to run",
            fix="check the path, or compile again if the artifact was deleted",
        )


@functools.cache
def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of ONNX Runtime, which share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    declared = (getattr(state, name) for name in dir(state))
    errors = tuple(kind for kind in declared if isinstance(kind, type) and issubclass(kind, Exception))
    return (*errors, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
