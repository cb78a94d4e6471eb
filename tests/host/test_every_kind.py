"""Every call of a target, rule, metric, runner and frontend, broken in every way that it can break."""

import logging
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.isolation.processes import let_time_run_out_at

import edgesmith
from edgesmith import Isolation
from edgesmith.api import Settings, load_source
from edgesmith.errors import EdgesmithError, MeasurementError, ModelError, StepError, TargetError
from edgesmith.host.building import build_files, check_target, explain_engine, finish_files
from edgesmith.host.context import Context
from edgesmith.host.lint import run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.records import Tier
from edgesmith.host.step import run_lowering
from edgesmith.host.targets import find_target
from edgesmith.isolation.metric import IsolatedMetrics
from edgesmith.isolation.target import IsolatedTarget
from edgesmith.ledger import load_ledger
from edgesmith.measure.contained import ContainedRunner, MetricMaker
from edgesmith.measure.runner import LatencyPlan
from edgesmith.pipeline import Workshop
from edgesmith.progress import SilentProgress
from edgesmith.serialization import write_onnx
from edgesmith.store import Store
from edgesmith.testing import isolated_registry, tiny_mlp
from edgesmith_calibration.sources import Batch

PLUGIN = Path(__file__).parents[1] / "bad_plugins" / "breaks_as_told.py"
LIMITS = Isolation(120, 700)
"""Loading what is needed counts as well."""
BATCH = {"x": np.ones((2, 8), np.float32)}


@pytest.fixture(autouse=True)
def time_that_runs_out(tmp_path, monkeypatch) -> None:
    """Let time run out for what never ends, once it is there."""
    monkeypatch.setenv("NEVER_ENDING", str(tmp_path / "never_ending"))
    let_time_run_out_at(tmp_path / "never_ending", monkeypatch)


class Bench:
    """One plugin, with everything that its parts are tried on."""

    def __init__(self, folder: Path, isolation: Isolation | None) -> None:
        self.folder, self.isolation = folder, isolation
        self.registry = isolated_registry(PLUGIN)
        self.model = tiny_mlp()
        (folder / "built").mkdir()
        self.entry = write_onnx(self.model.ir, folder / "mlp.onnx") or folder / "mlp.onnx"
        self.stack = ExitStack()

    def target(self, call: str) -> object:
        record, target = find_target(self.registry, "told")
        if self.isolation is not None:
            target = IsolatedTarget(self.registry, record, target, self.isolation)
        if call == "check":
            return check_target(record, target, self.model).status
        if call == "lower":
            context = Context(None, target.dialect, self.folder)
            return run_lowering(record, target, self.model, context).model.digest() == self.model.digest()
        if call == "build":
            return build_files(record, target, self.model, self.folder / "built").recipe["by"]
        if call == "read_engine":
            return explain_engine(record, target, self.model, "layers").layers
        return finish_files(record, target, self.folder / "built").get("finished")

    def lint(self, _: str) -> object:
        record, target = find_target(self.registry, "told")
        (found,) = run_lints(self.registry, record, self.model, target.dialect, isolation=self.isolation)
        return found.finding.hazard

    def metric(self, _: str) -> object:
        record = self.registry.metric("told")
        make = MetricMaker("Metric told 1.0", self.registry.load(record))
        if self.isolation is not None:
            make = self.stack.enter_context(IsolatedMetrics(self.registry, record, "Metric told 1.0", self.isolation))
        first, second = make(), make()
        outputs = {"y": np.arange(6, dtype=np.float32).reshape(2, 3)}
        for metric in (first, second):
            metric.update(outputs, None, {"y": outputs["y"] + 0.5})
        assert outputs["y"].sum() == 15
        return first.result() == second.result()

    def runner(self, call: str) -> object:
        record = self.registry.runner("told")
        runner = ContainedRunner("Runner told 1.0", self.registry.load(record), threads=1, tier=Tier.SIMULATED)
        if call == "conditions":
            return runner.conditions(BATCH).runtime
        if call == "latency":
            return runner.latency({"source": self.folder / "mlp.onnx"}, BATCH).latency_ms("source").value
        if call == "peak_memory":
            return runner.peak_memory(self.folder / "mlp.onnx", BATCH).baseline_bytes
        return [sorted(one) for one in runner.outputs(self.folder / "mlp.onnx", [Batch(BATCH)])]

    def frontend(self, _: str) -> object:
        workshop = Workshop(self.registry, Store(self.folder / "store"), SilentProgress(), 1)
        return load_source(self.folder / "mlp.onnx", workshop).graph.num_nodes()

    def ask(self, place: str) -> object:
        kind, _, call = place.partition(".")
        with self.stack:
            return getattr(self, kind)(call)


