"""What a method may try while it works: lowering, timing in turns, and the metric of the run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgesmith
from edgesmith.data import RandomInputs
from edgesmith.errors import EdgesmithError, MeasurementError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith.host.loader import load_registry
from edgesmith.ledger import LedgerRow, load_ledger
from edgesmith.measure.local import LocalRunner
from edgesmith.measure.runner import LatencyComparison, LatencyPlan
from edgesmith.pipeline import Workshop, _cached
from edgesmith.plan import make_plan
from edgesmith.progress import SilentProgress
from edgesmith.recipe import Recipe
from edgesmith.store import Store
from edgesmith.testing import tiny_mlp
from edgesmith.trial import RunnerTrial
from edgesmith_calibration.sources import ArraySource
from tests.pipeline.conftest import Job
from tests.pipeline.test_robustness import settings

QUICK = LatencyPlan(warmup_runs=2, min_rounds=3, max_rounds=3)

CURIOUS = """
from pydantic import BaseModel
class Options(BaseModel):
    pass
class Curious(Method[Options]):
    def check(self, model, context):
        if context.trial is None or context.scoring is None:
            return Verdict.refuse("nothing can be tried")
        return Verdict.ok()
    def apply(self, model, context):
        lowered = context.trial.lower(model)
        (ratio,) = context.trial.speedups([lowered], context.trial.lower(model.clone()), max_seconds=0.5)
        metric = context.scoring.make()
        batch = next(context.calibration.batches(8))
        from edgesmith.execution.reference import ReferenceSession
        metric.update(ReferenceSession(lowered.ir).run(batch.inputs), batch.labels)
        context.notes.remark(f"{context.scoring.name} {metric.result():g}, ratio in {ratio.unit}: {ratio.value > 0}")
        copy = model.clone()
        copy.graph.doc_string = "tried"
        return copy
@hookimpl
def register_methods():
    return [MethodRecord(name="curious", version="1", summary="Tries.", entry=f"{__name__}:Curious",
                         kind=Kind.ANALYSE, options=f"{__name__}:Options", guarantee=Guarantee.EXACT)]
