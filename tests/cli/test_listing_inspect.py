"""`edgesmith inspect`: what is in a model, and which methods apply to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.cli.inspect import describe
from edgesmith.testing import tiny_bert, tiny_mlp
from edgesmith_calibration.preprocessing import TextPreprocessing

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"
COPY = str(BAD_PLUGINS / "raises_in_observer.py")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_inspect_shows_structure_cost_and_which_methods_apply(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    source = tmp_path / "mlp.onnx"
    model = tiny_mlp()
    (model.save(tmp_path / "saved") / "model.onnx").rename(source)
    crash = str(BAD_PLUGINS / "crash_in_check.py")
    code, out, _ = run(capsys, "--plugin", COPY, "--plugin", crash, "inspect", str(source), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["operators"] == {"Gemm": 2, "Relu": 1}
    assert report["cost"]["parameters"] == 8 * 16 + 16 + 16 * 4 + 4
    verdicts = {row["method"]: row for row in report["methods"]}
    assert verdicts["copy"]["verdict"] == "ok"
    assert verdicts["crash-in-check"]["verdict"] == "refuse"
    assert "check crashed" in verdicts["crash-in-check"]["reason"]
    assert "source model" not in verdicts["recover"]["reason"]
    code, out, _ = run(capsys, "--plugin", COPY, "inspect", str(source))
    assert code == 0
    assert "2 Gemm, 1 Relu" in out
    assert "MACs are counted for batch 1" in out
    assert "copy" in out


def test_a_method_whose_options_break_is_refused_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    (tiny_mlp().save(tmp_path / "saved") / "model.onnx").rename(tmp_path / "mlp.onnx")
    broken = ("options-crash", "options-without-default", "options-without-schema")
    plugins = [f"--plugin={BAD_PLUGINS / name.replace('-', '_')}.py" for name in broken]
    code, out, _ = run(capsys, "--plugin", COPY, *plugins, "inspect", str(tmp_path / "mlp.onnx"), "--json")
    assert code == 0
    verdicts = {row["method"]: row for row in json.loads(out)["methods"]}
    assert verdicts["copy"]["verdict"] == "ok"
    for name in broken:
        assert verdicts[name]["verdict"] == "refuse"
        assert f"method {name} 1.0 from file:{name.replace('-', '_')} 0+" in verdicts[name]["reason"]


def test_inspect_refuses_what_no_frontend_reads(capsys, tmp_path):
    text = tmp_path / "notes.onnx"
    text.write_text("this is no model")
    code, out, err = run(capsys, "inspect", str(text))
    assert (code, out) == (2, "")
    assert "notes.onnx" in err
    assert "Traceback" not in err


def test_what_plugins_print_stays_out_of_json_and_a_traced_crash_shows_its_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    (tiny_mlp().save(tmp_path / "saved") / "model.onnx").rename(tmp_path / "mlp.onnx")
    plugins = [f"--plugin={BAD_PLUGINS / name}.py" for name in ("prints", "crash_in_check")]
    wanted = ("inspect", str(tmp_path / "mlp.onnx"), "--json")
    code, out, err = run(capsys, *plugins, *wanted)
    assert code == 0
    assert "prints" in {row["method"] for row in json.loads(out)["methods"]}
    assert all(f"printed {where}\n" in err for where in ("at import", "in a hook", "in check"))
    assert "Traceback" not in err
    code, out, err = run(capsys, "--trace-plugins", *plugins, *wanted)
    assert json.loads(out)
    assert "the whole traceback\nTraceback (most recent call last)" in err
    assert "KeyError: 'absent'" in err
    assert "Traceback" not in run(capsys, *plugins, *wanted)[2]


def test_a_rule_that_ends_its_process_is_a_finding_with_isolation(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BREAK_HERE", "lint.rule:leave")
    (tiny_mlp().save(tmp_path / "saved") / "model.onnx").rename(tmp_path / "mlp.onnx")
    told = f"--plugin={BAD_PLUGINS / 'breaks_as_told.py'}"
    code, out, _ = run(capsys, told, "lint", str(tmp_path / "mlp.onnx"), "--target", "told", "--isolate", "--json")
    assert code == 2
    assert "ended its process with code 5" in json.loads(out)[0]["hazard"]


@pytest.mark.parametrize(("how", "words"), [("crash", "ZeroDivisionError"), ("leave", "ended its process with code 5")])
def test_a_check_that_fails_with_isolation_is_a_finding_beside_the_others(capsys, tmp_path, monkeypatch, how, words):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BREAK_HERE", f"target.check:{how}")
    (tiny_mlp().save(tmp_path / "saved") / "model.onnx").rename(tmp_path / "mlp.onnx")
    told = f"--plugin={BAD_PLUGINS / 'breaks_as_told.py'}"
    code, out, _ = run(capsys, told, "lint", str(tmp_path / "mlp.onnx"), "--target", "told", "--isolate", "--json")
    found = {each["lint"]: each["hazard"] for each in json.loads(out)}
    assert code == 2
    assert words in found["refused"] and found["told"] == "It is there."


def test_a_rule_that_crashes_in_its_own_process_shows_its_traceback_where_asked(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BREAK_HERE", "lint.rule:crash")
    (tiny_mlp().save(tmp_path / "saved") / "model.onnx").rename(tmp_path / "mlp.onnx")
    told = f"--plugin={BAD_PLUGINS / 'breaks_as_told.py'}"
    words = (told, "lint", str(tmp_path / "mlp.onnx"), "--target", "told", "--json", "--isolate")
    code, out, err = run(capsys, "--trace-plugins", *words)
    assert (code, len(json.loads(out))) == (2, 1)
    assert "lint told of file:breaks_as_told" in err and "in told\n    raise ZeroDivisionError" in err


def test_help_is_a_result_also_beside_json(capsys):
    code, out, _ = run(capsys, "inspect", "--json", "--help")
    assert code == 0
    assert "Example: edgesmith inspect" in " ".join(out.split())


def test_texts_are_as_long_as_the_model_takes_them():
    def sequence(preprocessing):
        model = tiny_bert()
        return describe(replace(model, task=model.task.model_copy(update={"preprocessing": preprocessing})))["cost"][
            "dimensions"
        ]["sequence"]

    assert sequence(TextPreprocessing(max_length=24)) == 24
    assert sequence(TextPreprocessing(max_length=512)) == 128
    assert sequence(None) == 128