HERE = [
    ("target.start", "crash", TargetError, "its start crashed with ZeroDivisionError: told so at breaks_as_told.py:"),
    ("target.start", "garbage", TargetError, "its start gave it a dialect of type int, not a Dialect"),
    ("target.check", "crash", TargetError, "Target told 1.0: its check crashed with ZeroDivisionError: told so at bre"),
    ("target.check", "garbage", TargetError, "Target told 1.0: its check returned int and no Verdict"),
    ("target.check", "edit", TargetError, "Target told 1.0: its check edited the graph that it was given"),
    ("target.lower", "crash", StepError, "target told 1.0: crashed with ZeroDivisionError: told so at breaks_as_told"),
    ("target.lower", "garbage", StepError, "target told 1.0: returned an object of type int"),
    ("target.lower", "edit", StepError, "target told 1.0: edited the graph it was given"),
    ("target.build", "crash", TargetError, "Target told 1.0: its build crashed with ZeroDivisionError: told so at bre"),
    ("target.build", "garbage", TargetError, "Target told 1.0: its build returned int and no Build"),
    ("target.build", "edit", TargetError, "Target told 1.0: its build edited the graph that it was given"),
    ("target.finish", "crash", TargetError, "Target told 1.0: its finish crashed with ZeroDivisionError: told so"),
    ("target.finish", "garbage", TargetError, "Target told 1.0: its finish returned no facts that JSON can hold"),
    ("target.read_engine", "crash", TargetError, "Target told 1.0: its read_engine crashed with ZeroDivisionError: to"),
    ("target.read_engine", "garbage", TargetError, "its read_engine returned int and no EngineReport"),
    ("metric.start", "crash", MeasurementError, "Metric told 1.0: its start crashed with ZeroDivisionError: told so"),
    ("metric.update", "crash", MeasurementError, "Metric told 1.0: its update crashed with ZeroDivisionError: told so"),
    ("metric.update", "edit", MeasurementError, "its update crashed with ValueError: assignment destination is read-"),
    ("metric.result", "crash", MeasurementError, "Metric told 1.0: its result crashed with ZeroDivisionError: told so"),
    ("metric.result", "garbage", MeasurementError, "its result returned an object of type str, not a number"),
]
"""Place, way, error, and what it says; with isolation the same."""

NOT_ISOLATED = [
    ("runner.start", "crash", MeasurementError, "Runner told 1.0: its start crashed with ZeroDivisionError: told so"),
    ("runner.conditions", "crash", MeasurementError, "Runner told 1.0: its conditions crashed with ZeroDivisionError"),
    ("runner.conditions", "garbage", MeasurementError, "its conditions returned an object of type int, not Conditions"),
    ("runner.latency", "crash", MeasurementError, "Runner told 1.0: its latency crashed with ZeroDivisionError: told"),
    ("runner.latency", "garbage", MeasurementError, "its latency returned an object of type int, not LatencyCompariso"),
    ("runner.peak_memory", "crash", MeasurementError, "Runner told 1.0: its peak_memory crashed with ZeroDivisionErr"),
    ("runner.peak_memory", "garbage", MeasurementError, "its peak_memory returned an object of type int, not MemoryUs"),
    ("runner.outputs", "crash", MeasurementError, "Runner told 1.0: its outputs crashed with ZeroDivisionError: told"),
    ("runner.outputs", "garbage", MeasurementError, "its outputs yielded something else than a mapping of arrays"),
    ("frontend.accepts", "crash", ModelError, "Broken: told (ZeroDivisionError: told so)"),
    ("frontend.fingerprint", "crash", ModelError, "its fingerprint crashed with ZeroDivisionError: told so at breaks"),
    ("frontend.fingerprint", "garbage", ModelError, "its fingerprint returned an object of type int"),
    ("frontend.load", "crash", ModelError, "its load crashed with ZeroDivisionError: told so at breaks_as_told.py:"),
    ("frontend.load", "garbage", ModelError, "its load returned an object of type int"),
]

LEFT = "ended its process with code 5 before"
ENDED = [
    ("target.lower", "never", StepError, "target told 1.0: did not end within 120 s, in told at breaks_as_told.py:"),
    ("target.build", "eat", TargetError, "MiB of memory, and may take 700, in told at breaks_as_told.py:"),
    ("target.finish", "leave", TargetError, LEFT),
    ("metric.start", "leave", MeasurementError, f"Metric told 1.0: {LEFT}"),
    ("metric.update", "never", MeasurementError, "Metric told 1.0: did not end within 120 s, in told at breaks_as_to"),
    ("metric.result", "eat", MeasurementError, "MiB of memory, and may take 700, in told at breaks_as_told.py:"),
]

SOUND = {
    "target.start": True,
    "target.check": "ok",
    "target.lower": True,
    "target.build": "told",
    "target.finish": True,
    "target.read_engine": (),
    "lint.rule": "It is there.",
    "metric.start": True,
    "metric.update": True,
    "metric.result": True,
    "runner.start": [["y"]],
    "runner.conditions": "fake",
    "runner.latency": 1.0,
    "runner.peak_memory": 0,
    "runner.outputs": [["y"]],
    "frontend.accepts": 3,
    "frontend.fingerprint": 3,
    "frontend.load": 3,
}


