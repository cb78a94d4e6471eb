"""Every way in which a plugin can fail, and what the host makes of it."""

import io
import sys
from pathlib import Path

import psutil
import pytest
from tests.isolation.processes import let_time_run_out_at

from edgesmith import Isolation
from edgesmith.errors import PluginError, StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.plan import PlannedStep
from edgesmith.testing import isolated_registry, run_method, tiny_mlp

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"

BROKEN_AT_LOAD = {
    "import_error": ("import", "a_package_that_does_not_exist"),
    "exits_at_import": ("import", "SystemExit: 3"),
    "asks_at_import": ("import", "EOFError"),
    "wrong_api": ("api", "99"),
    "bad_record": (
        "records",
        "'Bad Name!' has a malformed name (expected: lower-case words joined by hyphens, such as 'quantize-int8')",
    ),
    "unknown_kind": ("records", "has kind='fold-it' (expected: one of Kind.GRAPH, Kind.PRUNE, "),
    "wrong_record_type": ("records", "dict"),
    "returns_nothing": ("records", "NoneType"),
    "misspelt_hook": ("hooks", "the unknown hook 'register_method' (expected: the name of a hook"),
    "wrong_hook_argument": ("hooks", "registry"),
    "raises_in_hook": ("records", "RuntimeError: no licence found"),
}

BROKEN_IN_APPLY = {
    "crash_in_apply": (
        "ZeroDivisionError: a channel without weights at crash_in_apply.py:29",
        "at node 'activation' (Relu)",
    ),
    "crash_in_library": ("LinAlgError: Singular matrix at crash_in_library.py:28",),
    "wrong_signature": (
        "TypeError: Broken.apply() takes 2 positional arguments but 3 were given at wrong_signature.py:25",
    ),
    "exits_in_apply": ("SystemExit: 7",),
    "returns_garbage": ("returned an object of type Model",),
    "returns_same_graph": ("returned the graph it was given",),
    "changes_inputs": ("changed the graph's inputs from ['x'] to ['renamed']",),
    "changes_output_type": ("dtype of output 'y' from FLOAT to FLOAT16",),
    "edits_input": ("edited the graph it was given",),
    "edits_input_weights": ("edited the graph it was given",),
    "nan_output": ("output 'y' is NaN", "first at node 'up_projection' (Gemm)"),
    "breaks_guarantee": ("promised outputs within 0.0001", "output 'y' is off by"),
    "invalid_graph": ("not valid ONNX", "axis"),
    "removes_used_node": ("node 'activation' reads 'up_projection_output', which no node or input produces",),
    "raising_tensor": ("returned a Model that cannot be read: OSError: the weights are gone",),
    "no_graph": ("returned a Model whose ir is of type NoneType",),
    "no_task": ("returned a Model whose task is of type NoneType",),
    "remarks_bytes": ("noted a remark of type bytes",),
    "unknown_operator": ("ONNX Runtime does not run", "Mystery"),
}

BROKEN_IN_OPTIONS = {
    "options_crash": "crashed with SystemExit: no licence found at options_crash.py:30",
    "options_without_default": "crashed with ZeroDivisionError: integer division or modulo by zero at options_without",
    "options_without_schema": "crashed with PydanticInvalidForJsonSchema: ",
}

BROKEN_WITH_ITS_PROCESS = {
    "never_ends": "did not end within 120 s, in apply at never_ends.py:",
    "never_ends_in_check": "did not end within 120 s, in check at never_ends_in_check.py:",
    "eats_memory": "MiB of memory, and may take 700, in apply at eats_memory.py:",
    "leaves_the_process": "ended its process with code 7 before the step was done",
    "kills_its_process": "its process was ended by SIGKILL",
    "aborts": "its process was ended by SIGABRT, in apply at aborts.py:",
    "aborts_in_check": "its process was ended by SIGABRT, in check at aborts_in_check.py:",
}
"""These are contained where steps are isolated only."""


