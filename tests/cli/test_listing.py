"""The commands that list and examine, run in process, in text and in JSON."""

import json
from pathlib import Path

import pytest
from rich.progress import Progress as Bars
from typer.testing import CliRunner

from edgesmith import __version__
from edgesmith.cli import COMMANDS, app, main
from edgesmith.cli.progress import RichProgress, _Count, _Left, make_progress
from edgesmith.errors import RecipeError
from edgesmith.progress import SilentProgress

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
COPY = str(BAD_PLUGINS / "raises_in_observer.py")
BROKEN = str(BAD_PLUGINS / "import_error.py")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys, *arguments: str):
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    return json.loads(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert f"Example: edgesmith {command}" in " ".join(out.split())
    assert "--json" in out


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command.split()[0] in out for command in COMMANDS)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"edgesmith {__version__}\n", "")


def test_methods_lists_what_a_plugin_file_brings(capsys):
    code, out, _ = run(capsys, "--plugin", COPY, "methods")
    assert code == 0
    assert "copy" in out
    (method,) = [one for one in run_json(capsys, "--plugin", COPY, "methods", "--json") if one["name"] == "copy"]
    assert method["distribution"].startswith("file:raises_in_observer 0+")
    assert (method["kind"], method["guarantee"]) == ("graph", "exact")
    assert method["needs"]["packages"] == []


def test_one_method_is_shown_with_its_options(capsys, tmp_path):
    code, out, _ = run(capsys, "methods", "quantize-int8")
    assert code == 0
    assert "must stand after prune" in out
    assert "range_estimator" in out
    assert "one of 'min-max', 'percentile', 'mse', 'entropy'; default percentile" in " ".join(out.split())
    report = run_json(capsys, "methods", "quantize-int8", "--json")
    assert report["option_schemas"]["samples"]["minimum"] == 1
    code, _, err = run(capsys, "methods", "quantize-int9")
    assert code == 2
    assert "Did you mean `quantize-int8`?" in err


def test_targets_lists_tier_and_runner(capsys):
    targets = {target["name"]: target for target in run_json(capsys, "targets", "--json")}
    assert targets["onnx-cpu"]["runner"] == "local"
    assert targets["onnx-cpu"]["distribution"] == f"edgesmith {__version__}"
    shown = " ".join(run(capsys, "targets")[1].split())
    assert "onnx-cpu" in shown
    assert shown.count("measured by reference, tier reference") == 1
    assert "Unless said otherwise: measured by reference, tier reference" in shown
    assert shown.count("measured by local") == 1


def test_plugins_lists_the_broken_ones_with_their_error(capsys):
    code, out, _ = run(capsys, "--plugin", BROKEN, "plugins")
    assert code == 0
    assert "broken" in out
    assert "a_package_that_does_not_exist" in "".join(out.split())
    report = run_json(capsys, "--plugin", BROKEN, "plugins", "--json")
    assert [broken["distribution"] for broken in report["broken"]] == ["file:import_error"]
    assert {plugin["entry_point"] for plugin in report["plugins"]} >= {"core"}


def test_plugins_describe_what_they_bring_of_every_kind(capsys):
    plugins = run_json(capsys, "--no-plugins", "plugins", "--json")["plugins"]
    records = [record for plugin in plugins for record in plugin["records"]]
    assert {record["type"] for record in records} >= {"method", "target", "frontend", "runner", "metric", "lint"}
    for record in records:
        assert record["summary"].endswith(".") and record["version"] and record["distribution"].startswith("edgesmith ")
    assert all({"type": "method", **one} in records for one in run_json(capsys, "--no-plugins", "methods", "--json"))
    words = run(capsys, "plugins")[1].split()
    assert {"metrics", "accuracy,", "sqnr", "prune-weights,"} <= set(words)


def test_disable_leaves_a_plugin_out(capsys):
    entry_points = [
        plugin["entry_point"] for plugin in run_json(capsys, "--disable", "core", "plugins", "--json")["plugins"]
    ]
    assert "core" not in entry_points
    code, _, err = run(capsys, "--disable", "coer", "plugins")
    assert code == 2
    assert "Did you mean `core`?" in err


def test_tracing_goes_to_standard_error(capsys):
    _, out, err = run(capsys, "--trace-plugins", "targets", "--json")
    assert json.loads(out)
    assert "edgesmith:core.register_frontends() -> 3 records" in err


def test_doctor_shows_versions_and_the_whole_error_of_a_broken_plugin(capsys):
    code, out, _ = run(capsys, "--plugin", BROKEN, "doctor")
    assert code == 0
    assert "BROKEN  file:import_error 0+" in out
    assert "Traceback (most recent call last)" in out
    report = run_json(capsys, "--plugin", BROKEN, "doctor", "--json")
    packages = {package["name"]: package for package in report["packages"]}
    assert packages["onnx"]["ok"]
    assert packages["torch"]["required"] is False and packages["onnx"]["extra"] == ""
    compiler = packages["tensorrt-rtx-cu13-bindings"]
    assert (compiler["required"], compiler["extra"]) == (False, "tensorrt-rtx")
    assert "pip install 'edgesmith[tensorrt-rtx]'" in out
    assert report["broken"][0]["stage"] == "import"


def test_doctor_names_clashes_and_unmet_packages(capsys, tmp_path):
    source = Path(COPY).read_text()
    clashing, needy = tmp_path / "clashing.py", tmp_path / "needy.py"
    clashing.write_text(source)
    needs = 'needs=Needs(packages=("absent-package>=2",)), kind'
    needy.write_text(
        source.replace("kind", needs, 1).replace("Verdict,", "Needs, Verdict,").replace('"copy"', '"needy"')
    )
    code, out, _ = run(capsys, "--plugin", COPY, "--plugin", str(clashing), "--plugin", str(needy), "doctor")
    assert code == 0
    assert "method copy: file:clashing:copy and file:raises_in_observer:copy" in out or (
        "method copy: file:raises_in_observer:copy and file:clashing:copy" in out
    )
    assert out.count("missing: needy: absent-package>=2 (not installed)") == 1


