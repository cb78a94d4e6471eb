"""One step in a process of its own: what it is given, what it may say, and what cannot be isolated."""

import json
import tempfile
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.cli.settings import isolation_of
from edgesmith.errors import PluginError, StepError
from edgesmith.host.context import Context
from edgesmith.host.step import run_step
from edgesmith.host.trial import Scoring
from edgesmith.isolation.limits import Isolation
from edgesmith.testing import fake_dialect, isolated_registry, run_method, tiny_mlp
from edgesmith_calibration.metrics import Accuracy
from tests.pipeline.conftest import Job

LIMITS = Isolation(120)
BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
HEAD = """
import sys
import edgesmith
from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl

@hookimpl
def register_methods():
    return [MethodRecord(name="odd", version="1.0", summary="Odd.", entry=f"{__name__}:Odd", kind=Kind.GRAPH,
        options="edgesmith.host.options:NoOptions", guarantee=Guarantee.LOSSY)]

class Odd(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
"""


def plugin(folder: Path, body: str) -> Path:
    """Write a plugin file whose method does `body` in apply."""
    path = folder / "odd_plugin.py"
    path.write_text(HEAD + "".join(f"        {line}\n" for line in body.splitlines()))
    return path


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
        "subprocess.run([sys.executable, '-c', eater])\n"
        "return model.clone()"
    )
    registry = isolated_registry(plugin(tmp_path, body))
    with pytest.raises(StepError, match="MiB of memory, and may take 600"):
        run_method(registry, "odd", tiny_mlp(), isolation=Isolation(60, 600))


def test_a_class_that_is_not_there_is_the_same_fault_of_the_plugin(tmp_path: Path) -> None:
    path = plugin(tmp_path, "return model.clone()")
    path.write_text(path.read_text().replace("{__name__}:Odd", "absent_module:Odd"))
    registry, messages = isolated_registry(path), []
    for isolation in (None, LIMITS):
        with pytest.raises(PluginError) as caught:
            run_method(registry, "odd", tiny_mlp(), isolation=isolation)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "absent_module" in messages[0]


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
    registry = isolated_registry(records=(record,), distribution="made-up")
    with pytest.raises(PluginError, match=r"made-up 1\.0 is broken: ModuleNotFoundError"):
        run_method(registry, "copy", tiny_mlp(), isolation=LIMITS)


def test_the_command_line_isolates_where_asked() -> None:
    assert isolation_of(False, None, None) is None
    assert isolation_of(True, None, None) == Isolation()
    assert isolation_of(False, 5.0, None) == Isolation(5.0)
    assert isolation_of(False, None, 300) == Isolation(memory_limit_mib=300)
