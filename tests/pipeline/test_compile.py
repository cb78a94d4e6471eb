"""The whole path: a file in, a measured artifact out, the same from Python and from the command line."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import edgesmith
from edgesmith import pipeline
from edgesmith.api import Settings
from edgesmith.cli import main
from edgesmith.host.loader import load_registry
from edgesmith.ledger import load_ledger
from edgesmith.measure.local import LocalRunner
from edgesmith.measure.runner import LatencyPlan
from edgesmith.stage import Stage
from tests.pipeline.conftest import Job

QUICK = LatencyPlan(warmup_runs=2, min_rounds=3, max_rounds=3)


def settings(job: Job, store: str = "store") -> Settings:
    return Settings(threads=1, store=job.folder / store, latency_plan=QUICK)


def test_samples_of_a_file_that_is_divided_are_counted_once(job: Job) -> None:
    plain = {"version": 1, "steps": []}
    data, out = job.folder / "evaluation.npz", job.folder / "artifact"
    ledger = edgesmith.compile(job.model, out=out, data=data, recipe=plain, settings=settings(job)).ledger
    assert ledger.data
    assert all(" samples of " in text and " samples, " not in text for text in ledger.data.values()), ledger.data


def test_a_network_becomes_a_measured_artifact(job: Job) -> None:
    artifact = edgesmith.compile(job.model, out=job.folder / "artifact", data=job.data, settings=settings(job))
    ledger = artifact.ledger
    assert [row.stage for row in ledger.rows] == ["source", "quantize-int8", "lower to onnx-cpu"]
    for row in ledger.rows:
        assert row.metric and row.latency_ms and row.size_bytes and row.peak_memory_bytes and row.macs
        assert row.latency_ms.low <= row.latency_ms.value <= row.latency_ms.high
        assert row.latency_ms.conditions["threads"] == 1
    source, final = ledger.rows[0], ledger.rows[-1]
    assert source.metric.value == 100.0 and final.metric.value >= 90.0
    assert final.size_bytes.value < source.size_bytes.value
    assert 20 < min(error.sqnr_db for error in final.errors) < 80
    assert final.layers and final.speedup

    session = onnxruntime.InferenceSession(str(artifact.entry), providers=["CPUExecutionProvider"])
    data = np.load(job.folder / "evaluation.npz")
    answers = session.run(None, {"image": data["image"]})[0].argmax(axis=1)
    assert np.mean(answers == data["labels"]) * 100 == pytest.approx(final.metric.value)
    report = artifact.report.read_text()
    assert "quantize-int8" in report and "<script src" not in report


@pytest.mark.parametrize("batch_size", [1, 3])
def test_without_data_batches_of_the_settings_are_measured(job: Job, batch_size: int) -> None:
    artifact = edgesmith.compile(
        job.model, out=job.folder / "artifact", recipe="float", settings=replace(settings(job), batch_size=batch_size)
    )
    source = artifact.ledger.rows[0]
    assert source.latency_ms and source.latency_ms.conditions["batch"] == batch_size
    counted = json.loads((artifact.directory / "structure.json").read_text())["cost"]
    assert counted["dimensions"] == {"batch": batch_size}
    assert counted["macs"] == source.macs
    assert f"MACs are counted for batch {batch_size}." in artifact.report.read_text()


def test_the_artifact_validates_itself_and_notices_damage(job: Job) -> None:
    artifact = edgesmith.compile(job.model, out=job.folder / "artifact", data=job.data, settings=settings(job))
    # Isolated mode: the validator must not need Edgesmith, nor the folder it is started in.
    command = [sys.executable, "-I", str(artifact.directory / "validate.py")]
    passed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert passed.returncode == 0, passed.stderr
    answer = json.loads(passed.stdout)
    assert answer["passed"] is True
    assert "not_checked" not in answer
    recipe = artifact.directory / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "# changed\n")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and json.loads(failed.stdout)["damaged_files"] == ["recipe.yaml"]


def test_two_runs_give_the_same_bytes(job: Job) -> None:
    first = edgesmith.compile(job.model, out=job.folder / "a", data=job.data, settings=settings(job, "store-a"))
    second = edgesmith.compile(job.model, out=job.folder / "b", data=job.data, settings=settings(job, "store-b"))
    assert first.entry.read_bytes() == second.entry.read_bytes()


def pretend_waiting(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Let each comparison of times in turn say that this share of it was spent waiting, whatever else runs here."""
    measure, told = LocalRunner.latency, iter(shares)
    monkeypatch.setattr(LocalRunner, "latency", lambda *given: replace(measure(*given), waiting_share=next(told)))