BROKEN_WITH_THE_PROCESS_THAT_IMPORTS = {
    "leaves_at_import",
    "leaves_in_hook",
    "aborts_at_import",
    "never_ends_at_import",
    "eats_memory_at_import",
    "interrupts_at_import",
}
"""These are found out in a process of their own; see test_first_imports.py."""


def registry_with(name: str):
    return isolated_registry(BAD_PLUGINS / f"{name}.py", BAD_PLUGINS / "raises_in_observer.py")


def test_every_bad_plugin_has_a_test():
    tested = {
        *BROKEN_AT_LOAD,
        *BROKEN_IN_APPLY,
        *BROKEN_IN_OPTIONS,
        *BROKEN_WITH_ITS_PROCESS,
        *BROKEN_WITH_THE_PROCESS_THAT_IMPORTS,
        "needs_crash",
        "crash_in_check",
        "bool_verdict",
        "raises_in_observer",
    }
    assert tested | {"changes_nothing", "prints", "breaks_as_told"} == {path.stem for path in BAD_PLUGINS.glob("*.py")}


@pytest.mark.parametrize("name", BROKEN_AT_LOAD)
def test_a_plugin_that_does_not_load_is_listed_and_the_others_work(name):
    stage, fragment = BROKEN_AT_LOAD[name]
    registry = registry_with(name)
    (tombstone,) = registry.tombstones
    assert (tombstone.distribution, tombstone.entry_point, tombstone.stage) == (f"file:{name}", name, stage)
    assert fragment in tombstone.error
    assert "\n" not in tombstone.error
    assert tombstone.error.removeprefix("SystemExit: ").partition(" (expected: ")[0] in tombstone.traceback
    assert [record.name for record in registry.methods()] == ["copy"]
    assert run_method(registry, "copy", tiny_mlp()).verdict.status == "ok"


def test_what_is_said_to_the_command_is_kept_from_plugins(monkeypatch):
    said = io.StringIO("for the command")
    monkeypatch.setattr("sys.stdin", said)
    registry = registry_with("asks_at_import")
    assert [tombstone.entry_point for tombstone in registry.tombstones] == ["asks_at_import"]
    assert sys.stdin is said
    assert said.read() == "for the command"


def test_an_interruption_says_what_was_being_imported(caplog):
    with pytest.raises(KeyboardInterrupt):
        registry_with("interrupts_at_import")
    assert "interrupted while importing file:interrupts_at_import 0+" in caplog.text


def test_a_misspelt_hook_is_told_the_nearest_name():
    assert "Did you mean `register_methods`?" in registry_with("misspelt_hook").tombstones[0].error


def test_asking_for_what_a_broken_plugin_would_bring_says_that_it_is_broken():
    registry = registry_with("bad_record")
    with pytest.raises(PluginError) as caught:
        registry.method("Bad Name!")
    label = registry.tombstones[0].label
    assert f"{label} is broken: MethodRecord 'Bad Name!' has a malformed name" in caught.value.what
    assert "there is no method" not in str(caught.value)


def test_an_unknown_name_mentions_the_broken_plugins_it_may_belong_to():
    registry = registry_with("import_error")
    with pytest.raises(PluginError) as caught:
        registry.method("cop")
    assert "`copy`" in caught.value.fix
    assert "a_package_that_does_not_exist" in caught.value.why


@pytest.mark.parametrize(
    ("name", "isolation"),
    [
        *((name, None) for name in BROKEN_IN_APPLY),
        *((name, Isolation(60, 2000)) for name in ("crash_in_apply", "returns_garbage", "edits_input_weights")),
    ],
)
def test_a_broken_step_is_attributed_and_leaves_the_model_as_it_was(name, isolation):
    registry, model = registry_with(name), tiny_mlp()
    digest, inputs = model.digest(), sample_inputs(model.ir)
    before = ReferenceSession(model.ir).run(inputs)["y"]
    method = name.replace("_", "-")
    with pytest.raises(StepError) as caught:
        run_method(registry, method, model, isolation=isolation)
    assert (
        f"method {method} 1.0 from {registry.distribution_of(registry.method(method))} (no options)"
        in caught.value.what
    )
    for fragment in BROKEN_IN_APPLY[name]:
        assert fragment in caught.value.what
    assert model.digest() == digest
    assert (ReferenceSession(model.ir).run(inputs)["y"] == before).all()
    # The same registry and model still serve a sound method.
    assert run_method(registry, "copy", model).model.digest() == digest