"""


class RecordingRunner(LocalRunner):
    """Returns made-up times, and remembers what it was asked to time."""

    def __init__(self):
        super().__init__(threads=1)
        self.seen = {}

    def latency(self, entries, inputs, plan=None):
        self.seen = {label: ReferenceSession(path) for label, path in entries.items()}
        self.inputs, self.plan = inputs, plan
        rounds = {"baseline": [4.0, 6.0, 8.0], "0": [2.0, 3.0, 4.0], "1": [8.0, 6.0, 4.0]}
        return LatencyComparison(rounds, rounds, self.tier, self.conditions(inputs))


def make_trial(tmp_path, runner, calibration=None):
    plan = make_plan(load_registry(), Recipe(steps=()), "onnx-cpu")
    model = tiny_mlp()
    context = Context(None, plan.target.dialect, tmp_path, calibration=RandomInputs(model))
    inputs = {"x": np.zeros((3, 8), np.float32)}
    return model, RunnerTrial(plan, runner, inputs, calibration, QUICK, context)


def test_speedups_are_ratios_to_the_baseline_round_by_round(tmp_path):
    runner = RecordingRunner()
    model, trial = make_trial(tmp_path, runner)
    first, second = trial.speedups([model, tiny_mlp(seed=1)], model, max_seconds=2.5)
    assert (first.value, first.low, first.high) == (2.0, 2.0, 2.0)
    assert (second.value, second.low, second.high) == (1.0, 0.75, 1.5)
    assert first.tier is runner.tier and first.unit == "x" and first.samples == 3
    assert runner.plan.max_seconds == 2.5 and runner.plan.max_rounds == QUICK.max_rounds


def test_an_alternative_that_does_not_run_is_never_fast_enough_and_its_remark_is_kept_once(tmp_path, monkeypatch):
    runner, times = RecordingRunner(), RecordingRunner.latency
    failing = {"failures": {"1": "made up"}, "notes": ("a note of the clock",)}
    monkeypatch.setattr(runner, "latency", lambda *asked: replace(times(runner, *asked), **failing))
    model, trial = make_trial(tmp_path, runner)
    for _ in range(2):
        first, second = trial.speedups([model, tiny_mlp(seed=1)], model)
    assert first.value == 2.0 and 0 < second.value <= second.high < 0.01
    assert trial.context.notes.remarks == ["a note of the clock", "An alternative is never chosen: made up"]
    failing["failures"] = {"baseline": "made up"}
    with pytest.raises(MeasurementError, match="model before them does not run: made up"):
        trial.speedups([model], model)


def test_what_is_timed_is_the_model_that_was_given(tmp_path):
    runner = RecordingRunner()
    model, trial = make_trial(tmp_path, runner)
    other = tiny_mlp(seed=1)
    trial.speedups([model, other], model)
    x = {"x": np.random.default_rng(0).normal(0, 1, (3, 8)).astype(np.float32)}
    for label, given in (("baseline", model), ("0", model), ("1", other)):
        np.testing.assert_allclose(runner.seen[label].run(x)["y"], ReferenceSession(given.ir).run(x)["y"], rtol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_models_are_timed_on_calibration_data_where_there_is_some(tmp_path):
    runner = RecordingRunner()
    data = np.random.default_rng(0).normal(0, 1, (10, 8)).astype(np.float32)
    model, trial = make_trial(tmp_path, runner, ArraySource({"x": data}))
    trial.speedups([model, model], model)
    np.testing.assert_array_equal(runner.inputs["x"], data[:3])
    model, trial = make_trial(tmp_path, runner)
    trial.speedups([model, model], model)
    np.testing.assert_array_equal(runner.inputs["x"], np.zeros((3, 8)))


def test_nothing_to_time_is_nothing(tmp_path):
    model, trial = make_trial(tmp_path, RecordingRunner())
    assert trial.speedups([], model) == ()


def test_lowering_proves_that_outputs_stay_equal_and_leaves_the_model_alone(tmp_path):
    model, trial = make_trial(tmp_path, LocalRunner(threads=1))
    digest = model.digest()
    x = {"x": np.random.default_rng(0).normal(0, 1, (3, 8)).astype(np.float32)}
    lowered = trial.lower(model)
    np.testing.assert_allclose(ReferenceSession(lowered.ir).run(x)["y"], ReferenceSession(model.ir).run(x)["y"], 1e-5)
    assert model.digest() == digest


def test_a_model_that_the_target_refuses_is_an_error_with_its_reason(tmp_path):
    model, trial = make_trial(tmp_path, LocalRunner(threads=1))
    future = model.clone()
    future.graph.opset_imports[""] = 99
    with pytest.raises(EdgesmithError, match="99"):
        trial.lower(future)


def test_a_method_of_a_stranger_can_lower_time_and_score(job: Job):
    recipe = {"steps": [{"method": "curious"}]}
    edgesmith.compile(
        job.model, out=job.folder / "artifact", recipe=recipe, data=job.data, settings=settings(job.folder, CURIOUS)
    )
    row = load_ledger(Path(job.folder / "artifact")).rows[1]
    # The labels are the model's own answers.
    assert "accuracy 100, ratio in x: True" in row.remarks


def test_the_recipe_auto_measures_what_it_chooses(job: Job):
    artifact = edgesmith.compile(
        job.model, out=job.folder / "artifact", recipe="auto", data=job.data, settings=settings(job.folder)
    )
    row = load_ledger(artifact.directory).rows[1]
    told = " ".join(row.remarks)
    assert "Within the budget" in told and "times the speed of float" in told
    assert row.errors[0].sqnr_db > 15


def test_a_step_that_asks_for_times_is_kept_for_what_was_timed_alone(tmp_path):
    model, trial = make_trial(tmp_path, RecordingRunner())
    workshop = Workshop(load_registry(), Store(tmp_path / "store"), SilentProgress(), threads=1)

    def is_known(device, *, asks):
        def work(notes, scratch, checkpoint):
            tried = replace(trial, context=replace(trial.context, notes=notes))
            assert not asks or tried.measures_latency
            return model, 0.0, ""

        keys = (f"step, {asks}", f"step, {asks}, {device}")
        return _cached(keys, LedgerRow(index=0, stage="step"), workshop, work).row.cached

    assert [is_known(device, asks=True) for device in ("a", "a", "b")] == [False, True, False]
    assert [is_known(device, asks=False) for device in ("a", "b")] == [False, True]
