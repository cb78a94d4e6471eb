"""A compile whose steps run in processes of their own: the same bytes, and faults that cost no earlier result."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

import edgesmith
from edgesmith.api import Settings
from edgesmith.cli import main
from edgesmith.errors import DataError, RecipeError, StepError
from edgesmith.host.context import Context
from edgesmith.host.loader import load_registry
from edgesmith.isolation.limits import Isolation
from edgesmith.ledger import load_ledger
from edgesmith.measure.runner import LatencyPlan
from tests.isolation.processes import awaited, ends, let_time_run_out_at, plugin
from tests.pipeline.conftest import Job

QUICK = LatencyPlan(warmup_runs=2, min_rounds=3, max_rounds=3)
CURIOUS = Path(__file__).with_name("curious_plugin.py")
BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
DETOUR = Path(__file__).parents[1] / "pipeline" / "detour_plugin.py"


def compiled(job: Job, recipe: dict, *plugins: Path, isolation: Isolation | None, store: str) -> edgesmith.Artifact:
    settings = Settings(
        threads=1,
        store=job.folder / store,
        latency_plan=QUICK,
        registry=load_registry(files=plugins),
        isolation=isolation,
    )
    out = job.folder / f"out-{store}"
    return edgesmith.compile(job.model, out=out, recipe=recipe, data=job.data, settings=settings)


def test_a_result_through_isolation_is_the_same_bytes(job: Job) -> None:
    recipe = {"steps": [{"method": "quantize-int8"}], "seed": 3}
    here = compiled(job, recipe, isolation=None, store="here")
    isolated = compiled(job, recipe, isolation=Isolation(120), store="isolated")
    assert here.entry.read_bytes() == isolated.entry.read_bytes()
    stored = [
        {path.relative_to(job.folder / name): path.read_bytes() for path in (job.folder / name).rglob("model.onnx")}
        for name in ("here", "isolated")
    ]
    assert len(stored[0]) >= 3 and stored[0] == stored[1]
    (first, second) = (artifact.ledger.rows[1] for artifact in (here, isolated))
    assert (first.remarks, first.skipped) == (second.remarks, second.skipped)
    # The store knows no difference either: what one made, the other takes.
    again = compiled(job, recipe, isolation=None, store="isolated")
    assert again.ledger.rows[1].cached


def test_a_method_sees_the_same_context_in_its_own_process(job: Job) -> None:
    recipe = {"steps": [{"method": "curious", "options": {"factor": 0.3}}]}
    here = compiled(job, recipe, CURIOUS, isolation=None, store="here").ledger.rows[1]
    isolated = compiled(job, recipe, CURIOUS, isolation=Isolation(120), store="isolated").ledger.rows[1]
    assert len(here.remarks) > 10
    # Only how busy the machine was differs.
    first, second = ([one for one in row.remarks if "busy" not in one] for row in (here, isolated))
    assert first == second
    assert here.skipped == isolated.skipped == {"head": "x of float"}


def test_everything_in_a_context_is_handed_over() -> None:
    """Whoever adds a field hands it to isolated steps too, looks at it in `curious_plugin`, and adds it here."""
    assert {field.name for field in fields(Context)} == {
        *("options", "dialect", "scratch", "calibration", "seed", "threads", "progress", "notes", "trial", "scoring"),
        *("source", "source_calibration", "checkpoint"),
    }


def test_what_the_run_refuses_is_refused_in_the_process_of_the_step(job: Job) -> None:
    recipe = {"steps": [{"method": "curious", "options": {"fail": True}}]}
    messages = []
    for isolation in (None, Isolation(120)):
        with pytest.raises(StepError) as caught:
            compiled(job, recipe, CURIOUS, isolation=isolation, store="here")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "no such samples" in messages[0]


def test_steps_before_a_fatal_one_survive_and_a_rerun_resumes(job: Job, capsys) -> None:
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("steps: [{method: detour}, {method: kills-its-process}]")
    plugins = ["--plugin", str(DETOUR), "--plugin", str(BAD_PLUGINS / "kills_its_process.py")]
    assert main([*plugins, *job.arguments("--recipe", str(recipe), "--isolate")]) == 2
    error = capsys.readouterr().err
    assert "method kills-its-process 1.0 from file:kills_its_process" in " ".join(error.split())
    assert "SIGKILL" in error and "Traceback" not in error
    assert not (job.folder / "artifact").exists()

    recipe.write_text("steps: [{method: detour}]")
    assert main([*plugins, *job.arguments("--recipe", str(recipe), "--time-limit-seconds", "120", "--json")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1]["cached"]
    assert load_ledger(job.folder / "artifact").rows[1].cached


def test_inspect_goes_on_where_a_check_never_ends(job: Job, monkeypatch) -> None:
    monkeypatch.setenv("NEVER_ENDING", str(job.folder / "never_ending"))
    let_time_run_out_at(job.folder / "never_ending", monkeypatch)
    plugin = BAD_PLUGINS / "never_ends_in_check.py"
    from edgesmith.cli.inspect import applicability
    from edgesmith.model import Model
    from edgesmith.testing import fake_dialect, isolated_registry

    registry = isolated_registry(plugin, BAD_PLUGINS / "raises_in_observer.py")
    rows = applicability(registry, Model.load(job.model), fake_dialect(), Isolation(120))
    assert [(row["method"], row["verdict"]) for row in rows] == [("copy", "ok"), ("never-ends-in-check", "refuse")]
    assert "did not end within 120 s" in str(rows[1]["reason"])


def test_listing_is_never_broken_by_any_bad_plugin(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("EDGESMITH_IMPORT_SECONDS", "120")
    monkeypatch.setenv("EDGESMITH_IMPORT_MIB", "700")
    monkeypatch.setenv("NEVER_ENDING", str(tmp_path / "never_ending"))
    let_time_run_out_at(tmp_path / "never_ending", monkeypatch)
    everything = [word for path in sorted(BAD_PLUGINS.glob("*.py")) for word in ("--plugin", str(path))]
    assert main([*everything, "methods", "--json"]) == 0
    names = {method["name"] for method in json.loads(capsys.readouterr().out)}
    assert {"never-ends", "eats-memory", "kills-its-process", "crash-in-check", "quantize-int8"} <= names


def test_a_killed_run_leaves_no_process_behind(job: Job) -> None:
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("steps: [{method: never-ends}]")
    plugin = str(BAD_PLUGINS / "never_ends.py")
    words = [sys.executable, "-m", "edgesmith", "--plugin", plugin]
    run = subprocess.Popen([*words, *job.arguments("--recipe", str(recipe), "--isolate")], stderr=subprocess.DEVNULL)
    step = started_step(run)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert ends(step)


def test_a_killed_run_takes_what_its_step_started_with_it(job: Job) -> None:
    body = "import subprocess\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(120)  # bystander'])"
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("steps: [{method: odd}]")
    words = [sys.executable, "-m", "edgesmith", "--plugin", str(plugin(job.folder, body))]
    run = subprocess.Popen([*words, *job.arguments("--recipe", str(recipe), "--isolate")], stderr=subprocess.DEVNULL)
    step = started_step(run)
    worker = awaited(lambda: [one for one in step.children() if "bystander" in " ".join(one.cmdline())])[0]
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert ends(worker) and ends(step)


def test_interrupting_a_run_ends_its_step(job: Job) -> None:
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("steps: [{method: never-ends}]")
    plugin = str(BAD_PLUGINS / "never_ends.py")
    words = [sys.executable, "-m", "edgesmith", "--plugin", plugin]
    run = subprocess.Popen([*words, *job.arguments("--recipe", str(recipe), "--isolate")], stderr=subprocess.DEVNULL)
    step = started_step(run)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert ends(step)


def started_step(run: subprocess.Popen) -> psutil.Process:
    """Return the process of the step, once there is one."""
    children = psutil.Process(run.pid).children
    return awaited(lambda: [one for one in children() if "edgesmith.isolation.child" in one.cmdline()])[0]


@pytest.mark.parametrize("limits", [(0, None), (float("nan"), None), (1, 0), (-1, 5)])
def test_limits_that_leave_nothing_are_refused(limits: tuple) -> None:
    with pytest.raises(RecipeError, match="leave a step nothing"):
        Isolation(*limits)


def test_data_errors_keep_their_kind_between_processes() -> None:
    from edgesmith.isolation import faults

    class Special(DataError):
        pass

    error = Special("what", expected="expected", why="why", fix="fix")
    back = faults.from_json(json.loads(json.dumps(faults.to_json(error))))
    assert type(back) is DataError and str(back) == str(error)
    other = faults.from_json(faults.to_json(ValueError("odd")))
    assert type(other) is faults.RunError and str(other) == "ValueError: odd"
