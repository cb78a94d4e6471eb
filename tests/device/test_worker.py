"""The worker: alone, as it travels; and its TensorRT part against a fake that proves nothing about TensorRT."""

import itertools
import json
import shutil
import subprocess
import sys
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeCudaLibrary, FakeEngine, FakeTensorRT
from measure_models import dense_model

from edgesmith.device import worker
from edgesmith.device.facts import Probe, Reply

REQUEST = {
    "model": "model.onnx",
    "runtime": "onnxruntime",
    "inputs": ["x"],
    "batches": 2,
    "threads": 1,
    "warmup_runs": 1,
    "seconds": 0.0,
    "fewest_runs": 4,
    "most_runs": 4,
    "cool_below_celsius": 0.0,
    "deadline_seconds": 60,
}


def run_alone(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the file where nothing of Edgesmith can be imported."""
    shutil.copyfile(worker.__file__, folder / "worker.py")
    command = [sys.executable, "-I", str(folder / "worker.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment or None)


def prepare(folder: Path, **changes: object) -> np.ndarray:
    dense_model(folder / "model.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    with worker.ArrayArchive(folder / "inputs.npz") as archive:
        for index in range(2):
            archive.add(index, {"x": x[index]})
    (folder / "request.json").write_text(json.dumps(REQUEST | changes))
    return x


def test_the_file_imports_nothing_but_the_standard_library_at_its_top():
    with Path(worker.__file__).open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME]
    top = [
        following.string
        for token, following in itertools.pairwise(tokens)
        if token.string in ("import", "from") and token.start[1] == 0
    ]
    assert set(top) <= sys.stdlib_module_names


def test_the_probe_tells_what_the_machine_is(tmp_path):
    done = run_alone(tmp_path, "probe", str(tmp_path / "probe.json"))
    assert done.returncode == 0, done.stderr
    probe = Probe.model_validate_json((tmp_path / "probe.json").read_bytes())
    assert probe.modules["numpy"].version == np.__version__
    assert probe.modules["tensorrt"].version == "" or not probe.modules["tensorrt"].reason
    assert probe.state.memory_kib["MemAvailable"] > 0


def test_tools_of_a_jetson_are_asked_where_they_are(tmp_path):
    made_up = Path(__file__).parent / "made_up"
    for name in ("nvpmodel", "tegrastats"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\ncat {made_up / f'made_up_{name}.txt'}\nexec sleep {name == 'tegrastats':d}00\n")
        script.chmod(0o755)
    prepare(tmp_path)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    reply = Reply.model_validate_json((tmp_path / "answer.json").read_bytes())
    assert reply.before.power_mode_name == reply.after.power_mode_name == "MADE_UP_15W"


def test_it_times_and_runs_every_batch(tmp_path):
    import onnxruntime

    x = prepare(tmp_path)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"))
    assert done.returncode == 0, done.stderr
    reply = Reply.model_validate_json((tmp_path / "answer.json").read_bytes())
    assert len(reply.times_ms) == 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "outputs.npz") as outputs:
        for index in range(2):
            found = worker.read_batch(outputs, index, reply.outputs)["logits"]
            np.testing.assert_allclose(found, session.run(None, {"x": x[index]})[0], rtol=1e-5, atol=1e-6)


def test_what_it_started_ends_with_it(tmp_path):
    (tmp_path / "tegrastats").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/number\nexec sleep 300\n")
    (tmp_path / "tegrastats").chmod(0o755)
    prepare(tmp_path, seconds=100.0, most_runs=10**9, deadline_seconds=2)
    assert (
        run_alone(tmp_path, "run", str(tmp_path / "request.json"), PATH=f"{tmp_path}:/usr/bin:/bin").returncode == -14
    )
    number = (tmp_path / "number").read_text().strip()
    for _ in range(100):
        status = Path(f"/proc/{number}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("tegrastats still runs")


@pytest.mark.parametrize("damage", [{"model": "missing.onnx"}, {"inputs": ["x", "y"]}, {"runtime": "tensorrt"}])
def test_what_goes_wrong_is_written_into_the_answer(tmp_path, damage):
    prepare(tmp_path, **damage)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"))
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert done.returncode == 1
    assert answer["status"] == "failed"
    assert answer["reason"]


def test_it_ends_itself_at_its_deadline(tmp_path):
    prepare(tmp_path, seconds=100.0, most_runs=10**9, deadline_seconds=1)
    assert run_alone(tmp_path, "run", str(tmp_path / "request.json")).returncode == -14
    assert not (tmp_path / "answer.json").exists()


def test_waiting_for_a_cool_device_ends_when_it_is_cool_or_never_will_be(monkeypatch):
    temperatures = iter([80.0, 60.0, 40.0])
    monkeypatch.setattr(worker, "_temperatures", lambda: {"made up": next(temperatures)})
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    worker.cool_down(50.0)
    assert next(temperatures, None) is None
    monkeypatch.setattr(worker, "_temperatures", lambda: {"made up": 80.0})
    monkeypatch.setattr(worker, "SECONDS_TO_COOL", 0)
    with pytest.raises(RuntimeError, match="did not cool below"):
        worker.cool_down(50.0)


@pytest.fixture
def fake_engine(tmp_path):
    (tmp_path / "engine.plan").write_bytes(b"fake engine")
    return tmp_path / "engine.plan"


def test_fake_tensorrt_gets_inputs_and_gives_outputs_back(fake_engine):
    library = FakeCudaLibrary()
    model = worker.TensorRTModel(fake_engine, FakeTensorRT, worker.Cuda(library))
    assert model.names == ["y"]
    for shape in ((2, 3), (8, 5), (1, 1)):
        x = np.random.default_rng(0).normal(size=shape)
        model.set_inputs({"x": x, "unused": x})
        found = model.outputs()["y"]
        np.testing.assert_array_equal(found, 2 * x.astype(np.float32) + 1)
        # Buffers of the shapes before have been given back.
        assert len(library.blocks) == 2


def test_fake_tensorrt_runs_are_timed_without_copies(fake_engine):
    model = worker.TensorRTModel(fake_engine, FakeTensorRT, worker.Cuda(FakeCudaLibrary()))
    model.set_inputs({"x": np.zeros((2, 3))})
    assert len(worker.measure(model, REQUEST)) == 4


def test_fake_tensorrt_refusals_are_told(fake_engine, monkeypatch):
    model = worker.TensorRTModel(fake_engine, FakeTensorRT, worker.Cuda(FakeCudaLibrary(most_bytes=64)))
    with pytest.raises(RuntimeError, match="takes no x of shape"):
        model.set_inputs({"x": np.zeros((9, 1))})
    with pytest.raises(RuntimeError, match=r"cudaMalloc .* error 2"):
        model.set_inputs({"x": np.zeros((8, 100))})
    monkeypatch.setattr(FakeEngine, "data_dependent", True)
    with pytest.raises(RuntimeError, match="depends on the data"):
        model.set_inputs({"x": np.zeros((1, 1))})
    fake_engine.write_bytes(b"an engine of another GPU")
    with pytest.raises(RuntimeError, match="another GPU or version"):
        worker.TensorRTModel(fake_engine, FakeTensorRT, worker.Cuda(FakeCudaLibrary()))
