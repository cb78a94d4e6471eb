"""The local runner on real sessions: outputs, times, memory of a child process, and clear failures."""

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from measure_models import ArrayData, dense_model

from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier
from edgesmith.measure.local import LocalRunner
from edgesmith.measure.memory import measure_in_child
from edgesmith.measure.runner import CPU_PROVIDER, LatencyPlan, MemoryPlan

X = {"x": np.ones((4, 16), dtype=np.float32)}


def test_outputs_stream_in_order(small: Path, data: ArrayData):
    runner = LocalRunner()
    streamed = [outputs["logits"] for outputs in runner.outputs(small, data.batches(32))]
    (whole,) = [outputs["logits"] for outputs in runner.outputs(small, data.batches(70))]
    assert [len(part) for part in streamed] == [32, 32, 6]
    np.testing.assert_allclose(np.concatenate(streamed), whole, rtol=1e-5)


def test_latency_of_a_deeper_model_is_longer(small: Path, tmp_path: Path):
    deep = dense_model(tmp_path / "deep.onnx", depth=40, width=16)
    plan = LatencyPlan(min_rounds=5, max_rounds=5)
    comparison = LocalRunner().latency({"deep": deep, "small": small}, X, plan)
    assert comparison.speedup("small", "deep").value > 1
    latency = comparison.latency_ms("deep")
    assert latency.low <= latency.value <= latency.high
    assert latency.samples == 15 and latency.tier is Tier.REFERENCE
    assert latency.conditions["threads"] == 1 and latency.conditions["shapes"] == "x 4x16"
    assert latency.conditions["batch"] == 4 and "onnxruntime" in latency.conditions["runtime"]


def test_inputs_that_a_stage_does_not_have_are_left_out(small: Path):
    plan = LatencyPlan(min_rounds=1, max_rounds=1)
    comparison = LocalRunner().latency({"small": small}, {**X, "unused": np.zeros(3)}, plan)
    assert len(comparison.rounds["small"]) == 1 and comparison.latency_ms("small").value > 0


def test_peak_memory_sees_the_weights(small: Path, tmp_path: Path):
    large = dense_model(tmp_path / "large.onnx", depth=4, width=1024)
    runner = LocalRunner()
    light = runner.peak_memory(small, X)
    heavy = runner.peak_memory(large, {"x": np.ones((1, 1024), dtype=np.float32)})
    weights = 4 * 1024 * 1024 * 4
    assert heavy.peak_bytes.value - light.peak_bytes.value > 0.9 * weights
    assert heavy.baseline_bytes < light.peak_bytes.value <= heavy.peak_bytes.value
    assert heavy.peak_bytes.conditions["baseline_bytes"] == heavy.baseline_bytes
    assert light.resident_bytes <= light.peak_bytes.value


def test_a_large_parent_does_not_count_as_the_childs_memory(small: Path):
    ballast = np.ones(50_000_000)
    use = LocalRunner().peak_memory(small, X)
    assert use.peak_bytes.value < ballast.nbytes / 2


def test_the_child_is_light(small: Path):
    memory = measure_in_child(small, X, MemoryPlan(), threads=1, provider=CPU_PROVIDER)
    assert {"numpy", "onnxruntime"} <= set(memory.modules)
    assert not {"torch", "onnx", "onnx_ir", "transformers", "pydantic"} & set(memory.modules)


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "a/b", "../x"])
def test_any_name_of_an_input_reaches_the_child(small: Path, name: str):
    model = ir.load(small)
    model.graph.inputs[0].name = name
    ir.save(model, small)
    assert LocalRunner().peak_memory(small, {name: X["x"]}).peak_bytes.value > 0


def test_repeated_children_give_quartiles(small: Path):
    peak = LocalRunner().peak_memory(small, X, MemoryPlan(repeats=2)).peak_bytes
    assert peak.samples == 2 and peak.low is not None and peak.low <= peak.value <= peak.high


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, most likely because memory ran out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise ValueError('broken model')", "ValueError: broken model"),
        ("print('no JSON')", "instead of its memory"),
        ("print('{}')", "instead of its memory"),
        ("import time; time.sleep(60)", "took longer than 2 s"),
    ],
)
def test_a_child_that_fails_is_named(small: Path, program: str, message: str):
    plan = MemoryPlan(timeout_seconds=2 if "sleep" in program else 60)
    command = (sys.executable, "-c", program)
    with pytest.raises(MeasurementError, match=message):
        measure_in_child(small, X, plan, threads=1, provider=CPU_PROVIDER, command=command)


def test_a_model_that_the_child_cannot_load_is_named(tmp_path: Path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx ended with code 1"):
        LocalRunner().peak_memory(broken, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no data for input x"),
        ({"x": np.ones((4, 7), dtype=np.float32)}, r"cannot run .* x float32 \[4, 7\]"),
        ({"x": np.ones((4, 16), dtype=np.float64)}, "x float64"),
    ],
)
def test_wrong_inputs_are_refused_with_their_shape(small: Path, inputs: dict, message: str):
    with pytest.raises(MeasurementError, match=message):
        LocalRunner().latency({"small": small}, inputs)


def test_files_that_are_no_models_are_refused(tmp_path: Path):
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(MeasurementError, match="cannot load"):
        LocalRunner().latency({"text": text}, X)
    with pytest.raises(MeasurementError, match="is not a file"):
        LocalRunner().peak_memory(tmp_path / "missing.onnx", X)


@pytest.mark.parametrize("threads", [0, 100_000])
def test_no_threads_and_absurdly_many_are_refused(threads: int):
    with pytest.raises(MeasurementError, match=f"{threads} threads"):
        LocalRunner(threads=threads)
