"""Bad input from the command line: one clear error, exit code 2, no traceback, nothing lost or half written."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from edgesmith.cli import main
from tests.pipeline.conftest import Job

Spoil = Callable[[Job], list[str]]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, require a refusal in four parts, and return what it said."""
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert "Traceback" not in captured.err
    for part in ("error:", "expected", "why", "next"):
        assert part in captured.err
    return " ".join(captured.err.split())


def spoil_model(change: Callable[[onnx.ModelProto], None]) -> Spoil:
    def apply(job: Job) -> list[str]:
        model = onnx.load(job.model)
        change(model)
        job.model.write_bytes(model.SerializeToString())
        return job.arguments()

    return apply


def spoil_bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def apply(job: Job) -> list[str]:
        job.model.write_bytes(change(job.model.read_bytes()))
        return job.arguments()

    return apply


def point_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../etc/passwd"), ("offset", "0"), ("length", "1728")):
        tensor.external_data.add(key=key, value=value)


def write_nan(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def set_dimension(size: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = size

    return change


def rename_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Frobnicate"


MODELS: dict[str, tuple[Spoil, str]] = {
    "missing file": (
        lambda job: [a.replace("classifier.onnx", "nothing.onnx") for a in job.arguments()],
        "nothing.onnx",
    ),
    "truncated": (spoil_bytes(lambda content: content[: len(content) // 2]), "classifier.onnx"),
    "empty": (spoil_bytes(lambda content: b""), "classifier.onnx"),
    "text file": (spoil_bytes(lambda content: b"hello, I am no model\n" * 10), "classifier.onnx"),
    "unknown operator": (spoil_model(rename_operator), "Frobnicate"),
    "external data outside": (spoil_model(point_outside), "passwd"),
    "negative dimension": (spoil_model(set_dimension(-16)), "w1"),
    "absurd dimension": (spoil_model(set_dimension(2**62)), "w1"),
    "not a number in the weights": (spoil_model(write_nan), "w1"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model(job: Job, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, words = MODELS[case]
    assert words in refused(spoil(job), capsys)
    assert not (job.folder / "artifact").exists()


def test_a_missing_source_is_told_before_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["compile", str(tmp_path / "nothing.onnx"), "--out", str(tmp_path / "artifact")], capsys)
    assert "nothing.onnx` does not exist" in said
    assert "calibration data" not in said


def test_a_graph_that_was_optimized_for_this_processor_is_for_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in "xy"]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], weights)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "all.onnx")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if all(node.domain != "com.microsoft.nchwc" for node in onnx.load(tmp_path / "all.onnx").graph.node):
        pytest.skip("ONNX Runtime has no layout of its own for this processor")
    words = ["compile", str(tmp_path / "all.onnx"), "--recipe", "float", "--out", str(tmp_path / "out")]
    said = refused([*words, "--target", "jetson-orin-nano"], capsys)
    assert "com.microsoft.nchwc" in said and "at level EXTENDED or below" in said


def test_missing_data_is_told_with_the_default_and_the_recipes_that_need_none(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["compile", str(job.model), "--out", str(job.folder / "artifact")], capsys)
    assert "calibration data" in said
    assert "int8 by default" in said
    assert "--recipe int8-dynamic and --recipe float need no data" in said


def spoil_data(role: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Spoil:
    def apply(job: Job) -> list[str]:
        path = job.folder / f"{role}.npz"
        np.savez(path, **change(dict(np.load(path))))
        return job.arguments()

    return apply


def spoil_description(change: Callable[[dict[str, object]], object]) -> Spoil:
    def apply(job: Job) -> list[str]:
        job.data.write_text(yaml.safe_dump(change(yaml.safe_load(job.data.read_text()))))
        return job.arguments()

    return apply


def with_nan(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays["image"][3, 0, 0, 0] = np.nan
    return arrays


DATA: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda job: [*job.arguments(), "--data", str(job.folder / "no.yaml")], "no.yaml"),
    "wrong dtype": (spoil_data("calibration", lambda a: a | {"image": a["image"].astype(np.int64)}), "image"),
    "wrong shape": (spoil_data("calibration", lambda a: a | {"image": a["image"][:, :2]}), "image"),
    "wrong name": (spoil_data("calibration", lambda a: {"picture": a["image"]}), "image"),
    "empty": (spoil_data("calibration", lambda a: {name: array[:0] for name, array in a.items()}), "calibration"),
    "not a number": (spoil_data("calibration", with_nan), "image"),
    "labels of another count": (spoil_data("evaluation", lambda a: a | {"labels": a["labels"][:5]}), "label"),
    "labels out of range": (spoil_data("evaluation", lambda a: a | {"labels": a["labels"] + 1000}), "label"),
    "images for another input": (
        spoil_description(
            lambda d: {
                "evaluation": {"kind": "images", "path": "photos"},
                "calibration": d["calibration"],
                "preprocessing": {"kind": "image", "input": "x"},
            }
        ),
        "Write `preprocessing: {kind: image, input: image, ...}`",
    ),
    "unknown kind": (spoil_description(lambda d: {"calibration": {"kind": "npx", "path": "x"}}), "kind"),
    "not a description": (spoil_description(lambda d: ["nonsense"]), "data.yaml"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(job: Job, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, words = DATA[case]
    assert words in refused(spoil(job), capsys)
    assert not (job.folder / "artifact").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--recipe", "int9"], "int8"),
        (["--target", "onnx-gpu"], "onnx-cpu"),
        (["--recipe", "unknown-metric.yaml"], "accuracy"),
        (["--recipe", "unknown-method.yaml"], "quantize-int8"),
        (["--recipe", "unknown-option.yaml"], "mode"),
        (["--recipe", "bad-value.yaml"], "mode"),
    ],
)
def test_bad_names_and_options(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    monkeypatch.chdir(job.folder)
    steps = {
        "unknown-method.yaml": {"method": "quantise-int8"},
        "unknown-option.yaml": {"method": "quantize-int8", "options": {"mod": "static"}},
        "bad-value.yaml": {"method": "quantize-int8", "options": {"mode": "sometimes"}},
    }
    for name, step in steps.items():
        Path(name).write_text(yaml.safe_dump({"steps": [step]}))
    Path("unknown-metric.yaml").write_text(yaml.safe_dump({"steps": [], "metric": "acuracy"}))
    assert words in refused(job.arguments(*more), capsys)
    # Names are checked before the model is read, so nothing was stored for it.
    assert not list((job.folder / "store").glob("models/*"))


def test_static_quantization_without_data_is_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    words = [a for a in job.arguments() if a not in ("--data", str(job.data))]
    assert "calibration data" in refused(words, capsys)


def test_an_output_that_cannot_be_written_is_refused_before_work(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / "file").write_text("mine")
    words = job.arguments()
    words[words.index("--out") + 1] = str(job.folder / "file" / "artifact")
    assert "Cannot write" in refused(words, capsys)
    assert (job.folder / "file").read_text() == "mine"


def test_a_full_disk_loses_nothing(job: Job) -> None:
    """The system ends writes at 20 kB, as a full disk would, while an earlier artifact stands at the destination."""
    assert main(job.arguments("--recipe", "float")) == 0
    before = {path: path.read_bytes() for path in (job.folder / "artifact").rglob("*") if path.is_file()}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "edgesmith", *job.arguments("--recipe", "int8")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and "Cannot write" in result.stderr
    assert {path: path.read_bytes() for path in (job.folder / "artifact").rglob("*") if path.is_file()} == before


def test_a_graph_without_inputs_is_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    model = helper.make_model(helper.make_graph([node], "g", [], [output]), ir_version=9)
    job.model.write_bytes(model.SerializeToString())
    assert "input" in refused(job.arguments(), capsys)
