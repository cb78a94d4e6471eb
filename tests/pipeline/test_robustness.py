"""What strangers bring: odd graphs, plugins with faults, data given from Python. Nothing gets mixed up."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import edgesmith
from edgesmith.api import Settings
from edgesmith.data import RunData
from edgesmith.errors import DataError, RecipeError
from edgesmith.host.loader import load_registry
from edgesmith.ledger import load_ledger
from edgesmith.measure.runner import LatencyPlan
from edgesmith_calibration.sources import NpzSource
from tests.pipeline.conftest import Job

QUICK = LatencyPlan(warmup_runs=2, min_rounds=3, max_rounds=3)
HEADER = '<ir_version: 9, opset_import: ["" : 17]>'


def settings(folder: Path, *plugins: str) -> Settings:
    registry = load_registry(files=[write_plugin(folder, text) for text in plugins])
    return Settings(threads=1, store=folder / "store", latency_plan=QUICK, registry=registry)


def write_plugin(folder: Path, text: str) -> Path:
    path = folder / f"plugin_{abs(hash(text))}.py"
    path.write_text("import edgesmith\nfrom edgesmith import *\n" + text)
    return path


def validate(artifact: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the artifact's own validator, which may use nothing of Edgesmith."""
    return subprocess.run([sys.executable, "-I", artifact / "validate.py"], capture_output=True, check=False)


def save(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(parser.parse_model(HEADER + text), path)
    return path


def test_a_fixed_batch_leaves_out_samples_that_do_not_fill_one(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    model = parser.parse_model(HEADER + "g (float[4,64] x) => (float[4,8] y) <float[64,8] w> { y = MatMul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(53, 64)).astype(np.float32))
    artifact = edgesmith.compile(
        tmp_path / "model.onnx", data=tmp_path / "x.npz", out=tmp_path / "artifact", settings=settings(tmp_path)
    )
    counts = [int(words.split(", ")[1].split()[0]) for words in artifact.ledger.data.values()]
    assert all(count % 4 == 0 and count > 0 for count in counts)


def test_lowering_and_proof_run_on_the_users_data(tmp_path: Path) -> None:
    """A graph that only ids from 10 to 12 suit: no made-up input runs on it."""
    text = """g (int64[batch,3] ids) => (float[batch,3,4] y) <float[3,4] table> {
        ten = Constant <value_int = 10> () low = Sub(ids, ten) found = Gather(table, low) y = Relu(found) }"""
    model = parser.parse_model(HEADER + text)
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "ids.npz", ids=np.random.default_rng(0).integers(10, 13, (40, 3)))
    artifact = edgesmith.compile(
        tmp_path / "model.onnx",
        recipe="float",
        data=tmp_path / "ids.npz",
        out=tmp_path / "artifact",
        settings=settings(tmp_path),
    )
    passed = subprocess.run(
        [sys.executable, "-I", artifact.directory / "validate.py"], capture_output=True, check=False
    )
    assert passed.returncode == 0 and json.loads(passed.stdout)["damaged_files"] == []


def test_the_validator_accepts_values_that_are_not_finite_on_both_sides(tmp_path: Path) -> None:
    model = save(tmp_path, "g (float[batch,8] x) => (float[batch,8] y) { y = Sqrt(x) }")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((40, 8), np.float32))
    artifact = edgesmith.compile(
        model, recipe="float", data=tmp_path / "x.npz", out=tmp_path / "artifact", settings=settings(tmp_path)
    )
    assert np.isnan(np.load(artifact.directory / "samples.npz")["output/y"]).any()
    passed = subprocess.run(
        [sys.executable, "-I", artifact.directory / "validate.py"], capture_output=True, check=False
    )
    assert passed.returncode == 0, passed.stdout


def test_outputs_that_are_not_finite_are_told_with_the_stage_and_no_ledger_is_pointed_to(tmp_path: Path) -> None:
    model = save(tmp_path, "g (float[batch,8] x) => (float[batch,8] y) { y = Sqrt(x) }")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=random.normal(size=(40, 8)).astype(np.float32), labels=random.integers(0, 8, 40))
    out = tmp_path / "artifact"
    with pytest.raises(DataError, match=r"output 'y' holds NaN or infinity \(stage: source\)") as caught:
        edgesmith.compile(model, recipe="float", data=tmp_path / "x.npz", out=out, settings=settings(tmp_path))
    assert "ledger" not in caught.value.fix and not out.exists()


def test_evaluated_samples_are_taken_out_of_calibration_also_from_python(job: Job) -> None:
    source = NpzSource(job.folder / "evaluation.npz")
    with pytest.raises(DataError):
        edgesmith.compile(
            job.model, data=RunData(source, source), out=job.folder / "artifact", settings=settings(job.folder)
        )


def test_labels_that_a_method_needs_are_asked_for(job: Job) -> None:
    plugin = Path(__file__).with_name("detour_plugin.py").read_text()
    plugin = plugin.replace("kind=kind", "kind=kind, needs=Needs(data=True, labels=True)")
    arrays = {"image": np.load(job.folder / "calibration.npz")["image"]}
    np.savez(job.folder / "calibration.npz", **arrays)
    with pytest.raises(RecipeError, match="labelled"):
        edgesmith.compile(
            job.model,
            recipe={"steps": [{"method": "detour"}]},
            data=job.data,
            out=job.folder / "artifact",
            settings=settings(job.folder, plugin),
        )


