"""The worker: alone, as it travels; and its TensorRT part against a fake that proves nothing about TensorRT."""

import itertools
import json
import os
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
from edgesmith.device.local import LocalTransport
from edgesmith.device.remote import WORKER, pack_worker
from edgesmith.device.transport import Workspace
from edgesmith.device.worker import machine
from edgesmith.device.worker.archive import ArrayArchive, read_batch
from edgesmith.device.worker.tensor_rt import Cuda, TensorRTModel
from edgesmith.serialization import write_onnx
from small_graphs import convolution_in_float16

REQUEST = {
    "model": "model.onnx",
    "runtime": "onnxruntime",
    "inputs": ["x"],
    "batches": 2,
    "threads": 1,
    "as_written": False,
    "warmup_runs": 1,
    "seconds": 0.0,
    "fewest_runs": 4,
    "most_runs": 4,
    "cool_below_celsius": 0.0,
    "cuda_graphs": True,
    "lock_clocks": False,
    "tapped_model": "",
    "tapped_batches": 0,
    "loadgen": "",
    "target_qps": 0.0,
    "deadline_seconds": 60,
}


def run_alone(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the one file that travels, where nothing of Edgesmith can be imported."""
    pack_worker(folder)
    command = [sys.executable, "-I", str(folder / WORKER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment or None)


def prepare(folder: Path, **changes: object) -> np.ndarray:
    dense_model(folder / "model.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    with ArrayArchive(folder / "inputs.npz") as archive:
        for index in range(2):
            archive.add(index, {"x": x[index]})
    (folder / "request.json").write_text(json.dumps(REQUEST | changes))
    return x


@pytest.mark.parametrize("file", sorted(Path(worker.__file__).parent.glob("*.py")), ids=lambda file: file.name)
def test_its_files_import_nothing_but_the_standard_library_and_each_other_at_their_top(file):
    with file.open("rb") as stream:
        tokens = [token for token in tokenize.tokenize(stream.readline) if token.type in (tokenize.NAME, tokenize.OP)]
    top = [
        following.string
        for token, following in itertools.pairwise(tokens)
        if token.string in ("import", "from") and token.start[1] == 0
    ]
    assert set(top) <= sys.stdlib_module_names | {"."}


def test_the_same_code_gives_the_same_file(tmp_path):
    (tmp_path / "again").mkdir()
    assert pack_worker(tmp_path).read_bytes() == pack_worker(tmp_path / "again").read_bytes()


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
            found = read_batch(outputs, index, reply.outputs)["logits"]
            np.testing.assert_allclose(found, session.run(None, {"x": x[index]})[0], rtol=1e-5, atol=1e-6)


def let_the_deadline_come_while_it_times(folder: Path) -> None:
    """Put a fake tegrastats into `folder`, which starts with the timing, and sends what the deadline would send."""
    script = folder / "tegrastats"
    script.write_text(f"#!/bin/sh\necho $$ > {folder}/number\nkill -ALRM $(cat {folder}/worker.pid)\nexec sleep 300\n")
    script.chmod(0o755)


def test_what_it_started_ends_with_it(tmp_path):
    let_the_deadline_come_while_it_times(tmp_path)
    prepare(tmp_path, seconds=100.0, most_runs=10**9, deadline_seconds=100)
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
    monkeypatch.setattr(machine, "_temperatures", lambda: {"made up": next(temperatures)})
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    machine.cool_down(50.0)
    assert next(temperatures, None) is None
    monkeypatch.setattr(machine, "_temperatures", lambda: {"made up": 80.0})
    monkeypatch.setattr(machine, "SECONDS_TO_COOL", 0)
    with pytest.raises(RuntimeError, match="did not cool below"):
        machine.cool_down(50.0)


@pytest.fixture
def fake_engine(tmp_path):
    (tmp_path / "engine.plan").write_bytes(b"fake engine")
    return tmp_path / "engine.plan"


def test_fake_tensorrt_gets_inputs_and_gives_outputs_back(fake_engine):
    library = FakeCudaLibrary()
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(library))
    assert model.names == ["y"]
    for shape in ((2, 3), (8, 5), (1, 1)):
        x = np.random.default_rng(0).normal(size=shape)
        model.set_inputs({"x": x, "unused": x})
        found = model.outputs()["y"]
        np.testing.assert_array_equal(found, 2 * x.astype(np.float32) + 1)
        # Buffers of the shapes before have been given back.
        assert len(library.blocks) == 2


def test_fake_tensorrt_runs_are_timed_without_copies(fake_engine):
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(FakeCudaLibrary()))
    model.set_inputs({"x": np.zeros((2, 3))})
    assert len(model.times(REQUEST)) == 4


def test_fake_tensorrt_refusals_are_told(fake_engine, monkeypatch):
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(FakeCudaLibrary(most_bytes=64)))
    with pytest.raises(RuntimeError, match="takes no x of shape"):
        model.set_inputs({"x": np.zeros((9, 1))})
    with pytest.raises(RuntimeError, match=r"cudaMalloc .* error 2"):
        model.set_inputs({"x": np.zeros((8, 100))})
    monkeypatch.setattr(FakeEngine, "data_dependent", True)
    with pytest.raises(RuntimeError, match="depends on the data"):
        model.set_inputs({"x": np.zeros((1, 1))})
    fake_engine.write_bytes(b"an engine of another GPU")
    with pytest.raises(RuntimeError, match="another GPU or version"):
        TensorRTModel(fake_engine, FakeTensorRT, Cuda(FakeCudaLibrary()))


def test_a_cuda_graph_runs_what_was_recorded_on_the_present_inputs(fake_engine):
    library = FakeCudaLibrary()
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(library))
    for size in (2, 3):
        x = np.full((size, 3), size, np.float32)
        model.set_inputs({"x": x})
        assert len(model.times(REQUEST)) == 4
        assert model.facts["cuda_graph"] == "used"
        np.testing.assert_array_equal(model.outputs()["y"], 2 * x + 1)
        # One trial of the graph, the four timed runs and the one for the outputs.
        assert library.launches == 6 * (size - 1)
        assert len(library.graphs) == 1  # that of the buffers before was given back


def test_an_engine_that_takes_no_graph_is_timed_without_and_says_so(fake_engine):
    library = FakeCudaLibrary()
    library.takes_graphs = False
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(library))
    model.set_inputs({"x": np.zeros((2, 3))})
    assert len(model.times(REQUEST)) == 4
    assert "error 800" in model.facts["cuda_graph"]
    np.testing.assert_array_equal(model.outputs()["y"], 1)


def test_a_library_without_graphs_is_told(fake_engine):
    library = FakeCudaLibrary()
    del library.cudaStreamBeginCapture
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(library))
    model.set_inputs({"x": np.zeros((2, 3))})
    model.times(REQUEST)
    assert "no cudaStreamBeginCapture" in model.facts["cuda_graph"]


def test_layers_and_their_times_are_told_after_the_timing(fake_engine):
    model = TensorRTModel(fake_engine, FakeTensorRT, Cuda(FakeCudaLibrary()))
    model.set_inputs({"x": np.zeros((2, 3))})
    layers, times = model.describe()
    assert json.loads(layers)["Layers"][0]["Name"] == "made-up layer"
    assert json.loads(times)[1] == {"name": "made-up layer", "averageMs": 0.5}


def test_values_inside_the_graph_are_kept(tmp_path):
    from edgesmith.device.taps import write_tapped

    prepare(tmp_path, tapped_model="tapped.onnx", tapped_batches=2)
    write_tapped(tmp_path / "model.onnx", ["hidden_0"], tmp_path)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"))
    assert done.returncode == 0, done.stderr + (tmp_path / "answer.json").read_text()
    reply = Reply.model_validate_json((tmp_path / "answer.json").read_bytes())
    assert set(reply.taps) == {"logits", "hidden_0"}
    with np.load(tmp_path / "taps.npz") as taps:
        assert read_batch(taps, 1, reply.taps)["hidden_0"].shape[0] == 3


def test_a_graph_for_another_runtime_runs_as_it_is_written(tmp_path):
    prepare(tmp_path, as_written=True)
    write_onnx(convolution_in_float16().ir, tmp_path / "model.onnx")
    with ArrayArchive(tmp_path / "inputs.npz") as archive:
        for index in range(2):
            archive.add(index, {"x": np.zeros((1, 3, 2, 2), np.float16)})
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"))
    assert done.returncode == 0, done.stderr + (tmp_path / "answer.json").read_text()
    assert json.loads((tmp_path / "answer.json").read_text())["optimization"] == "basic"
    with np.load(tmp_path / "outputs.npz") as outputs:
        (found,) = read_batch(outputs, 0, ["y"]).values()
    assert np.array_equal(found[0, :, 0, 0], [1, 2, 3, 4])


def fake_clocks(folder, fails=False):
    """Put a fake jetson_clocks into `folder` that writes what it is asked to do."""
    script = folder / "jetson_clocks"
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {folder}/asked\n'
        + ("echo 'made-up refusal' >&2; exit 1\n" if fails else '[ "$1" = --store ] && echo old > "$2"\nexit 0\n')
    )
    script.chmod(0o755)
    sudo = folder / "sudo"
    sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    sudo.chmod(0o755)


def test_clocks_are_locked_while_it_is_timed_and_put_back(tmp_path):
    fake_clocks(tmp_path)
    prepare(tmp_path, lock_clocks=True)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    store = tmp_path / "clocks.store"
    assert (tmp_path / "asked").read_text().splitlines() == [f"--store {store}", "", f"--restore {store}"]
    assert not store.exists()


def test_clocks_that_a_killed_run_left_locked_are_kept_once_and_put_back_when_the_directory_is_left(
    tmp_path, monkeypatch
):
    fake_clocks(tmp_path)
    let_the_deadline_come_while_it_times(tmp_path)
    path, store = f"{tmp_path}:/usr/bin:/bin", tmp_path / "clocks.store"
    prepare(tmp_path, lock_clocks=True, seconds=100.0, most_runs=10**9, deadline_seconds=100)
    for _ in range(2):
        assert run_alone(tmp_path, "run", str(tmp_path / "request.json"), PATH=path).returncode == -14
        assert store.exists()
    assert (tmp_path / "asked").read_text().splitlines() == [f"--store {store}", "", ""]
    monkeypatch.setenv("PATH", path)
    place = Workspace(LocalTransport("", sys.executable), str(tmp_path))
    assert place.restore_clocks() == ""
    assert (tmp_path / "asked").read_text().splitlines()[-1] == f"--restore {store}"
    assert not store.exists()
    assert place.restore_clocks() == ""  # there is nothing left to do
    assert (tmp_path / "asked").read_text().count("--restore") == 1


def test_clocks_that_cannot_be_locked_are_a_remark(tmp_path):
    fake_clocks(tmp_path, fails=True)
    prepare(tmp_path, lock_clocks=True)
    done = run_alone(tmp_path, "run", str(tmp_path / "request.json"), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    reply = Reply.model_validate_json((tmp_path / "answer.json").read_bytes())
    assert reply.clock_problem == "made-up refusal"


@pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(), reason="only Linux counts how long a thread waits"
)
def test_waiting_for_a_processor_is_counted_where_another_process_has_it():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, spun = machine.waited_seconds(), 0
        # Two busy processes on one processor take turns, so within this much work of its own this one has waited.
        end = time.process_time() + 0.3
        while time.process_time() < end:
            spun += 1
        assert machine.waited_seconds() > before
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, allowed)
