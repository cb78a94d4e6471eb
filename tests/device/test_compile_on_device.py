"""`edgesmith compile --on`: what pays is decided by the device's times, and the device is left clean."""

import json
import shutil
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from device_fixtures import made_up_probe, made_up_state
from measure_models import dense_model

import edgesmith
from edgesmith.api import _device_clock
from edgesmith.cli import main
from edgesmith.device import depot
from edgesmith.device.address import Address
from edgesmith.device.clock import DeviceClock
from edgesmith.device.local import LocalTransport
from edgesmith.device.plan import DevicePlan
from edgesmith.device.ssh import SshTransport
from edgesmith.device.transport import workspace
from edgesmith.errors import DeviceError, MeasurementError, RecipeError
from edgesmith.host.loader import load_registry
from edgesmith.host.records import Tier
from edgesmith.host.targets import find_target
from edgesmith.measure.runner import LatencyPlan
from edgesmith.progress import SilentProgress

STEP = {"method": "quantize-weights", "options": {"bits": 8, "block_size": None}}
QUICK = LatencyPlan(warmup_runs=2, min_rounds=2, max_rounds=2)


@pytest.fixture
def on(server):
    return f"ssh://tester@127.0.0.1:{server.port}"


@pytest.fixture
def source(tmp_path):
    return dense_model(tmp_path / "dense.onnx", width=64)


@pytest.fixture
def compile_on(tmp_path, source, device_folder):
    """Compile with one step that is kept if it pays, always into the same store."""

    def run(on, target="onnx-cpu", keep="if-pays", **device):
        plan = DevicePlan(**{"directory": str(device_folder), "python": sys.executable, "threads": 1} | device)
        settings = edgesmith.Settings(threads=1, store=tmp_path / "store", on=on, device=plan, latency_plan=QUICK)
        recipe = {"version": 1, "keep": keep, "steps": [STEP]}
        return edgesmith.compile(source, out=tmp_path / "artifact", target=target, recipe=recipe, settings=settings)

    return run


@pytest.fixture
def fake_device(tmp_path):
    """Returns an interpreter that plays a device, of the name and the made-up speed that are given."""

    def make(speedup, board="Fake board", power_mode="fake_15W", power_mode_later="", clocks=()):
        modules = {name: {"version": "0.0-fake", "reason": ""} for name in ("numpy", "onnxruntime")}
        probe = made_up_probe(board=board, modules=modules, state=made_up_state(power_mode, clocks=clocks))
        state = made_up_state(power_mode_later or power_mode, clocks=clocks)
        told = tmp_path / f"fake_device_{len(list(tmp_path.glob('fake_device*')))}.json"
        told.write_text(json.dumps({"probe": probe, "state": state, "speedup": speedup}))
        python, program = told.with_suffix(""), Path(__file__).with_name("fake_worker.py")
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {program} {told} "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


def timings(server):
    return [line for line in server.commands if " time " in line]


def test_times_of_the_device_decide_whether_a_step_stays_and_no_other_devices_times_do(
    compile_on, fake_device, on, server, device_folder
):
    # One store for all: what the fast device said is not taken for the slow one, nor for another power mode of it.
    for speedup, power_mode, status in ((2.0, "fake_15W", "ok"), (0.5, "fake_15W", "undone"), (2.0, "fake_7W", "ok")):
        server.commands.clear()
        python = fake_device(board=f"Fake board of speed {speedup}", speedup=speedup, power_mode=power_mode)
        artifact = compile_on(on, python=python)
        source, step, _ = artifact.ledger.rows
        assert step.status == status
        assert ("lowered to the target, it" in step.reason and "0.50x" in step.reason) == (status == "undone")
        assert len(timings(server)) == 2  # the judgement, and the ledger
        conditions = step.latency_ms.conditions
        assert conditions["processor"] == f"Fake board of speed {speedup}" and conditions["device"] == on
        assert conditions["power_mode"] == power_mode and conditions["runtime"] == "onnxruntime 0.0-fake"
        assert step.latency_ms.tier is step.speedup_step.tier is Tier.DEVICE
        # Everything else is measured where it was before.
        assert step.size_bytes.tier is step.peak_memory_bytes.tier is Tier.REFERENCE
        assert step.peak_memory_bytes.conditions["runtime"] != "onnxruntime 0.0-fake"
        assert any(on in remark for remark in source.remarks)
        assert artifact.ledger.device["address"] == on
        assert f"--on {on}" in json.loads((artifact.directory / "manifest.json").read_text())["command"]
        assert list(device_folder.iterdir()) == []
    server.commands.clear()
    again = compile_on(on, python=python).ledger.rows[1]
    assert timings(server) == [] and again.cached and again.latency_ms == step.latency_ms