BROKEN_FRONTENDS = """
class Crash(Frontend):
    def accepts(self, source): raise SystemExit(3)
    def load(self, source, *, example_inputs=None): ...
    def fingerprint(self, source, *, example_inputs=None): ...

@hookimpl
def register_frontends():
    return [FrontendRecord(name="gone", version="1", summary="x", entry="no_such_module:X", priority=90),
            FrontendRecord(name="crash", version="1", summary="x", entry=f"{__name__}:Crash", priority=80)]
"""


def test_broken_frontends_do_not_stop_the_others(job: Job) -> None:
    artifact = edgesmith.compile(
        job.model, recipe="float", out=job.folder / "artifact", settings=settings(job.folder, BROKEN_FRONTENDS)
    )
    assert artifact.entry.is_file()
    with pytest.raises(edgesmith.EdgesmithError, match=r"Broken: gone .*crash"):
        edgesmith.compile(
            job.folder / "notes.txt",
            out=job.folder / "b",
            recipe="float",
            settings=settings(job.folder, BROKEN_FRONTENDS),
        )


OTHER_TARGETS = """
from edgesmith_onnxruntime.cpu import OnnxCpu

class Lost(OnnxCpu):
    def build(self, model, directory): return Build("../elsewhere.onnx")

class Torn(OnnxCpu):
    for_onnx_runtime = False

class Crash(OnnxCpu):
    def check(self, model): raise ZeroDivisionError("inside")

class Simulated(OnnxCpu):
    pass

@hookimpl
def register_targets():
    return [TargetRecord(name=kind.__name__.lower(), version="1", summary="x", entry=f"{__name__}:{kind.__name__}",
                         tier=Tier.SIMULATED) for kind in (Lost, Torn, Crash, Simulated)]
"""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("lost", "elsewhere"),
        ("torn", "runtime 'onnxruntime', and for_onnx_runtime is False"),
        ("crash", "ZeroDivisionError: inside"),
    ],
)
def test_a_faulty_target_is_named(job: Job, target: str, words: str) -> None:
    with pytest.raises(edgesmith.EdgesmithError, match=rf"Target {target} 1: .*{words}"):
        edgesmith.compile(
            job.model, target=target, recipe="float", out=job.folder / "a", settings=settings(job.folder, OTHER_TARGETS)
        )


def test_numbers_of_another_tier_are_not_taken_from_the_store(job: Job) -> None:
    options = settings(job.folder, OTHER_TARGETS)
    for target, tier in (("onnx-cpu", "reference"), ("simulated", "simulated")):
        artifact = edgesmith.compile(
            job.model, target=target, recipe="float", data=job.data, out=job.folder / target, settings=options
        )
        for row in artifact.ledger.rows:
            numbers = (row.latency_ms, row.size_bytes, row.peak_memory_bytes, row.metric)
            assert {number.tier for number in numbers} == {tier}


def test_the_ledger_names_the_source_as_the_caller_did(job: Job) -> None:
    renamed = job.folder / "renamed.onnx"
    renamed.write_bytes(job.model.read_bytes())
    for source in (job.model, renamed):
        out = job.folder / source.stem
        edgesmith.compile(source, recipe="float", out=out, settings=settings(job.folder))
        assert load_ledger(out).source == str(source)


def test_a_method_may_be_called_source(job: Job) -> None:
    plugin = Path(__file__).with_name("detour_plugin.py").read_text().replace('("detour", ', '("source", ')
    artifact = edgesmith.compile(
        job.model,
        recipe={"steps": [{"method": "source"}]},
        out=job.folder / "artifact",
        settings=settings(job.folder, plugin),
    )
    assert [row.stage for row in artifact.ledger.rows] == ["source", "source (2)", "lower to onnx-cpu"]
    assert {error.against for error in artifact.ledger.rows[2].errors} == {"source", "source (2)"}


def test_a_budget_on_a_drop_needs_a_metric_that_can_drop(job: Job) -> None:
    recipe = {"steps": [], "budget": {"max_metric_drop": 1}}
    with pytest.raises(RecipeError, match="drop"):
        edgesmith.compile(job.model, recipe=recipe, out=job.folder / "artifact", settings=settings(job.folder))


def test_a_method_that_is_not_deterministic_runs_again(job: Job) -> None:
    text = Path(__file__).with_name("detour_plugin.py").read_text()
    plugin = text.replace("kind=kind", "kind=kind, deterministic=False")
    options = settings(job.folder, plugin)
    recipe = {"steps": [{"method": "detour"}]}
    for _ in range(2):
        artifact = edgesmith.compile(job.model, recipe=recipe, out=job.folder / "artifact", settings=replace(options))
        assert not artifact.ledger.rows[1].cached


LINTS = """
def no_gemm(model, dialect):
    nodes = tuple(node.name for node in model.graph if node.op_type == "Gemm")
    return [Finding("Gemm is out of fashion.", "Write MatMul.", nodes)] if nodes else []

def crash(model, dialect): raise ZeroDivisionError("inside")

@hookimpl
def register_lints():
    return [LintRecord(name="no-gemm", version="1", summary="x", entry=f"{__name__}:no_gemm"),
            LintRecord(name="crash", version="1", summary="x", entry=f"{__name__}:crash"),
            LintRecord(name="other", version="1", summary="x", entry="no_such:module", targets=("jetson",))]
"""


def test_lints_speak_up_in_the_ledger_and_faulty_ones_are_named(job: Job) -> None:
    artifact = edgesmith.compile(
        job.model, recipe="float", out=job.folder / "artifact", settings=settings(job.folder, LINTS)
    )
    remarks = artifact.ledger.rows[-1].remarks
    assert "no-gemm: Gemm is out of fashion. (head) Write MatMul." in remarks
    assert any("crash" in remark and "ZeroDivisionError: inside" in remark for remark in remarks)
    assert not any("other" in remark for remark in remarks)
