"""`edgesmith plugin check`: what is checked, what is shown, and the exit code."""

import json
from pathlib import Path

import pytest

from edgesmith import Isolation
from edgesmith.cli import main
from edgesmith.errors import PluginError
from edgesmith.host.loader import load_registry
from edgesmith.serialization import write_onnx
from edgesmith.testing import TINY_MODELS, conformance, isolated_registry, tiny_mlp
from edgesmith.testing.subject import find_subject

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"

LINT = """
from edgesmith import Finding, LintRecord, hookimpl

@hookimpl
def register_lints():
    return [LintRecord("many-nodes", "1.0", "Graphs of more than one node.", "{stem}:rule")]

def rule(model, dialect):
    if len(model.graph) > 1:
        yield Finding("There are many nodes.", "Remove some.", (model.graph[0].name,))
"""


@pytest.fixture
def lint_file(tmp_path) -> str:
    path = tmp_path / "many_nodes.py"
    path.write_text(LINT.format(stem=path.stem))
    return str(path)


def test_a_sound_plugin_passes_with_exit_code_0(lint_file, capsys):
    assert main(["plugin", "check", lint_file]) == 0
    shown = capsys.readouterr().out
    assert "lint many-nodes" in shown
    assert "FAILED" not in shown
    assert shown.endswith(f"{lint_file}: 6 checks passed.\n")


def test_checks_that_had_nothing_to_check_are_counted_apart(capsys):
    path = str(BAD_PLUGINS / "changes_nothing.py")
    assert main(["plugin", "check", path, "--quick", "--json"]) in (0, 2)
    states = [check["status"] for check in json.loads(capsys.readouterr().out)["checks"]]
    counts = [states.count(one) for one in ("failed", "ok", "not-applicable")]
    assert counts[2] > 0
    main(["plugin", "check", path, "--quick"])
    failed = f"{counts[0]} failed, " if counts[0] else ""
    said = f"{path}: {failed}{counts[1]} checks passed, {counts[2]} had nothing to check.\n"
    assert capsys.readouterr().out.endswith(said)


def test_each_check_is_in_the_json(lint_file, capsys):
    assert main(["plugin", "check", lint_file, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {check["record"] for check in report["checks"]} == {"many-nodes"}
    assert {check["status"] for check in report["checks"]} == {"ok"}
    assert all({"kind", "check", "asks", "what", "fix"} <= set(check) for check in report["checks"])


def test_a_fault_is_shown_with_what_was_asked_and_what_to_do_and_exit_code_2(capsys):
    assert main(["plugin", "check", str(BAD_PLUGINS / "edits_input.py"), "--quick"]) == 2
    shown = capsys.readouterr().out
    assert "method edits-input: the input model is untouched" in shown
    assert "asked for  The model that was given is the same afterwards" in shown
    assert "do  Start with model.clone()" in shown


@pytest.mark.parametrize("name", ["kills_its_process", "leaves_the_process"])
def test_a_method_that_ends_its_process_fails_with_isolation(name):
    """One check that stands for all: each call takes a process of its own."""
    registry = isolated_registry(BAD_PLUGINS / f"{name}.py")
    checks = conformance(registry, thorough=False, isolation=Isolation(120, 2000))
    (check,) = [one for one in checks if one.name == "it applies or says why"]
    check.bench.__dict__["models"] = {"mlp": tiny_mlp()}
    result = check()
    assert result.status == "failed" and "its process" in result.what


def test_isolation_is_asked_for_on_the_command_line(lint_file):
    assert main(["plugin", "check", lint_file, "--isolate"]) == 0
    assert main(["plugin", "check", lint_file, "--time-limit-seconds", "0"]) == 2


CHOOSY = """
from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl

@hookimpl
def register_methods():
    return [MethodRecord(name="choosy", version="1.0", summary="Renames one graph.", entry="{stem}:Choosy",
        kind=Kind.GRAPH, options="edgesmith.host.options:NoOptions", guarantee=Guarantee.EXACT)]

class Choosy(Method):
    def check(self, model, context):
        return Verdict.ok() if model.graph.name == "mine" else Verdict.skip("it is not mine")

    def apply(self, model, context):
        result = model.clone()
        result.graph.doc_string = "chosen"
        return result
"""


def test_a_model_of_the_user_is_tried_besides(tmp_path, capsys):
    """The method applies to no other, so that the check of that fails without the option."""
    mine = tiny_mlp()
    mine.graph.name = "mine"
    # Named like one of the tiny models, beside which it stands, as does the one with external data.
    write_onnx(mine.ir, tmp_path / "cnn.onnx")
    path = tmp_path / "choosy.py"
    path.write_text(CHOOSY.format(stem=path.stem))
    said = []
    for words in ((), ("--model", str(tmp_path / "cnn.onnx"))):
        main(["plugin", "check", str(path), "--quick", "--json", *words])
        checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        said.append((checks["it applies or says why"]["status"], checks["it applies or says why"]["what"]))
    assert said[0][0] == "failed"
    assert said[1] == ("ok", f"applied to 1 of {len(TINY_MODELS) + 2} models")


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (str(BAD_PLUGINS / "import_error.py"), "does not load: at import"),
        (str(BAD_PLUGINS / "bad_record.py"), "does not load: at records"),
        ("absent.py", "not a plugin file"),
        ("quantise-int8", "Did you mean"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_exit_code_2(plugin, words, capsys):
    assert main(["plugin", "check", plugin]) == 2
    assert words in capsys.readouterr().err


def test_a_subject_is_a_file_a_distribution_or_one_record(lint_file):
    registry = load_registry(plugins=False)
    found, name = find_subject("edgesmith", registry)
    assert (name, found.methods()) == (None, registry.methods())
    found, name = find_subject("sqnr", registry)
    assert name == "sqnr"
    found, name = find_subject(lint_file, registry)
    assert (name, [record.name for record in found.lints()]) == (None, ["many-nodes"])


def test_a_broken_distribution_is_named_with_its_error():
    registry = isolated_registry(BAD_PLUGINS / "bad_record.py")
    with pytest.raises(PluginError, match="malformed name"):
        find_subject("Bad Name!", registry)
