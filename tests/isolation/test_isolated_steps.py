"""One step in a process of its own: what it is given, what it may say, and what cannot be isolated."""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.cli.settings import isolation_of
from edgesmith.errors import Condition, PluginError, StepError
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.context import Context
from edgesmith.host.step import run_step
from edgesmith.host.trial import Scoring
from edgesmith.isolation import overheard
from edgesmith.isolation.endings import manner
from edgesmith.isolation.faults import RunError
from edgesmith.isolation.folder import LOG_FILE
from edgesmith.isolation.limits import Isolation
from edgesmith.testing import fake_dialect, isolated_registry, run_method, tiny_mlp
from edgesmith_calibration.metrics import Accuracy
from edgesmith_calibration.sources import ArraySource, Batch
from tests.isolation.processes import ends, let_time_run_out_at, named_in, plugin
from tests.pipeline.conftest import Job

LIMITS = Isolation(120)
BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"


def test_what_a_plugin_prints_does_not_mix_with_json(job: Job, capsys, tmp_path: Path) -> None:
    path = plugin(tmp_path, "print('noise on standard output')\nreturn model.clone()")
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("steps: [{method: odd}]")
    words = job.arguments("--recipe", str(recipe), "--memory-limit-mib", "4000", "--json")
    assert main(["--plugin", str(path), *words]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1]["stage"] == "odd"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os\nos.closerange(3, 100)\nimport time\ntime.sleep(60)", "closed its connection to the run"),
        ("import os\nos.write(3, b'x')\nos.closerange(3, 64)\nos._exit(0)", "ended its process with code 0 before"),
        ("import threading\nthreading.Thread(target=lambda: None).start()\nsys.exit(4)", "SystemExit: 4"),
    ],
)
def test_a_step_that_loses_touch_is_one_error(tmp_path: Path, body: str, said: str) -> None:
    registry = isolated_registry(plugin(tmp_path, body))
    with pytest.raises(StepError) as caught:
        run_method(registry, "odd", tiny_mlp(), isolation=LIMITS)
    assert said in caught.value.what and "method odd 1.0 from file:odd_plugin 0+" in caught.value.what


def test_children_of_a_step_count_and_end_with_it(tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        "eater = 'import time; x = bytearray(600 << 20); time.sleep(60)'\n"
        "eating = subprocess.Popen([sys.executable, '-c', eater])\n"
        f"open({str(tmp_path / 'numbers')!r}, 'w').write(str(eating.pid))\n"
        "eating.wait()"
    )
    registry = isolated_registry(plugin(tmp_path, body))
    with pytest.raises(StepError, match="MiB of memory, and may take 600"):
        run_method(registry, "odd", tiny_mlp(), isolation=Isolation(60, 600))
    assert all(ends(process) for process in named_in(tmp_path / "numbers"))


@pytest.mark.parametrize(
    ("ending", "seconds_left", "said"),
    [("os._exit(7)", 60, "ended its process with code 7"), ("time.sleep(60)", 0, "did not end within 120 s")],
)
def test_workers_that_hold_the_line_keep_no_run_waiting(
    tmp_path: Path, monkeypatch, ending: str, seconds_left: float, said: str
) -> None:
    """One worker is in the process group of the step, and one in a session of its own."""
    let_time_run_out_at(tmp_path / "standing", monkeypatch, seconds_left=seconds_left)
    body = (
        "import os, pathlib, time\n"
        f"numbers = pathlib.Path({str(tmp_path / 'numbers')!r})\n"
        f"standing = pathlib.Path({str(tmp_path / 'standing')!r})\n"
        "numbers.touch()\n"
        "for leave in (lambda: None, os.setsid):\n"
        "    if (worker := os.fork()) == 0:\n"
        "        leave()\n"
        "        numbers.open('a').write(f'{os.getpid()}\\n')\n"
        "        time.sleep(90)\n"
        f"        open({str(tmp_path / 'undisturbed')!r}, 'w')\n"
        "        os._exit(0)\n"
        "while len(numbers.read_text().splitlines()) < 2:\n"
        "    time.sleep(0.01)\n"
        "standing.touch()\n"
        "while standing.exists():\n"
        "    time.sleep(0.01)\n" + ending
    )
    registry = isolated_registry(plugin(tmp_path, body))
    with pytest.raises(StepError) as caught:
        run_method(registry, "odd", tiny_mlp(), isolation=LIMITS)
    assert said in caught.value.what
    assert all(ends(process) for process in named_in(tmp_path / "numbers"))
    assert not (tmp_path / "undisturbed").exists()


def test_memory_that_workers_share_counts_once(tmp_path: Path) -> None:
    # 300 MiB in four processes are 1200 MiB of resident memory, and the toolchain comes on top.
    body = (
        "import os, time\n"
        "shared = b'x' * (300 << 20)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(2)\n"
        "        os._exit(0)\n"
        "time.sleep(1)\n"
        "return model.clone()"
    )
    registry = isolated_registry(plugin(tmp_path, body))
    result = run_method(registry, "odd", tiny_mlp(), isolation=Isolation(120, 1000))
    assert result.verdict.status == "ok"


