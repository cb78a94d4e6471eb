"""The conformance suite finds each fault, by the check that is about it."""

from pathlib import Path

import pytest

from edgesmith.errors import ModelError, PluginError
from edgesmith.host.loader import load_registry
from edgesmith.testing import conformance, isolated_registry, tiny_mlp
from edgesmith.testing.conformance.runners import RunnerBench, a_file_that_cannot_run_is_refused
from edgesmith.testing.subject import find_subject

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
BUNDLED = load_registry(plugins=False)

FOUND_BY = {
    "crash_in_check": "check is total",
    "bool_verdict": "check is total",
    "crash_in_apply": "it applies or says why",
    "exits_in_apply": "it applies or says why",
    "returns_garbage": "it applies or says why",
    "returns_same_graph": "it applies or says why",
    "changes_inputs": "inputs and outputs are kept",
    "changes_output_type": "inputs and outputs are kept",
    "edits_input": "the input model is untouched",
    "edits_input_weights": "the input model is untouched",
    "nan_output": "the result runs",
    "unknown_operator": "the result runs",
    "invalid_graph": "the result runs",
    "breaks_guarantee": "the guarantee holds",
}

PLUGIN = """
{head}
import os
from typing import ClassVar
import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, field_validator
from edgesmith import Guarantee, Kind, Method, MethodRecord, Needs, Verdict, hookimpl

@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="scale",
            version="1.0",
            summary="Scales weights.",
            entry="{stem}:Scale",
            kind=Kind.GRAPH,
            options="{stem}:Options",
            guarantee=Guarantee.LOSSY,
        )
    ]

class Options(BaseModel):
    model_config = ConfigDict({config})
    factor: float = Field(default=0.5, ge=0.0, le=1.0{description})
    {option}

class Scale(Method[Options]):
    def check(self, model, context):
        if not any(value.dtype == ir.DataType.FLOAT for value in model.graph.initializers.values()):
            return Verdict.skip("there is no float weight")
        {check}
        return Verdict.ok()

    def apply(self, model, context):
        result = model.clone()
        for name, value in result.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT and value.const_value.size > 1:
                factor = {factor}
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
        return result
"""

SOUND = {
    "head": "",
    "config": 'frozen=True, extra="forbid"',
    "description": ', description="Factor on all weights."',
    "option": "",
    "check": "",
    "factor": "context.options.factor",
}

FAULTS = {
    "open options": ({"config": "frozen=True"}, "record is complete"),
    "options that change": ({"config": 'extra="forbid"'}, "record is complete"),
    "a bare option": ({"description": ""}, "record is complete"),
    "other needs than the record": (
        {"option": "needs: ClassVar[Needs] = Needs(data=True)"},
        "record is complete",
    ),
    "needs that are none": ({"option": "needs: ClassVar[str] = 'data'"}, "record is complete"),
    "a silent skip": ({"check": 'return Verdict("skip")'}, "check is total"),
    "nothing to apply to": ({"check": 'return Verdict.skip("never")'}, "it applies or says why"),
    "chance": ({"factor": "os.urandom(1)[0] / 256"}, "the same seed gives the same bytes"),
    "the hash of a text": (
        {"factor": "(hash('a') & 0xFFFFFF) / 2**24"},
        "another process gives the same bytes",
    ),
    "an edge": ({"factor": "1 / context.options.factor - 1"}, "options work at their edges"),
    "any value": (
        {"option": 'bits: object = Field(default=8, description="Bits.", json_schema_extra={"type": "integer"})'},
        "wrong options are refused",
    ),
    "its own result": (
        {"check": "assert not model.provenance.steps, 'never saw a graph that was changed'"},
        "it answers for its own result",
    ),
}


def failures(checks):
    """Return the names of the checks that fail, with what they say."""
    results = {check.name: check() for check in checks}
    return {name: result for name, result in results.items() if result.status == "failed"}


def write(folder: Path, stem: str, changes: dict[str, str]) -> Path:
    path = folder / f"{stem}.py"
    path.write_text(PLUGIN.format(stem=stem, **{**SOUND, **changes}))
    return path


