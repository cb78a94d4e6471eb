"""The adb transport through the real client library, against a fake adb server on this machine."""

import socket
import sys

import adbutils
import numpy as np
import pytest
from fake_adb_server import FakeAdbServer
from measure_models import dense_model

from edgesmith.device.adb import AdbTransport
from edgesmith.device.address import Address
from edgesmith.device.clock import DeviceClock
from edgesmith.device.plan import DevicePlan, ValidationPlan
from edgesmith.device.transport import workspace
from edgesmith.device.validation import validate
from edgesmith.errors import ConnectionLostError, DeviceError
from edgesmith.host.loader import load_registry
from edgesmith.host.records import Tier
from edgesmith.measure.runner import LatencyPlan
from edgesmith.progress import SilentProgress

SERIAL = "fake-0001"


@pytest.fixture
def fake():
    server = FakeAdbServer(SERIAL)
    yield server
    server.close()


def connect(fake, folder, serial=SERIAL) -> AdbTransport:
    client = adbutils.AdbClient("127.0.0.1", fake.port)
    return AdbTransport(Address("adb", serial), str(folder), sys.executable, client)


@pytest.fixture
def adb(fake, device_folder):
    return connect(fake, device_folder)


def test_a_command_runs_with_its_words_as_they_are_and_its_end_is_reported(adb):
    hostile = ["a b", "$(touch pwned)", "'; exit 7; '", '"', "\\", "*", ""]
    program = "import sys; print(sys.argv[1:]); print('bad', file=sys.stderr); sys.exit(3)"
    done = adb.run([sys.executable, "-c", program, *hostile])
    assert done.stdout.strip() == repr(hostile)
    assert done.stderr.strip() == "bad"
    assert done.code == 3


def test_what_a_command_says_of_an_error_is_no_output(adb):
    done = adb.run(["sh", "-c", "echo bad >&2; exit 3"])
    assert (done.code, done.stdout, done.stderr) == (3, "", "bad\n")


def test_files_travel_both_ways_byte_for_byte(adb, tmp_path, device_folder):
    content = bytes(range(256)) * 1000
    (tmp_path / "up").write_bytes(content)
    adb.push(tmp_path / "up", f"{device_folder}/file")
    adb.pull(f"{device_folder}/file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content


def test_a_missing_file_and_a_refused_one_are_named(adb, fake, tmp_path, device_folder):
    with pytest.raises(DeviceError, match=r"nothing could not be copied .*No such file"):
        adb.pull(f"{device_folder}/nothing", tmp_path / "down")
    (tmp_path / "up").write_bytes(b"x")
    fake.refuse_writing = True
    with pytest.raises(DeviceError, match="could not be copied"):
        adb.push(tmp_path / "up", f"{device_folder}/file")


def test_a_killed_process_is_told_from_one_that_failed(adb):
    done = adb.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert done.signal_name == "SIGKILL"


def test_a_command_that_hangs_is_given_up_after_its_time(adb):
    with pytest.raises(DeviceError, match="took longer than 1 s"):
        adb.run(["sleep", "5"], timeout_seconds=1)


@pytest.mark.parametrize(
    ("state", "message", "fix"),
    [("unauthorized", "does not let you in", "USB debugging"), ("offline", "cannot be reached", "adb devices")],
)
def test_a_device_that_is_not_ready_is_explained(fake, device_folder, state, message, fix):
    fake.state = state
    with pytest.raises(DeviceError, match=message) as caught:
        connect(fake, device_folder)
    assert fix in caught.value.fix


def test_an_unknown_serial_number_is_named(fake, device_folder):
    with pytest.raises(DeviceError, match="adb://other cannot be reached"):
        connect(fake, device_folder, "other")


def test_a_lost_device_is_an_error_and_it_is_clean_when_it_comes_back(adb, fake, device_folder):
    def unplug(line: str, client: socket.socket) -> None:
        if line.startswith("sleep"):
            client.shutdown(socket.SHUT_RDWR)

    fake.before_shell = unplug
    with pytest.raises(DeviceError, match="was lost"), workspace(adb) as place:
        place.transport.run(["sleep", "0"])
    assert list(device_folder.iterdir()) == []


def test_a_device_that_ends_the_connection_as_it_begins_is_lost(adb, fake):
    fake.refuses_shells = True
    with pytest.raises(ConnectionLostError, match="was lost: closed"):
        adb.run(["true"])


def test_an_artifact_is_validated_through_the_fake_server(adb, artifact, device_folder):
    plan = ValidationPlan(seconds=0, fewest_runs=3, warmup_runs=1, threads=1, samples=2)
    run = validate(artifact, adb, load_registry(), plan=plan)
    assert run.on == f"adb://{SERIAL}"
    assert run.tier == Tier.DEVICE
    assert run.gaps["logits"].cosine == 1
    assert list(device_folder.iterdir()) == []


def test_models_are_timed_in_turns_through_the_fake_server(adb, tmp_path, device_folder):
    (tmp_path / "narrow").mkdir()
    model, other = dense_model(tmp_path / "model.onnx"), dense_model(tmp_path / "narrow" / "model.onnx", width=8)
    batch, quick = {"x": np.zeros((1, 16), np.float32)}, LatencyPlan(warmup_runs=2, min_rounds=2, max_rounds=2)
    with workspace(adb) as place:
        clock = DeviceClock(place, tmp_path, None, DevicePlan(threads=1), SilentProgress())
        found = clock.latency({"a": model, "same": model}, batch, quick)
        with pytest.raises(DeviceError, match="Got: 16 Expected: 8"):
            clock.latency({"takes other inputs": other}, batch, quick)
    assert found.tier == Tier.DEVICE
    assert found.runs["a"] == found.runs["same"] and len(found.rounds["a"]) == 2
    assert list(device_folder.iterdir()) == []