@pytest.mark.parametrize("name", BROKEN_IN_OPTIONS)
def test_options_that_break_are_attributed_and_cost_no_other_method_its_schema(name):
    registry = registry_with(name)
    method = registry.method(name.replace("_", "-"))
    fault = f"method {method.name} 1.0 from {registry.distribution_of(method)}: its options {BROKEN_IN_OPTIONS[name]}"
    with pytest.raises(PluginError) as caught:
        run_method(registry, method.name, tiny_mlp())
    assert fault in caught.value.what
    titles = [step["title"] for step in registry.schema()["$defs"]["Step"]["oneOf"]]
    assert titles == ["file:raises_in_observer:copy", f"file:{name}:{method.name}"]
    assert run_method(registry, "copy", tiny_mlp()).verdict.status == "ok"


def test_options_that_cannot_say_what_they_need_are_attributed():
    registry = registry_with("needs_crash")
    record = registry.method("needs-crash")
    step = PlannedStep(record, registry.validate_options(record, {}), registry.distribution_of(record))
    with pytest.raises(PluginError) as caught:
        _ = step.needing
    assert caught.value.what.startswith("method needs-crash 1.0 from file:needs_crash 0+")
    assert "what its options need crashed with SystemExit: no licence found at needs_crash.py:30" in caught.value.what


@pytest.mark.parametrize("name", BROKEN_WITH_ITS_PROCESS)
def test_a_step_that_breaks_its_process_is_one_error_and_leaves_this_one_alone(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NEVER_ENDING", str(tmp_path / "never_ending"))
    let_time_run_out_at(tmp_path / "never_ending", monkeypatch)
    registry, model = registry_with(name), tiny_mlp()
    digest, method = model.digest(), name.replace("_", "-")
    with pytest.raises(StepError) as caught:
        run_method(registry, method, model, isolation=Isolation(120, 700))
    label = registry.distribution_of(registry.method(method))
    assert caught.value.what.startswith(f"method {method} 1.0 from {label} (no options): ")
    assert BROKEN_WITH_ITS_PROCESS[name] in caught.value.what
    assert model.digest() == digest
    assert psutil.Process().children(recursive=True) == []
    assert run_method(registry, "copy", model).model.digest() == digest


@pytest.mark.parametrize(
    ("name", "fragment", "isolation"),
    [
        ("crash_in_check", "KeyError: 'absent' at crash_in_check.py:23", None),
        ("crash_in_check", "KeyError: 'absent' at crash_in_check.py:23", Isolation(60, 2000)),
        ("bool_verdict", "bool", None),
    ],
)
def test_a_crash_in_check_is_a_refusal(name, fragment, isolation):
    model = tiny_mlp()
    result = run_method(registry_with(name), name.replace("_", "-"), model, isolation=isolation)
    assert result.verdict.status == "refuse"
    assert result.verdict.reason.startswith("check crashed: method ")
    assert fragment in result.verdict.reason
    assert result.model is model


def test_a_failing_observer_is_logged_once_and_fails_nothing(caplog):
    registry = isolated_registry(BAD_PLUGINS / "raises_in_observer.py")
    for _ in range(3):
        assert run_method(registry, "copy", tiny_mlp()).verdict.status == "ok"
    (record,) = caplog.records
    assert "before_step of file:raises_in_observer 0+" in record.getMessage()
    # What is shown without --trace-plugins is one line; the traceback is for debugging.
    assert record.getMessage().endswith("SystemExit: the logging server is down")
    assert record.exc_info is None


def test_a_step_that_changes_nothing_is_remarked():
    registry = registry_with("changes_nothing")
    result = run_method(registry, "changes-nothing", tiny_mlp())
    assert result.notes.remarks == ["changes-nothing said that it applies and changed nothing."]