def test_a_second_run_takes_every_step_and_number_from_the_store(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_waiting(monkeypatch, 0.0)
    first = edgesmith.compile(job.model, out=job.folder / "a", data=job.data, settings=settings(job))
    second = edgesmith.compile(job.model, out=job.folder / "a", data=job.data, settings=settings(job))
    assert all(row.cached for row in second.ledger.rows[1:]) and not any(row.cached for row in first.ledger.rows)
    assert [row.latency_ms for row in first.ledger.rows] == [row.latency_ms for row in second.ledger.rows]
    assert [row.layers for row in first.ledger.rows] == [row.layers for row in second.ledger.rows]
    told = [" ".join(run.ledger.rows[0].remarks) for run in (first, second)]
    assert "Times were taken on" not in told[0]
    assert re.search(r"Times were taken on \d{4}-\d\d-\d\d \d\d:\d\d UTC, and are from the store", told[1])


def test_times_of_a_machine_that_was_busy_are_not_taken_over(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_waiting(monkeypatch, 0.84, 0.1)
    out = job.folder / "a"
    runs = [edgesmith.compile(job.model, out=out, data=job.data, settings=settings(job)) for _ in range(3)]
    told = [" ".join(run.ledger.rows[0].remarks) for run in runs]
    assert "84%" in told[0] and "10%" in told[1] and "10%" in told[2]
    assert ["are from the store" in each for each in told] == [False, False, True]


@pytest.mark.parametrize("change", ["options", "seed", "data"])
def test_what_a_step_depends_on_makes_it_run_again(job: Job, change: str) -> None:
    recipe = {"steps": [{"method": "quantize-int8", "options": {}}], "seed": 0}
    edgesmith.compile(job.model, out=job.folder / "a", recipe=recipe, data=job.data, settings=settings(job))
    if change == "options":
        recipe["steps"][0]["options"] = {"range_estimator": "min-max"}
    elif change == "seed":
        recipe["seed"] = 1
    else:
        arrays = dict(np.load(job.folder / "calibration.npz"))
        arrays["image"] = arrays["image"] * 2
        np.savez(job.folder / "calibration.npz", **arrays)
    again = edgesmith.compile(job.model, out=job.folder / "a", recipe=recipe, data=job.data, settings=settings(job))
    assert not again.ledger.rows[1].cached


def test_without_data_a_dynamic_recipe_still_compiles_and_compares_with_the_source(job: Job) -> None:
    artifact = edgesmith.compile(job.model, out=job.folder / "artifact", recipe="int8-dynamic", settings=settings(job))
    assert artifact.ledger.metric == "sqnr" and artifact.ledger.rows[0].metric is None
    assert artifact.ledger.rows[-1].metric.value > 15
    assert "random" in artifact.ledger.data["evaluation"]


def test_a_step_that_does_not_pay_is_undone_and_stays_in_the_ledger(job: Job) -> None:
    registry = load_registry(files=[Path(__file__).with_name("detour_plugin.py")])
    recipe = {
        "steps": [{"method": "detour"}, {"method": "quantize-int8"}],
        "keep": "if-pays",
        "budget": {"max_size_bytes": 10},
    }
    artifact = edgesmith.compile(
        job.model,
        out=job.folder / "artifact",
        recipe=recipe,
        data=job.data,
        settings=replace(settings(job), registry=registry),
    )
    _, detour, quantized, lowered = artifact.ledger.rows
    assert detour.status == "undone" and "does not improve size" in detour.reason
    assert quantized.status == "ok" and quantized.size_bytes.value < detour.size_bytes.value
    assert {error.against for error in quantized.errors} == {"source"}
    assert "Neg" not in {node.op_type for node in onnx.load(artifact.entry).graph.node}
    assert lowered.metric and "Budget missed: size" in artifact.ledger.verdict


@pytest.mark.parametrize("reason", ["", "it costs"])
def test_a_step_and_the_recovery_behind_it_are_judged_as_one(
    job: Job, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    judged = []

    def judge(_: object, before: Stage, after: Stage) -> tuple[str, str, tuple[str, ...]]:
        judged.append((before.label, after.label))
        return (reason if after.label == "make-good" else ""), "", ()

    monkeypatch.setattr(pipeline._Judge, "judge", judge)
    registry = load_registry(files=[Path(__file__).with_name("detour_plugin.py")])
    steps = [{"method": "quantize-int8"}, {"method": "detour"}, {"method": "make-good"}]
    recipe = {"steps": steps, "keep": "if-pays"}
    run = replace(settings(job), registry=registry)
    artifact = edgesmith.compile(job.model, out=job.folder / "artifact", recipe=recipe, data=job.data, settings=run)
    assert judged == [("source", "quantize-int8"), ("quantize-int8", "make-good")]
    _, quantized, detour, recovered, _ = artifact.ledger.rows
    assert quantized.status == "ok" and {detour.status, recovered.status} == {"undone" if reason else "ok"}
    assert detour.reason == ("judged together with make-good: it costs" if reason else "")
    assert recovered.reason == ("judged together with detour: it costs" if reason else "")
    assert not reason or "Neg" not in {node.op_type for node in onnx.load(artifact.entry).graph.node}


def test_the_command_line_prints_the_ledger_and_the_paths(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job.arguments("--target", "onnx-cpu", "--recipe", "int8")) == 0
    printed = capsys.readouterr().out
    assert "quantize-int8" in printed and str(job.folder / "artifact") in printed and "report.html" in printed
    # Which samples calibrate and which are scored, since one file is cut in two.
    assert "calibration: " in printed and "evaluation: " in printed
    assert main(job.arguments("--json")) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["target"] == "onnx-cpu" and len(ledger["rows"]) == 3


def test_an_artifact_is_replaced_and_a_foreign_folder_is_not(job: Job) -> None:
    out = job.folder / "artifact"
    edgesmith.compile(job.model, out=out, data=job.data, settings=settings(job))
    edgesmith.compile(job.model, out=out, recipe="float", data=job.data, settings=settings(job))
    assert [row.stage for row in load_ledger(out).rows] == ["source", "lower to onnx-cpu"]
    foreign = job.folder / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(edgesmith.EdgesmithError, match="not empty"):
        edgesmith.compile(job.model, out=foreign, data=job.data, settings=settings(job))
    assert (foreign / "holiday.jpg").read_bytes() == b"dear"


def test_leftovers_of_a_compile_are_only_the_artifact_and_the_store(job: Job) -> None:
    before = {path.name for path in job.folder.iterdir()}
    edgesmith.compile(job.model, out=job.folder / "artifact", data=job.data, settings=settings(job))
    assert {path.name for path in job.folder.iterdir()} - before == {"artifact", "store"}
    names = {path.relative_to(job.folder / "artifact").as_posix() for path in Path(job.folder / "artifact").rglob("*")}
    assert names >= {"manifest.json", "ledger.json", "recipe.yaml", "report.html", "validate.py", "samples.npz"}