@pytest.mark.parametrize(("threads", "expected"), [(0, 1), (3, 3)])
def test_threads_of_the_run_hold_on_the_device_where_it_has_none_of_its_own(
    compile_on, fake_device, on, threads, expected
):
    rows = compile_on(on, python=fake_device(2.0), threads=threads).ledger.rows
    assert rows[0].latency_ms.conditions["threads"] == expected


def test_times_of_another_runtime_do_not_decide_what_stays(compile_on):
    with pytest.raises(RecipeError, match=r"those of ONNX Runtime say little of jetson-orin-nano"):
        compile_on("local", target="jetson-orin-nano", runtime="onnxruntime")


@pytest.mark.parametrize(("target", "optimization"), [("android-cpu", "all"), ("android-qnn", "basic")])
def test_a_graph_for_another_runtime_is_timed_as_it_is_written_as_validate_does(fake_device, target, optimization):
    _, its = find_target(load_registry(), target)
    plan = SimpleNamespace(target=its, recipe=SimpleNamespace(keep="if-pays"))
    settings = edgesmith.Settings(on="local", device=DevicePlan(python=fake_device(2.0)))
    with ExitStack() as closing:
        clock = _device_clock(plan, settings, closing)
        assert clock.conditions({"x": np.zeros((1, 4))}).optimization == optimization


def test_times_at_another_clock_are_measured_anew(compile_on, fake_device, on, server):
    for mhz, speedup, status in ((600, 2.0, "ok"), (1200, 0.5, "undone")):
        server.commands.clear()
        artifact = compile_on(on, python=fake_device(speedup, clocks=(("policy0", mhz, mhz, mhz),)))
        assert artifact.ledger.rows[1].status == status and len(timings(server)) == 2


def test_the_real_worker_times_over_ssh_and_no_content_is_sent_twice(compile_on, on, server, device_folder):
    artifact = compile_on(on)
    rows = artifact.ledger.rows
    assert all(row.latency_ms.tier is Tier.DEVICE for row in rows)
    assert [row.speedup is not None for row in rows] == [False, True, True]
    made = [line for line in server.commands if line.startswith("mkdir")]
    # The source and the step, each also lowered: four contents, for eight places in two comparisons.
    assert len(made) == len(set(made)) <= 4
    # Room is asked for before each file that is sent: the worker, one batch, the models, and a request each time.
    assert sum(line.startswith("df") for line in server.commands) == 2 + len(made) + len(timings(server))
    assert list(device_folder.iterdir()) == []


def break_at(server, word, times):
    """Break the connection so many times when a command with `word` in it is sent."""
    broken = []

    def break_off(line, process):
        if word not in line or len(broken) >= times:
            return False
        broken.append(line)
        process.channel.get_connection().abort()
        return True

    server.on_command = break_off


@pytest.mark.parametrize("word", ["mkdir", " time "])
def test_a_connection_that_is_lost_once_is_made_again(compile_on, fake_device, on, server, monkeypatch, word):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    break_at(server, word, 1)
    artifact = compile_on(on, python=fake_device(speedup=2.0), keep="always")
    assert artifact.ledger.rows[1].speedup.value == 1.0  # of three models the last one is the fast one
    assert any("was lost and made again" in remark for remark in artifact.ledger.rows[0].remarks)


