"""A stage that the device does not build or run is undone or left untimed, and the compile goes on."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from device_fixtures import made_up_state
from measure_models import dense_model
from test_compile_on_device import QUICK, break_at, compile_on, fake_device, on, source  # noqa: F401  fixtures

from edgesmith.device.clock import DeviceClock
from edgesmith.device.local import LocalTransport
from edgesmith.device.plan import DevicePlan
from edgesmith.device.transport import workspace
from edgesmith.device.worker.archive import ArrayArchive
from edgesmith.device.worker.timing import time_in_turns
from edgesmith.errors import DeviceError, RejectedModelError
from edgesmith.progress import SilentProgress


def tell(python: str, **changes: object) -> str:
    told = Path(python).with_suffix(".json")
    told.write_text(json.dumps(json.loads(told.read_text()) | changes))
    return python


def reject(program: Path, which: str) -> None:
    """Let the fake trtexec refuse a build where the shell's condition on the file `n` of builds holds."""
    count, real = program.with_name("n"), program.read_text().partition("\n")[2]
    refusal = f'if [ $(wc -l <{count}) {which} ]; then echo "[E] made up: no implementation" >&2; exit 1; fi'
    program.write_text(f'#!/bin/sh\ncase "$*" in *--onnx=*) echo x >>{count}; {refusal};; esac\n{real}')


@pytest.mark.slow
def test_a_step_whose_engine_the_board_rejects_is_undone_and_built_once(compile_on, fake_trtexec):  # noqa: F811
    reject(fake_trtexec, "-ge 2")
    source_row, step, lowered = compile_on("local", target="jetson-orin-nano").ledger.rows
    assert step.status == "undone" and step.latency_ms is None
    assert "[E] made up: no implementation" in step.reason and "--keep" not in step.reason
    assert source_row.latency_ms and lowered.speedup
    assert len(fake_trtexec.with_name("n").read_text().split()) == 2


def test_where_the_board_builds_nothing_there_is_an_error(jetson_artifact, fake_trtexec, tmp_path):
    reject(fake_trtexec, "-ge 1")
    with workspace(LocalTransport("", sys.executable)) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(runtime="trtexec"), SilentProgress())
        with pytest.raises(RejectedModelError, match=r"a: building the engine on local .*no implementation") as caught:
            clock.latency({"a": jetson_artifact / "model.onnx"}, {"x": np.zeros((1, 16), np.float32)}, QUICK)
        # What is not timed takes no room from what is.
        assert list(Path(place.directory).glob("model-*")) == []
    assert "--keep" not in caught.value.fix


def test_a_worker_that_breaks_off_without_an_answer_is_quoted(fake_device, source, tmp_path):  # noqa: F811
    with workspace(LocalTransport("", tell(fake_device(2.0), crashes=True))) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(threads=1), SilentProgress())
        with pytest.raises(DeviceError, match="the worker on local failed: made-up crash"):
            clock.latency({"a": source}, {"x": np.zeros((1, 64), np.float32)}, QUICK)


def test_a_step_that_does_not_run_there_is_undone(compile_on, fake_device, on):  # noqa: F811
    step = compile_on(on, python=tell(fake_device(2.0), last_fails=True)).ledger.rows[1]
    assert step.status == "undone" and f"it does not run on {on}: RuntimeError: made up" in step.reason


def test_a_step_is_undone_where_the_worker_is_killed_with_all_stages_loaded(compile_on, fake_device, on):  # noqa: F811
    rows = compile_on(on, python=tell(fake_device(2.0), is_killed=True)).ledger.rows
    assert rows[1].status == "undone" and "SIGKILL" in rows[1].reason
    assert all("SIGKILL" in row.untimed for row in rows)


def test_what_happened_while_a_step_was_judged_stands_in_its_row(
    compile_on,  # noqa: F811
    fake_device,  # noqa: F811
    on,  # noqa: F811
    server,
    monkeypatch,
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    break_at(server, " time ", 1)
    rows = compile_on(on, python=fake_device(2.0)).ledger.rows
    told = [any("was lost and made again" in remark for remark in row.remarks) for row in rows]
    assert told == [False, True, False]
    # What holds for all times is said once.
    assert [any("Times are from" in remark for remark in row.remarks) for row in rows] == [True, False, False]


def test_a_device_without_a_temperature_is_not_waited_for(compile_on, fake_device, on):  # noqa: F811
    python = fake_device(2.0)
    state = made_up_state("fake_15W") | {"temperatures_celsius": {}}
    tell(python, probe=json.loads(Path(python).with_suffix(".json").read_text())["probe"] | {"state": state})
    (first, *_) = compile_on(on, python=tell(python, state=state), cool_below=40.0, keep="always").ledger.rows
    assert "cool_below" not in first.latency_ms.conditions
    assert any("tells no temperature" in remark for remark in first.remarks)


@pytest.mark.parametrize(
    ("fault", "reason", "untimed"),
    [({"last_fails": True}, "made up", [False, False, True]), ({"is_killed": True}, "SIGKILL", [True] * 3)],
)
def test_an_artifact_is_written_though_a_stage_cannot_be_timed(
    compile_on,  # noqa: F811
    fake_device,  # noqa: F811
    on,  # noqa: F811
    fault,
    reason,
    untimed,
):
    artifact = compile_on(on, python=tell(fake_device(2.0), **fault), keep="always")
    rows = artifact.ledger.rows
    assert [row.latency_ms is None for row in rows] == untimed
    assert [reason in row.untimed for row in rows] == untimed
    assert f"Not timed: {rows[-1].untimed}" in artifact.report.read_text()
    assert reason in artifact.ledger.verdict and "the device is not here" not in artifact.ledger.verdict
    assert (artifact.directory / "manifest.json").exists()


def test_the_worker_times_those_that_run(tmp_path):
    dense_model(tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with ArrayArchive(tmp_path / "batch.npz") as archive:
        archive.add(0, {"x": np.zeros((1, 16), np.float32)})
    request = {
        "models": {"bad": "bad.onnx", "good": "good.onnx"},
        "runtime": "onnxruntime",
        "batch": "batch.npz",
        "inputs": ["x"],
        "threads": 1,
        "as_written": False,
        "cool_below_celsius": 0.0,
        "cuda_graphs": False,
        "plan": asdict(QUICK),
    }
    found = time_in_turns(request, tmp_path)
    assert list(found["runs"]) == list(found["rounds"]) == ["good"] and "bad" in found["failures"]
    with pytest.raises(RuntimeError, match=r"bad\.onnx"):
        time_in_turns(request | {"models": {"bad": "bad.onnx"}}, tmp_path)
