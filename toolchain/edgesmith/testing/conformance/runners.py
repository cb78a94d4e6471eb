"""Checks of a runner. It times and runs two tiny models; nothing is said about how fast they are."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.errors import EdgesmithError, MeasurementError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.records import RunnerRecord
from edgesmith.measure.runner import Conditions, Runner
from edgesmith.serialization import write_onnx
from edgesmith.testing.conformance.bench import Bench
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok
from edgesmith.testing.models import tiny_cnn, tiny_mlp
from edgesmith.testing.runs import QUICK
from edgesmith_calibration.sources import Batch

_REFUSE = "Raise edgesmith.errors.MeasurementError with its four parts."
_CLOSE = 1e-3
"""Relative difference of outputs that another kernel in float32 may make on a tiny model, with much room."""


class RunnerBench(Bench[RunnerRecord]):
    """A runner, and two model files."""

    @cached_property
    def runner(self) -> Runner:
        """An instance with one thread."""
        return self.registry.load(self.record)(threads=1)

    @cached_property
    def inputs(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """One batch for both files."""
        return sample_inputs(tiny_mlp().ir)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Two model files with the same inputs, by label."""
        files = {f"seed {seed}": Path(self.scratch) / f"mlp{seed}.onnx" for seed in (0, 1)}
        for seed, path in enumerate(files.values()):
            write_onnx(tiny_mlp(seed=seed).ir, path)
        return files


def it_states_its_conditions(bench: RunnerBench) -> CheckResult:
    """`conditions` says what must be equal for two numbers to be comparable, and says it again."""
    first, again = (bench.runner.conditions(bench.inputs) for _ in range(2))
    if not isinstance(first, Conditions) or not first.runtime or first != again:
        return failed(f"its conditions are {first!r}, then {again!r}", "Return the same Conditions for equal inputs.")
    return ok()


def stages_are_timed_together(bench: RunnerBench) -> CheckResult:
    """`latency` gives each stage positive times, as many rounds for each, at the tier of the runner."""
    if not bench.runner.measures_cost:
        return not_applicable("The runner says that it measures no cost.")
    timed = bench.runner.latency(bench.files, bench.inputs, QUICK)
    if set(timed.rounds) != set(bench.files) or len({len(rounds) for rounds in timed.rounds.values()}) != 1:
        return failed(
            f"it timed {sorted(timed.rounds)} where {sorted(bench.files)} were given",
            "Let the stages take turns, and keep one median for each stage and round.",
        )
    if min(time for times in timed.runs.values() for time in times) <= 0:
        return failed("a time is not positive", "Give milliseconds of a clock that never goes back.")
    return ok() if timed.tier is bench.runner.tier else failed(f"its times are of tier {timed.tier}", "Use self.tier.")


def memory_is_a_number_of_bytes(bench: RunnerBench) -> CheckResult:
    """`peak_memory` gives a positive number of bytes."""
    if not bench.runner.measures_cost:
        return not_applicable("The runner says that it measures no cost.")
    peak = bench.runner.peak_memory(next(iter(bench.files.values())), bench.inputs).peak_bytes
    if peak.unit == "bytes" and peak.value > 0:
        return ok()
    return failed(f"peak memory is {peak.value} {peak.unit}", "Return bytes, or set measures_cost = False.")


def outputs_are_those_of_the_graph(bench: RunnerBench) -> CheckResult:
    """`outputs` yields one result for each batch, close to what ONNX Runtime computes."""
    path = next(iter(bench.files.values()))
    results = list(bench.runner.outputs(path, [Batch(bench.inputs), Batch(bench.inputs)]))
    expected = ReferenceSession(tiny_mlp().ir).run(bench.inputs)
    if len(results) != 2 or any(set(result) != set(expected) for result in results):
        return failed(
            f"two batches gave {len(results)} results, with the outputs {[sorted(result) for result in results]}",
            "Yield one mapping of output names to arrays for each batch.",
        )
    for name, values in expected.items():
        largest = float(np.abs(values).max())
        if float(np.abs(np.asarray(results[0][name]) - values).max()) > _CLOSE * largest:
            return failed(f"output {name!r} differs from the reference", "Feed inputs and read outputs by their names.")
    return ok()


def a_file_that_cannot_run_is_refused(bench: RunnerBench) -> CheckResult:
    """A missing file, and inputs that do not fit, are refused with a MeasurementError."""
    wrong = Path(bench.scratch) / "cnn.onnx"
    write_onnx(tiny_cnn().ir, wrong)
    for path, words in ((Path(bench.scratch) / "missing.onnx", "a missing file"), (wrong, "a model of other inputs")):
        try:
            list(bench.runner.outputs(path, [Batch(bench.inputs)]))
        except MeasurementError:
            continue
        except (EdgesmithError, OSError, ValueError, KeyError, RuntimeError) as error:
            return failed(f"{words} gives {type(error).__name__}", _REFUSE)
        return failed(f"{words} is run without a word", _REFUSE)
    return ok()


RUNNER_CHECKS = (
    it_states_its_conditions,
    stages_are_timed_together,
    memory_is_a_number_of_bytes,
    outputs_are_those_of_the_graph,
    a_file_that_cannot_run_is_refused,
)