def test_a_board_that_restarts_gets_everything_again(compile_on, on, server, device_folder, monkeypatch):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    emptied = []

    def restart(line, process):
        if " time " not in line or emptied:
            return False
        emptied.extend(device_folder.iterdir())
        for directory in emptied:
            shutil.rmtree(directory)
        process.channel.get_connection().abort()
        return True

    server.on_command = restart
    artifact = compile_on(on)
    assert len(emptied) == 1
    assert all(row.latency_ms.tier is Tier.DEVICE for row in artifact.ledger.rows)
    assert list(device_folder.iterdir()) == []


def test_after_a_lost_connection_the_same_question_is_another_timing(fake_device, source, on, server, tmp_path):
    address = Address("ssh", "127.0.0.1", "tester", server.port)
    inputs = {"x": np.zeros((1, 64), np.float32)}
    with closing(SshTransport(address, str(tmp_path), fake_device(speedup=2.0))) as ssh, workspace(ssh) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(threads=1), SilentProgress())
        place.recover()
        for _ in range(2):
            clock.latency({"a": source}, inputs, QUICK)
    assert len(timings(server)) == 2


def test_a_connection_that_is_lost_while_room_is_made_takes_no_times_along(
    fake_device, source, on, server, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(depot, "MOST_MODELS", 0)
    address = Address("ssh", "127.0.0.1", "tester", server.port)
    with closing(SshTransport(address, str(tmp_path), fake_device(speedup=2.0))) as ssh, workspace(ssh) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(threads=1), SilentProgress())
        break_at(server, f"rm -rf -- {place.directory}/model-", 1)
        for model in (source, dense_model(tmp_path / "other.onnx", width=64, seed=1)):
            found = clock.latency({"a": model}, {"x": np.zeros((1, 64), np.float32)}, QUICK)
    assert len(timings(server)) == 2
    assert any("was lost and made again" in remark for remark in found.remarks)


def test_where_the_device_stays_away_no_validation_is_offered_to_go_on(compile_on, fake_device, on, server):
    break_at(server, " time ", 1)
    serve = server.on_command
    # After the first loss, everything is lost.
    server.on_command = lambda line, process: (
        serve(line, process) or (bool(timings(server)) and process.channel.get_connection().abort() is None)
    )
    with pytest.raises(DeviceError, match="was lost") as caught:
        compile_on(on, python=fake_device(speedup=2.0), reconnects=0)
    assert "remove it by hand" in caught.value.fix and "resume" not in caught.value.fix


def test_after_a_lost_device_the_run_is_resumed_where_it_stopped(compile_on, fake_device, on, server, device_folder):
    python = fake_device(speedup=2.0)
    break_at(server, " time ", 1)
    with pytest.raises(DeviceError, match="was lost"):
        compile_on(on, python=python, reconnects=0)
    assert list(device_folder.iterdir()) == []
    artifact = compile_on(on, python=python)
    assert artifact.ledger.rows[1].cached and artifact.ledger.rows[1].latency_ms


def test_a_power_mode_that_changes_during_the_run_is_refused(compile_on, fake_device, on, device_folder):
    python = fake_device(speedup=2.0, power_mode_later="fake_7W")
    with pytest.raises(MeasurementError, match=r"power mode of .* changed from fake_15W to fake_7W"):
        compile_on(on, python=python)
    assert list(device_folder.iterdir()) == []


def test_a_device_of_another_architecture_is_refused_before_anything_is_copied(compile_on, on, server):
    with pytest.raises(DeviceError, match="jetson-orin-nano is aarch64"):
        compile_on(on, target="jetson-orin-nano")
    assert not any(line.startswith("mkdir") for line in server.commands)