@pytest.mark.parametrize("name", FOUND_BY)
def test_a_bad_plugin_fails_the_check_that_is_about_it(name):
    registry = isolated_registry(BAD_PLUGINS / f"{name}.py")
    wanted = {FOUND_BY[name]}
    checks = [check for check in conformance(registry, thorough=False) if check.name in wanted]
    found = failures(checks)
    assert set(found) == wanted
    for result in found.values():
        assert result.what
        assert result.fix


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_check_that_is_about_it(fault, tmp_path):
    changes, wanted = FAULTS[fault]
    registry = isolated_registry(write(tmp_path, "faulty", changes))
    checks = {check.name: check for check in conformance(registry)}
    assert checks[wanted]().status == "failed"


def test_what_runs_in_this_process_only_is_not_called_repeatable(tmp_path):
    """The other process makes the tiny models itself and has no other: it compared nothing."""
    changes = {
        "check": "if model.graph.name != 'mine':\n            return Verdict.skip('it is not mine')",
        "factor": "(hash('a') & 0xFFFFFF) / 2**24",
    }
    mine = tiny_mlp()
    mine.graph.name = "mine"
    checks = conformance(isolated_registry(write(tmp_path, "choosy", changes)), models={"mine": mine})
    results = {check.name: check() for check in checks}
    assert results["it applies or says why"].what.startswith("applied to 1 of")
    assert results["another process gives the same bytes"].status == "not-applicable"


@pytest.mark.parametrize("name", ["wrong_api", "bad_record", "misspelt_hook", "import_error"])
def test_a_plugin_that_does_not_load_has_no_empty_suite(name):
    with pytest.raises(PluginError, match="does not load"):
        conformance(isolated_registry(BAD_PLUGINS / f"{name}.py"))


def test_a_suite_is_never_empty(tmp_path):
    registry = isolated_registry(write(tmp_path, "sound", {}))
    with pytest.raises(PluginError, match="nothing named 'scal' to check") as caught:
        conformance(registry, "scal")
    assert "`scale`" in caught.value.fix
    path = tmp_path / "watcher.py"
    path.write_text("from edgesmith import hookimpl\n\n@hookimpl\ndef before_step(event):\n    pass\n")
    with pytest.raises(PluginError, match="there is nothing to check"):
        conformance(isolated_registry(path))


def test_a_quick_look_at_a_target_takes_the_models_of_the_user():
    subject, name = find_subject("onnx-cpu", BUNDLED)
    check, *_ = conformance(subject, name, models={"mine": tiny_mlp()}, thorough=False)
    assert check.bench.verdicts["mine"].status == "ok"


def test_a_runner_refuses_with_an_error_of_measurements():
    class Careless:
        def outputs(self, entry, batches):
            raise ModelError("what", expected="expected", why="why", fix="fix")

    bench = RunnerBench(BUNDLED, BUNDLED.runners()[0])
    bench.runner = Careless()
    result = a_file_that_cannot_run_is_refused(bench)
    assert (result.status, result.what) == ("failed", "a missing file gives ModelError")


@pytest.mark.parametrize("record", BUNDLED.runners(), ids=lambda record: record.name)
def test_each_runner_refuses_what_cannot_run(record):
    result = a_file_that_cannot_run_is_refused(RunnerBench(BUNDLED, record))
    assert result.status == "ok", result


def test_heavy_imports_are_named(tmp_path):
    registry = isolated_registry(write(tmp_path, "heavy", {}))
    (light,) = [check for check in conformance(registry) if check.name == "registering is light"]
    result = light()
    assert result.status == "failed"
    assert "onnx_ir" in result.what
    assert "numpy" in result.what


def test_a_sound_plugin_passes_everything_but_the_imports_of_its_single_file(tmp_path):
    registry = isolated_registry(write(tmp_path, "sound", {}))
    assert set(failures(conformance(registry))) == {"registering is light"}


def test_a_crash_inside_a_check_is_a_failure_that_names_the_place(tmp_path):
    path = tmp_path / "lint_plugin.py"
    path.write_text(
        "from edgesmith import LintRecord, hookimpl\n"
        "@hookimpl\n"
        "def register_lints():\n"
        "    return [LintRecord('odd', '1', 'Odd.', 'lint_plugin:rule')]\n"
        "def rule(model, dialect):\n"
        "    raise KeyError('absent')\n"
    )
    found = failures(conformance(isolated_registry(path)))
    assert "it answers for every graph" in found
    assert "KeyError: 'absent' at lint_plugin.py:6" in found["it answers for every graph"].what


def test_every_check_says_in_one_sentence_what_it_asks_for(tmp_path):
    checks = conformance(isolated_registry(write(tmp_path, "sound", {})))
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.description.endswith(".") for check in checks)