def breaks(monkeypatch, tmp_path, isolation, place, way, kind, words) -> None:
    """Require an error that names the fault, a model as it was, and a plugin that then works where it is sound."""
    bench = Bench(tmp_path, isolation)
    digest = bench.model.digest()
    monkeypatch.setenv("BREAK_HERE", f"{place}:{way}")
    with pytest.raises(kind) as caught:
        bench.ask(place)
    assert words in caught.value.what
    assert caught.value.fix
    assert bench.model.digest() == digest
    monkeypatch.delenv("BREAK_HERE")
    assert psutil.Process().children(recursive=True) == []
    if isolation is None:
        for path in (tmp_path / "built").iterdir():
            path.unlink()
        assert bench.ask(place) == SOUND[place]


@pytest.mark.parametrize(("place", "way", "kind", "words"), [*HERE, *NOT_ISOLATED])
def test_every_fault_is_one_error_that_names_it(monkeypatch, tmp_path, caplog, place, way, kind, words):
    caplog.set_level(logging.DEBUG, "edgesmith")
    breaks(monkeypatch, tmp_path, None, place, way, kind, words)
    assert ('raise ZeroDivisionError("told so")' in caplog.text) == (way == "crash")


@pytest.mark.parametrize(
    ("place", "way", "kind", "words"),
    [
        one
        for one in HERE
        if one[:2] in (("target.lower", "crash"), ("target.build", "edit"), ("metric.update", "edit"))
    ],
)
def test_with_isolation_it_is_the_same_error(monkeypatch, tmp_path, caplog, place, way, kind, words):
    caplog.set_level(logging.DEBUG, "edgesmith")
    breaks(monkeypatch, tmp_path, Isolation(60, 2000), place, way, kind, words)
    assert ("Traceback (most recent call last)" in caplog.text) == (place != "target.build")


@pytest.mark.parametrize(("place", "way", "kind", "words"), ENDED)
def test_what_breaks_its_process_is_contained_with_isolation(monkeypatch, tmp_path, place, way, kind, words):
    breaks(monkeypatch, tmp_path, LIMITS, place, way, kind, words)


@pytest.mark.parametrize("place", ["target.lower", "lint.rule", "metric.result"])
def test_with_isolation_what_is_sound_works(tmp_path, place):
    assert Bench(tmp_path, Isolation(60, 2000)).ask(place) == SOUND[place]


@pytest.mark.parametrize(
    ("way", "isolation", "words"),
    [
        ("crash", None, "crashed: ZeroDivisionError: told so."),
        ("garbage", None, "returned int, not a Finding of texts."),
        ("edit", None, "edited the graph that it was given."),
        ("leave", LIMITS, f"{LEFT} the step was done."),
        ("never", LIMITS, "did not end within 120 s, in told at breaks_as_told.py:"),
    ],
)
def test_a_rule_that_fails_is_a_finding_and_stops_nothing(monkeypatch, tmp_path, way, isolation, words):
    bench = Bench(tmp_path, isolation)
    digest = bench.model.digest()
    monkeypatch.setenv("BREAK_HERE", f"lint.rule:{way}")
    hazard = bench.ask("lint.rule")
    assert hazard.startswith("The rule of file:breaks_as_told 0+") and words in hazard
    assert bench.model.digest() == digest


def compiled(tmp_path: Path, *, isolation: Isolation | None = None) -> edgesmith.Artifact:
    settings = Settings(
        threads=1,
        store=tmp_path / "store",
        latency_plan=LatencyPlan(warmup_runs=1, min_rounds=3, max_rounds=3),
        registry=load_registry(files=[PLUGIN]),
        isolation=isolation,
    )
    recipe = {"steps": [{"method": "quantize-weights"}], "metric": "told", "target": "told"}
    return edgesmith.compile(tmp_path / "mlp.onnx", out=tmp_path / "artifact", recipe=recipe, settings=settings)


@pytest.mark.parametrize("isolation", [None, Isolation(60, 2000)])
def test_earlier_results_survive_a_fault_and_a_corrected_run_goes_on(monkeypatch, tmp_path, isolation):
    write_onnx(tiny_mlp().ir, tmp_path / "mlp.onnx")
    way = "crash" if isolation is None else "leave"
    monkeypatch.setenv("BREAK_HERE", f"target.lower:{way}")
    with pytest.raises(EdgesmithError, match=r"target told 1\.0"):
        compiled(tmp_path, isolation=isolation)
    assert not (tmp_path / "artifact").exists()
    monkeypatch.delenv("BREAK_HERE")
    # The store knows no difference between runs with isolation and without.
    artifact = compiled(tmp_path)
    rows = load_ledger(artifact.directory).rows
    assert [row.cached for row in rows[1:2]] == [True]
    assert "told: It is there. Nothing." in rows[-1].remarks
    assert rows[-1].metric is not None