def test_for_tensorrt_the_lowered_stages_are_timed_and_each_engine_is_built_once(
    compile_on, fake_trtexec, device_folder, monkeypatch
):
    monkeypatch.setenv("FAKE_TRTEXEC_BY_SIZE", "1")
    artifact = compile_on("local", target="jetson-orin-nano", python="/nowhere/python3")
    source, step, lowered = artifact.ledger.rows
    # The engine of the step is smaller, and made-up times go by the size.
    assert source.latency_ms.value > step.latency_ms.value == lowered.latency_ms.value
    assert step.speedup.value == pytest.approx(source.latency_ms.value / step.latency_ms.value)
    assert any("the source too" in remark for remark in source.remarks)
    assert "The source was timed lowered" in artifact.ledger.verdict
    conditions = step.latency_ms.conditions
    assert conditions["runtime"] == "trtexec of TensorRT 00000-fake" and conditions["cuda_graph"] == "used"
    assert "threads" not in conditions
    # Metric and outputs are the simulation's, as without a device; its own machine is no Jetson.
    assert step.latency_ms.tier is Tier.REFERENCE and step.peak_memory_bytes is None
    built = fake_trtexec.with_name("built").read_text().split()
    assert len(built) == len(set(built)) == 2
    assert list(device_folder.iterdir()) == []


def test_where_one_engine_takes_no_graph_all_are_timed_without(jetson_artifact, fake_trtexec, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TRTEXEC_BY_SIZE", "1")
    monkeypatch.setenv("FAKE_TRTEXEC_NO_GRAPH", "100000")
    small, large = jetson_artifact / "model.onnx", tmp_path / "large" / "model.onnx"
    shutil.copytree(jetson_artifact, large.parent)
    model = onnx.load(large)
    model.graph.doc_string = "made up " * 20_000
    onnx.save(model, large)
    with workspace(LocalTransport("", sys.executable)) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(runtime="trtexec"), SilentProgress())
        found = clock.latency({"small": small, "large": large}, {"x": np.zeros((1, 16), np.float32)}, QUICK)
        sizes = sorted(file.stat().st_size for file in Path(place.directory).glob("model-*/engine.plan"))
    assert sizes[0] < 100_000 < sizes[1]
    # Of the made-up times 1, 2 and 3 ms for each kilobyte, which a graph would halve.
    assert [found.latency_ms(label).value for label in ("small", "large")] == pytest.approx([2e-3 * s for s in sizes])
    assert found.conditions.extra["cuda_graph"] == "not used"
    assert any("without a CUDA graph" in remark for remark in found.remarks)


def test_models_that_were_not_used_for_longest_make_room(tmp_path, device_folder, monkeypatch):
    monkeypatch.setattr(depot, "MOST_MODELS", 1)  # beside those that are timed
    models = [dense_model(tmp_path / f"model{width}.onnx", width=width) for width in (8, 16, 32)]
    with workspace(LocalTransport(str(device_folder), sys.executable)) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(threads=1), SilentProgress())
        for model, width in zip(models, (8, 16, 32), strict=True):
            clock.latency({"a": model}, {"x": np.zeros((1, width), np.float32)}, QUICK)
        left = {file.name for file in Path(place.directory).glob("model-*/*")}
    assert left == {"model16.onnx", "model32.onnx"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--on", "jetson"), "names no device"),
        (("--on", "local", "--set", "samples=3"), "--set samples"),
        (("--set", "threads=2"), "no device is named"),
    ],
)
def test_a_mistyped_device_answers_before_anything_is_read(capsys, tmp_path, words, message):
    assert main(["compile", str(tmp_path / "nothing.onnx"), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_times_here_when_it_is_told_to(capsys, source, tmp_path, device_folder, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("edgesmith.api.LatencyPlan", lambda: QUICK)
    words = ["compile", str(source), "--out", str(tmp_path / "out"), "--recipe", "float", "--threads", "1", "--json"]
    assert main([*words, "--on", "local", "--set", f"directory={device_folder}", "--set", "threads=1"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["rows"][0]["latency_ms"]["conditions"]["device"] == ledger["device"]["address"] == "local"