def test_a_forked_worker_has_no_line_to_the_run(tmp_path: Path) -> None:
    body = (
        "import os\n"
        "if (worker := os.fork()) == 0:\n"
        "    try:\n"
        "        len(context.calibration)\n"
        "    except OSError:\n"
        "        os._exit(5)\n"
        "    os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])\n"
        "context.notes.remark(f'{code} {len(context.calibration)}')\n"
        "return model.clone()"
    )
    source = ArraySource(sample_inputs(tiny_mlp().ir))
    registry = isolated_registry(plugin(tmp_path, body))
    result = run_method(registry, "odd", tiny_mlp(), calibration=source, isolation=LIMITS)
    assert f"5 {len(source)}" in result.notes.remarks


def test_samples_with_all_inputs_of_the_source_are_handed_over(tmp_path: Path) -> None:
    body = (
        "(batch,) = context.source_calibration.batches(8)\n"
        "context.notes.remark(f'{sorted(batch.inputs)} {len(context.calibration)}')\n"
        "return model.clone()"
    )
    registry, model = isolated_registry(plugin(tmp_path, body)), tiny_mlp()
    inputs = sample_inputs(model.ir)
    (name,) = inputs
    taught = ArraySource(inputs | {"cache": inputs[name]})
    context = Context(None, fake_dialect(), tmp_path, ArraySource(inputs), source=model, source_calibration=taught)
    result = run_step(registry, registry.method("odd"), model, context, isolation=LIMITS)
    assert f"{sorted([name, 'cache'])} {len(taught)}" in result.notes.remarks


class Timeless:
    """A trial that must not be asked for times, since a step that asks is stored for the device that timed."""

    @property
    def measures_latency(self) -> bool:
        raise AssertionError("asked")


def test_a_step_that_asks_for_no_times_does_not_depend_on_them(tmp_path: Path) -> None:
    registry = isolated_registry(plugin(tmp_path, "return model.clone()"))
    context = Context(None, fake_dialect(), tmp_path, trial=Timeless())
    assert run_step(registry, registry.method("odd"), tiny_mlp(), context, isolation=LIMITS).verdict.status == "ok"