def test_schema_is_printed_or_written(capsys, tmp_path):
    schema = run_json(capsys, "--plugin", COPY, "schema")
    methods = [choice["properties"]["method"]["enum"][0] for choice in schema["$defs"]["Step"]["oneOf"]]
    assert "copy" in methods
    path = tmp_path / "recipe.schema.json"
    assert run(capsys, "--plugin", COPY, "schema", "--out", str(path))[0] == 0
    assert json.loads(path.read_text()) == schema


def test_options_that_no_schema_describes_cost_no_other_method_its_schema(capsys):
    broken = str(BAD_PLUGINS / "options_without_schema.py")
    fault = "its options crashed with PydanticInvalidForJsonSchema"
    schema = run_json(capsys, "--plugin", COPY, "--plugin", broken, "schema")
    steps = {step["properties"]["method"]["enum"][0]: step for step in schema["$defs"]["Step"]["oneOf"]}
    assert "copy" in steps
    assert fault in steps["options-without-schema"]["properties"]["options"]["description"]
    code, out, err = run(capsys, "--plugin", broken, "methods", "options-without-schema")
    assert (code, out) == (2, "")
    assert fault in err


def test_a_refusal_has_four_parts_on_standard_error_and_exit_code_2(capsys):
    code, out, err = run(capsys, "--plugin", "absent.py", "methods")
    assert (code, out) == (2, "")
    assert err.startswith("error: absent.py is not a plugin file")
    assert all(part in err for part in ("expected", "why", "next"))
    assert "Traceback" not in err


def test_text_of_an_error_is_shown_as_it_is(capsys, monkeypatch):
    error = RecipeError("field [red]x[/red]", expected="[0, 1]", why="[bold]", fix="see [link]")
    monkeypatch.setattr("edgesmith.host.loader.load_registry", lambda **_: (_ for _ in ()).throw(error))
    _, _, err = run(capsys, "methods")
    assert all(part in err for part in ("[red]x[/red]", "[0, 1]", "[bold]", "see [link]"))


@pytest.mark.parametrize("arguments", [["no-such-command"], ["methods", "--no-such-option"], ["compare", "only-one"]])
def test_a_wrong_call_is_exit_code_2_without_traceback(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: edgesmith" in err
    assert "Traceback" not in err


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, monkeypatch):
    monkeypatch.setattr("edgesmith.host.loader.load_registry", interrupt)
    code, out, err = run(capsys, "methods")
    assert (code, out) == (130, "")
    assert len(err.splitlines()) == 1


def interrupt(**_):
    raise KeyboardInterrupt


def test_a_fault_shows_the_traceback_and_points_to_doctor(capsys, monkeypatch):
    monkeypatch.setattr("edgesmith.host.loader.load_registry", lambda **_: 1 / 0)
    code, _, err = run(capsys, "methods")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "edgesmith doctor" in err


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_directory_that_is_no_artifact_is_refused(capsys, tmp_path, command):
    code, _, err = run(capsys, command, *[str(tmp_path)] * (2 if command == "compare" else 1))
    assert code == 2
    assert "ledger" in err
    assert "hook" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_offers_commands(shell):
    environment = {
        "_EDGESMITH_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "edgesmith meth",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "edgesmith meth",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="edgesmith")
    assert "methods" in result.output
    assert "targets" not in result.output


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("compile --target jetson-orin-", {"jetson-orin-nano", "jetson-orin-nx"}),
        ("lint model.onnx --target rtx-4", {"rtx-40"}),
        ("inspect model.onnx --target onnx", {"onnx-cpu"}),
        ("compile --recipe int", {"int8", "int8-dynamic"}),
        ("methods quantize-w", {"quantize-weights"}),
    ],
)
def test_shell_completion_offers_names_of_what_is_installed(typed, offered):
    environment = {
        "_EDGESMITH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"edgesmith {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="edgesmith")
    assert set(result.output.split()) == offered


def test_progress_is_silent_without_a_terminal_and_for_json(capsys, monkeypatch):
    with make_progress() as progress:
        assert isinstance(progress, SilentProgress)
        assert list(progress.track([1, 2], "counting")) == [1, 2]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with make_progress(silent=True) as progress:
        assert isinstance(progress, SilentProgress)
    assert capsys.readouterr().err == ""


def test_progress_draws_bars_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    with make_progress() as progress:
        assert isinstance(progress, RichProgress)
        with progress.stage("outer [work]"):
            assert list(progress.track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
        for item in progress.track([1, 2, 3], "left early"):
            assert item == 1
            break
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "outer [work]" in captured.err


def test_progress_shows_count_and_estimate_only_where_the_length_is_known():
    bars = Bars(_Count(), _Left(), auto_refresh=False)
    bars.advance(bars.add_task("known", total=3))
    bars.add_task("unknown", total=None)
    known, unknown = bars.tasks
    assert _Count().render(known).plain == "1/3"
    assert _Left().render(known).plain.endswith("left")
    assert _Count().render(unknown).plain == _Left().render(unknown).plain == ""


def test_the_schema_of_data_descriptions_accepts_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--data"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {"calibration", "evaluation", "preprocessing"}
    kinds = {name for name in schema["$defs"] if name.endswith("Spec")}
    assert kinds == {"NpzSpec", "ImagesSpec", "TextSpec", "PythonSpec"}