class Unreadable(ArraySource):
    """Data that cannot be read, for a reason that no Edgesmith error gives."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        raise ValueError("the tape is torn")


def test_what_fails_beside_the_method_is_named(tmp_path: Path) -> None:
    model, registry = tiny_mlp(), isolated_registry(plugin(tmp_path, "return model.clone()"))
    source = Unreadable(sample_inputs(model.ir))
    with pytest.raises(ValueError, match="the tape is torn"):
        run_method(registry, "odd", model, calibration=source)
    with pytest.raises(RunError, match=r"^ValueError: the tape is torn$"):
        run_method(registry, "odd", model, calibration=source, isolation=LIMITS)


def test_the_broken_condition_is_known_in_the_run(tmp_path: Path) -> None:
    registry = isolated_registry(plugin(tmp_path, "return None"))
    for isolation in (None, LIMITS):
        with pytest.raises(StepError) as caught:
            run_method(registry, "odd", tiny_mlp(), isolation=isolation)
        assert caught.value.condition is Condition.NEW_MODEL


@pytest.mark.parametrize(("code", "said"), [(-9, "SIGKILL"), (-35, "signal 35"), (3, "code 3")])
def test_every_manner_of_ending_has_a_name(code: int, said: str) -> None:
    assert said in manner(code, "the step")


def test_a_class_that_is_not_there_is_the_same_fault_of_the_plugin(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG, "edgesmith")
    path = plugin(tmp_path, "return model.clone()")
    path.write_text(path.read_text().replace("{__name__}:Odd", "absent_module:Odd"))
    registry, messages = isolated_registry(path), []
    for isolation in (None, LIMITS):
        with pytest.raises(PluginError) as caught:
            run_method(registry, "odd", tiny_mlp(), isolation=isolation)
        messages.append(str(caught.value))
        assert "the whole traceback" in caplog.text and "No module named 'absent_module'" in caplog.text
        caplog.clear()
    assert messages[0] == messages[1] and "absent_module" in messages[0]


def test_a_crash_in_its_own_process_shows_the_same_traceback(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG, "edgesmith")
    path = plugin(tmp_path, "def helper():\n    raise KeyError('a channel')\nhelper()")
    frames = []
    for isolation in (None, LIMITS):
        with pytest.raises(StepError, match="KeyError: 'a channel'"):
            run_method(isolated_registry(path), "odd", tiny_mlp(), isolation=isolation)
        assert "method odd 1.0 from file:odd_plugin" in caplog.text and "the whole traceback" in caplog.text
        frames.append([line for line in caplog.text.splitlines() if path.name in line and "in " in line])
        caplog.clear()
    assert frames[0] == frames[1] and frames[0][-1].endswith("in helper")


def test_a_signal_leaves_the_stack_of_the_process(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG, "edgesmith")
    path = plugin(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(StepError, match="SIGSEGV"):
        run_method(isolated_registry(path), "odd", tiny_mlp(), isolation=LIMITS)
    assert "Fatal Python error: Segmentation fault" in caplog.text and path.name in caplog.text


WARN = "import logging, os\nlog = logging.getLogger('edgesmith.odd')\nlog.warning('first %d', 1)\nlog.warning('last')\n"


@pytest.mark.parametrize(
    "ending", ["os._exit(3)", "os.kill(os.getpid(), 9)", "raise ValueError", "return model.clone()"]
)
def test_what_was_logged_is_logged_again_however_the_process_ends(tmp_path: Path, caplog, ending: str) -> None:
    registry = isolated_registry(plugin(tmp_path, WARN + ending))
    with suppress(StepError):
        run_method(registry, "odd", tiny_mlp(), isolation=LIMITS)
    assert [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING] == ["first 1", "last"]


def test_a_call_of_the_logger_that_is_wrong_ends_no_step(tmp_path: Path) -> None:
    path = plugin(tmp_path, "import logging\nlogging.getLogger('edgesmith').warning('%d', 'x')\nreturn model.clone()")
    assert run_method(isolated_registry(path), "odd", tiny_mlp(), isolation=LIMITS).verdict.status == "ok"


def test_an_exception_of_any_length_is_the_plugins_own(tmp_path: Path, caplog) -> None:
    """What crosses between the processes has a limit, and neither the text nor its traceback may break it."""
    caplog.set_level(logging.DEBUG, "edgesmith")
    path = plugin(tmp_path, "raise ValueError('\\u00fc' * (40 << 20) + 'the end')")
    with pytest.raises(StepError, match="ValueError: \u00fc\u00fc") as caught:
        run_method(isolated_registry(path), "odd", tiny_mlp(), isolation=LIMITS)
    assert caught.value.condition is Condition.NO_CRASH and len(caught.value.what) < 1 << 21
    (logged,) = [text for one in caplog.records if "the end" in (text := one.getMessage())]
    assert len(logged) == 1 << 16


def test_a_flood_of_log_lines_is_kept_up_to_a_limit(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(overheard, "_MOST_BYTES", 1000)
    toolchain = logging.getLogger("edgesmith")
    level = toolchain.level
    handler = overheard.Overheard(tmp_path)
    try:
        for number in range(100):
            toolchain.warning("line %d", number)
    finally:
        toolchain.setLevel(level)
        toolchain.removeHandler(handler)
        handler.close()
    caplog.clear()
    transcript = overheard.Transcript(tmp_path)
    transcript.log_again()
    *kept, last = [one.getMessage() for one in caplog.records]
    assert kept == [f"line {number}" for number in range(len(kept))] and 10 < len(kept) < 100
    assert "is not kept" in last


def test_lines_are_logged_once_and_torn_or_foreign_ones_never(tmp_path: Path, caplog) -> None:
    file = tmp_path / LOG_FILE
    transcript = overheard.Transcript(tmp_path)
    transcript.log_again()
    file.write_bytes(b'[30, "one"]\n\xff\n{}\n7\n["loud", "no"]\n[30, "tw')
    transcript.log_again()
    with file.open("ab") as more:
        more.write(b'o"]\n')
    transcript.log_again()
    transcript.log_again()
    assert [one.getMessage() for one in caplog.records] == ["one", "two"]


def test_a_metric_of_no_plugin_cannot_be_made_again() -> None:
    registry = isolated_registry(BAD_PLUGINS / "raises_in_observer.py")
    (record,) = registry.methods()
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            registry.validate_options(record, {}), fake_dialect(), Path(scratch), scoring=Scoring("mine", Accuracy)
        )
        with pytest.raises(PluginError, match="the metric 'mine' is of no plugin"):
            run_step(registry, record, tiny_mlp(), context, isolation=LIMITS)


def test_a_plugin_that_exists_in_memory_only_says_so() -> None:
    (record,) = isolated_registry(BAD_PLUGINS / "raises_in_observer.py").methods()
    registry = isolated_registry(records=(record,), distribution="in-memory-only")
    with pytest.raises(PluginError, match=r"in-memory-only 1\.0 is broken: ModuleNotFoundError"):
        run_method(registry, "copy", tiny_mlp(), isolation=LIMITS)


def test_the_command_line_isolates_where_asked() -> None:
    assert isolation_of(False, None, None) is None
    assert isolation_of(True, None, None) == Isolation()
    assert isolation_of(False, 5.0, None) == Isolation(5.0)
    assert isolation_of(False, None, 300) == Isolation(memory_limit_mib=300)
