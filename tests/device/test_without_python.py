"""Without Python a shell says what a board is, and trtexec alone builds, times and answers. That trtexec is a fake."""

import asyncio
import json
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_fixtures import made_up

from edgesmith.cli import main
from edgesmith.device import without_python
from edgesmith.device.address import Address
from edgesmith.device.clock import DeviceClock
from edgesmith.device.local import LocalTransport
from edgesmith.device.plan import DevicePlan
from edgesmith.device.remote import probe_device
from edgesmith.device.ssh import SshTransport
from edgesmith.device.transport import workspace
from edgesmith.device.trtexec import TrtexecModel
from edgesmith.device.without_python import probe_by_shell
from edgesmith.device.worker.machine import probe as probe_with_python
from edgesmith.errors import DeviceError
from edgesmith.measure.runner import LatencyPlan
from edgesmith.progress import SilentProgress

QUICK = LatencyPlan(warmup_runs=2, min_rounds=2, max_rounds=2)
SETTINGS = ("seconds=0", "fewest_runs=5", "samples=2", "python=/nowhere/python3")


def validate(capsys, artifact, on, *more):
    settings = [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]
    code = main(["validate", str(artifact), "--on", on, "--json", *settings])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else " ".join(captured.err.split())


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The tools of a board without Python, ahead of those of this machine."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (folder / "power.txt").write_text(made_up("tegrastats") * 5)
    (folder / "mode.txt").write_text("NV Power Mode: made_up_15W\n7\n")
    fake = Path(__file__).with_name("fake_trtexec.py")
    make_tool(folder, "trtexec", f'exec {sys.executable} {fake} "$@"')
    make_tool(folder, "uname", 'case "$1" in -m) echo aarch64;; *) echo Linux 0.0.0-made-up;; esac')
    make_tool(folder, "nvpmodel", f"cat {folder}/mode.txt")
    make_tool(folder, "tegrastats", f"cat {folder}/power.txt; sleep 30")
    return folder


SAYS_ZERO = """for word; do
    case "$word" in
        --saveEngine=*) touch engine.plan;;
        --exportTimes=*) cp "$(dirname "$0")/times.json" .;;
        --exportOutput=*) cp "$(dirname "$0")/outputs.json" .;;
        --exportLayerInfo=*) exit 1;;
    esac
done"""
"""A trtexec that starts at once: every output is zero, and of layers it knows nothing."""


@pytest.fixture
def zeros(tools):
    """The same board with a trtexec that starts at once."""
    (tools / "times.json").write_text(json.dumps([{"computeMs": 1.5}] * 5))
    values = [{"name": "logits", "dimensions": "1x16", "values": [0.0] * 16}]
    (tools / "outputs.json").write_text(json.dumps(values))
    make_tool(tools, "trtexec", SAYS_ZERO)
    return tools


def make_tool(folder, name, line):
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def on(server):
    return f"ssh://tester@127.0.0.1:{server.port}"


def test_trtexec_alone_builds_times_and_answers_over_ssh(capsys, jetson_artifact, on, tools, device_folder, server):
    code, run = validate(capsys, jetson_artifact, on, f"directory={device_folder}")
    assert code == 0
    latency = run["row"]["latency_ms"]
    assert latency["conditions"]["runtime"] == "trtexec of TensorRT 00000-fake"
    assert latency["conditions"]["power_mode"] == "made_up_15W"
    # Of the made-up times 1, 2 and 3 ms on the GPU.
    assert latency["value"] == 2
    # Six digits leave a relative error of at most 5e-6, which is 106 dB.
    assert run["gaps"]["logits"]["sqnr_db"] > 106
    assert run["energy_mj"]["value"] > 0
    assert run["machine"]["architecture"] == "aarch64"
    assert "python" not in run["machine"]
    assert [layer["name"] for layer in run["engine"]["layers"]] == ["made-up product", "made-up pair"]
    assert not any("worker.pyz run" in line for line in server.commands)
    assert list(device_folder.iterdir()) == []


def test_without_trtexec_python_is_what_is_missing(capsys, jetson_artifact, on, tools):
    (tools / "trtexec").unlink()
    code, error = validate(capsys, jetson_artifact, on)
    assert code == 2
    assert "no usable Python" in error


def test_an_artifact_for_another_runtime_needs_python(capsys, artifact, on, tools):
    code, error = validate(capsys, artifact, on)
    assert code == 2
    assert "no usable numpy: there is no Python" in error


def test_a_python_without_numpy_is_no_obstacle_to_trtexec(capsys, jetson_artifact, on, tools, tmp_path):
    (tmp_path / "hidden").mkdir()
    for module in ("numpy", "tensorrt"):
        (tmp_path / "hidden" / f"{module}.py").write_text("raise ImportError('made up')\n")
    make_tool(tmp_path, "python", f'PYTHONPATH={tmp_path / "hidden"} exec {sys.executable} "$@"')
    # numpy is missing to what tests, and not to what plays trtexec.
    make_tool(tools, "trtexec", f"unset PYTHONPATH\n{(tools / 'trtexec').read_text().splitlines()[1]}")
    code, run = validate(capsys, jetson_artifact, "local", f"python={tmp_path / 'python'}")
    assert code == 0
    assert run["row"]["latency_ms"]["value"] == 2


def test_a_python_that_is_too_old_counts_as_none(zeros, tmp_path):
    pretend = "import sys, runpy; sys.version_info = (3, 8, 10); runpy.run_path(sys.argv[1], run_name='__main__')"
    make_tool(tmp_path, "python", f'exec {sys.executable} -c "{pretend}" "$@"')
    with workspace(LocalTransport(str(tmp_path), str(tmp_path / "python"))) as place:
        found = probe_device(place, tmp_path)
        assert found.trtexec == str(zeros / "trtexec") and not found.python
        (zeros / "trtexec").unlink()
        with pytest.raises(DeviceError, match=r"no usable Python: Python 3\.8 is too old"):
            probe_device(place, tmp_path)


@pytest.fixture
def timed_by_trtexec(jetson_artifact, zeros, tmp_path):
    """Returns what the board says of the artifact's graph, timed in turns: "b" is an engine without open dimensions."""

    def latency(transport, **settings):
        with workspace(transport) as place:
            plan = DevicePlan(runtime="trtexec", **settings)
            clock = DeviceClock(place, tmp_path, None, plan, SilentProgress())
            shutil.copytree(jetson_artifact, tmp_path / "other")
            recipe = json.loads((jetson_artifact / "build.json").read_text())
            (tmp_path / "other" / "build.json").write_text(json.dumps(recipe | {"shapes": {}}))
            entries = {"a": jetson_artifact / "model.onnx", "b": tmp_path / "other" / "model.onnx"}
            return clock.latency(entries, {"x": np.zeros((1, 16), np.float32)}, QUICK)

    return latency


def test_engines_are_timed_in_turns_without_python(timed_by_trtexec, zeros, tmp_path):
    make_tool(zeros, "trtexec", f'echo "$PWD $*" >>{zeros}/calls\n{SAYS_ZERO}')
    found = timed_by_trtexec(LocalTransport(str(tmp_path), "/nowhere/python3"))
    assert {label: set(rounds) for label, rounds in found.rounds.items()} == {"a": {1.5}, "b": {1.5}}
    assert found.conditions.extra["power_mode"] == "made_up_15W" and found.waiting_share == 0
    timed = [line for line in (zeros / "calls").read_text().splitlines() if "--exportTimes" in line]
    # Each engine in its own directory: a warm-up, the trial of a graph, and one visit in each of two rounds.
    assert len(timed) == 2 * 4 and len({line.partition(" ")[0] for line in timed}) == 2
    # A call is a process of its own, so it is warmed up and times ten runs at least.
    assert all("--warmUp=200" in line and "--iterations=10" in line for line in timed[-4:])
    # The real one refuses shapes for an engine that has its own.
    with_shapes = {line.partition(" ")[0] for line in timed if "--shapes=x:1x16" in line}
    assert len(with_shapes) == 1 and sum("--shapes" in line for line in timed) == 4
    assert all("--useCudaGraph" in line for line in timed[2:])


def test_the_settings_of_a_validation_are_words_of_its_call(capsys, jetson_artifact, zeros):
    make_tool(zeros, "trtexec", f'echo "$*" >>{zeros}/calls\n{SAYS_ZERO}')
    code, run = validate(capsys, jetson_artifact, "local", "seconds=2.6", "fewest_runs=7", "most_runs=2")
    assert code == 0
    calls = (zeros / "calls").read_text().splitlines()
    (timed,) = [line for line in calls if "--exportTimes" in line and "--warmUp=0" not in line]
    assert "--useCudaGraph --useSpinWait --warmUp=500 --duration=3 --iterations=7" in timed
    assert run["row"]["latency_ms"]["samples"] == 2


GRAPH_FAULTS = {'echo "the flag has been ignored"': "was refused by trtexec", 'echo "[E] made up"; exit 1': "failed: "}


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_without_a_graph_the_runs_are_launches_and_a_remark_says_why(capsys, jetson_artifact, zeros, fault):
    case = f'case "$*" in *--useCudaGraph*) {fault};; esac'
    make_tool(zeros, "trtexec", f'echo "$*" >>{zeros}/calls\n{case}\n{SAYS_ZERO}')
    code, run = validate(capsys, jetson_artifact, "local")
    assert code == 0
    assert any(f"without a CUDA graph, which {GRAPH_FAULTS[fault]}" in remark for remark in run["remarks"])
    assert run["row"]["latency_ms"]["conditions"]["cuda_graph"] == "not used"


@pytest.mark.parametrize(("idle", "busy", "energy_mj"), [(40, 10, 30), (0, 9, None)])
def test_energy_is_of_the_runs_and_not_of_the_start_before_them(capsys, jetson_artifact, zeros, idle, busy, energy_mj):
    lines = ["VDD_IN 5000mW/5000mW\n"] * idle + ["VDD_IN 20000mW/20000mW\n"] * busy
    (zeros / "power.txt").write_text("".join(lines))
    waits = f'until [ "$(wc -l <tegrastats.txt)" -ge {len(lines)} ]; do sleep 0.02; done'
    make_tool(zeros, "trtexec", f'case "$*" in *--exportTimes*) {waits};; esac\n{SAYS_ZERO}')
    # Of 20 W for 1.5 ms.
    code, run = validate(capsys, jetson_artifact, "local", "seconds=1")
    assert code == 0
    assert (run["energy_mj"] or {}).get("value") == energy_mj


@pytest.mark.parametrize(
    ("fault", "reason"), [("kill -9 $$", "SIGKILL"), ("exit 0", "layers.json"), ("exit 1", "failed")]
)
def test_layers_that_cannot_be_read_take_nothing_from_what_was_measured(capsys, jetson_artifact, zeros, fault, reason):
    make_tool(zeros, "trtexec", f'case "$*" in *--exportLayerInfo*) {fault};; esac\n{SAYS_ZERO}')
    code, run = validate(capsys, jetson_artifact, "local")
    assert code == 0 and run["engine"] is None and run["row"]["latency_ms"]["value"] == 1.5
    (remark,) = [remark for remark in run["remarks"] if "layers of the engine could not be read" in remark]
    assert reason in remark


@pytest.mark.parametrize(
    ("version", "told"), [("8502", "8.5.2"), ("101303", "10.13.3"), ("100300", ""), ("made-up", "")]
)
def test_a_tensorrt_that_the_profile_does_not_list_is_told(capsys, jetson_artifact, zeros, version, told):
    make_tool(zeros, "trtexec", f'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # made up"\n{SAYS_ZERO}')
    code, run = validate(capsys, jetson_artifact, "local")
    assert code == 0
    assert [
        remark.startswith(f"The device has tensorrt {told}, and")
        for remark in run["remarks"]
        if "is known with" in remark
    ] == [True] * bool(told)


def test_a_board_without_python_is_waited_for_until_it_is_cool(tmp_path, monkeypatch):
    seen, waits = ["70000 zone0 cpu", "60000 zone0 cpu", "50000 zone0 cpu"], []
    monkeypatch.setattr(without_python, "_ask", lambda place, what: {"temperatures": seen.pop(0)})
    monkeypatch.setattr(without_python.time, "sleep", waits.append)
    without_python.cool_down(SimpleNamespace(), 55.0)
    assert len(waits) == 2 and seen == []
    assert without_python.cool_down(SimpleNamespace(), 0.0) == 0


def test_inputs_in_float64_are_written_as_the_engine_has_them(jetson_artifact, tmp_path):
    (tmp_path / "here").mkdir()
    with workspace(LocalTransport(str(tmp_path), "")) as place:
        place.push(jetson_artifact / "build.json", "build.json")
        model = TrtexecModel(place, "", tmp_path / "here", 1)
        model.set_inputs({"x": np.array([[0.1, 2.0]]), "ids": np.array([7])})
        written = Path(place.directory, "input-0.bin").read_bytes(), Path(place.directory, "input-1.bin").read_bytes()
    assert written == (np.array([0.1, 2.0], np.float32).tobytes(), np.array([7]).tobytes())


@pytest.mark.parametrize("call", ["--exportTimes", "--useCudaGraph*--iterations=1", "--useCudaGraph*--iterations=10"])
def test_an_engine_that_is_killed_leaves_the_others_their_times(timed_by_trtexec, zeros, tmp_path, call):
    # In its warm-up, when its graph is tried, or in a turn: once, and it is left out from there on.
    kills = f"mkdir {zeros}/first 2>/dev/null && kill -9 $$"
    make_tool(zeros, "trtexec", f'case "$* " in *{call}" "*) {kills};; esac\n{SAYS_ZERO}')
    if call == "--exportTimes":
        make_tool(zeros, "trtexec", f'case "$*" in *{call}*) {kills};; esac\n{SAYS_ZERO}')
    found = timed_by_trtexec(LocalTransport(str(tmp_path), "/nowhere/python3"))
    ((failed, reason),) = found.failures.items()
    assert {label: len(rounds) for label, rounds in found.rounds.items()} == {"b" if failed == "a" else "a": 2}
    assert reason.endswith("trtexec on local was ended by SIGKILL, most likely because memory ran out.")


def test_an_engine_that_hangs_is_stopped_and_leaves_the_others_their_times(timed_by_trtexec, zeros, tmp_path):
    loops = "while :; do /bin/sleep 0.05; done"
    hangs = f"mkdir {zeros}/first 2>/dev/null && {{ echo $$ >{tmp_path}/number; {loops}; }}"
    make_tool(zeros, "trtexec", f'case "$*" in *--exportTimes*) {hangs};; esac\n{SAYS_ZERO}')
    found = timed_by_trtexec(LocalTransport(str(tmp_path), "/nowhere/python3"), timeout=1)
    assert set(found.rounds) == {"b"}
    assert "took longer than 1 s" in found.failures["a"]
    require_ended(tmp_path / "number")


def test_an_engine_of_which_no_times_are_written_has_none_of_the_call_before(timed_by_trtexec, zeros, tmp_path):
    forgets = SAYS_ZERO.replace("cp", 'mkdir "$(dirname "$0")/$(basename "$PWD")" 2>/dev/null && cp')
    make_tool(zeros, "trtexec", forgets)
    with pytest.raises(DeviceError, match=r"times\.json could not be copied|No such file"):
        timed_by_trtexec(LocalTransport(str(tmp_path), "/nowhere/python3"))


def test_a_connection_that_is_lost_between_two_turns_starts_the_timing_anew(
    timed_by_trtexec, server, device_folder, monkeypatch
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    visits = []

    def break_off(line, process):
        visits.extend([line] if "--warmUp=200" in line else [])
        if "--warmUp=200" in line and len(visits) == 5:
            process.channel.get_connection().abort()
            return True
        return False

    server.on_command = break_off
    address = Address("ssh", "127.0.0.1", "tester", server.port)
    with closing(SshTransport(address, str(device_folder), "/nowhere/python3")) as transport:
        found = timed_by_trtexec(transport)
    assert len(visits) == 5 + 6
    assert any("was lost and made again" in remark for remark in found.remarks)
    assert {len(rounds) for rounds in found.rounds.values()} == {2}
    assert list(device_folder.iterdir()) == []


def test_what_trtexec_says_of_an_error_arrives(capsys, jetson_artifact, tools):
    build = "--onnx=*) touch engine.plan; exit 0"
    make_tool(tools, "trtexec", f'case "$1$2" in *{build};; esac\necho "[E] made-up fault" >&2; exit 1')
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "the model on local failed: trtexec failed: [E] made-up fault" in error


def test_a_trtexec_that_is_killed_is_explained(capsys, jetson_artifact, tools):
    make_tool(tools, "trtexec", 'case "$1$2" in *--onnx=*) touch engine.plan; exit 0;; esac\nkill -9 $$')
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "trtexec on local was ended by SIGKILL" in error


@pytest.mark.parametrize("content", ["", "[]", '[{"computeMs": "many"}]', '[{"latencyMs": 1}]', '[{"computeMs": -1}]'])
def test_times_of_another_form_are_refused(capsys, jetson_artifact, zeros, content):
    (zeros / "times.json").write_text(content)
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "the model on local failed" in error


VALUES = ", ".join(["0"] * 15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'[{{"name": "logits", "dimensions": "1x16", "values": [-nan, {VALUES}]}}]', "the engine computes nan"),
        (f'[{{"name": "logits", "dimensions": "1x16", "values": [0, {VALUES[:-1]}inf]}}]', "the engine computes inf"),
        ('[{"name": "logits", "dimensions": 16, "values": [0]}]', "the model on local failed"),
    ],
)
def test_outputs_of_another_form_are_refused(capsys, jetson_artifact, zeros, content, message):
    (zeros / "outputs.json").write_text(content)
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert message in error


def test_outputs_that_would_fill_the_memory_are_not_read(capsys, jetson_artifact, zeros, monkeypatch):
    monkeypatch.setattr("edgesmith.device.trtexec._LARGEST_EXPORT_BYTES", 100)
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "outputs.json on local is" in error and "at most 0.0 MB" in error


def test_tools_that_answer_what_nobody_understands_are_named(capsys, jetson_artifact, tools):
    make_tool(tools, "nproc", "echo many")
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "the probe on local failed" in error and "usable_cores" in error


def require_ended(number_file):
    """Wait until the process whose number a fake wrote is gone."""
    status = Path("/proc", number_file.read_text().strip(), "stat")
    ends = time.monotonic() + 5
    while status.exists() and ") Z " not in status.read_text():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["ssh", "local"])
@pytest.mark.parametrize("hangs", ["building", "running"])
def test_what_hangs_is_stopped_and_nothing_is_left(
    capsys, jetson_artifact, on, tools, device_folder, tmp_path, where, hangs
):
    built = "" if hangs == "building" else 'case "$1$2" in *--onnx=*) touch engine.plan; exit 0;; esac'
    make_tool(tools, "trtexec", f"{built}\necho $$ >{tmp_path}/trtexec.number; sleep 30")
    make_tool(tools, "tegrastats", f"echo $$ >{tmp_path}/tegrastats.number; exec sleep 30")
    address, more = on if where == "ssh" else "local", ("timeout=1", "cuda_graphs=false")
    code, error = validate(capsys, jetson_artifact, address, f"directory={device_folder}", *more)
    assert code == 2
    assert "took longer than 1 s" in error
    numbers = list(tmp_path.glob("*.number"))
    assert len(numbers) == (1 if hangs == "building" else 2)
    for number_file in numbers:
        require_ended(number_file)
    assert list(device_folder.iterdir()) == []


def test_a_build_goes_on_alone_after_a_lost_connection(
    capsys, jetson_artifact, on, zeros, device_folder, server, monkeypatch
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    first = zeros / "first.number"
    hangs_once = f"[ -e {first} ] || {{ echo $$ >{first}; exec sleep 30; }}"
    make_tool(zeros, "trtexec", f'case "$*" in *--saveEngine=*) {hangs_once};; esac\n{SAYS_ZERO}')

    def break_off(line, process):
        async def when_it_builds():
            while not first.exists():
                await asyncio.sleep(0.02)
            process.channel.get_connection().abort()

        if "build.sh" in line and "sha256sum" not in line and not first.exists():
            process.builds = asyncio.ensure_future(when_it_builds())
        return False

    server.on_command = break_off
    code, run = validate(capsys, jetson_artifact, on, f"directory={device_folder}")
    assert code == 0
    assert any("was lost and made again" in remark for remark in run["remarks"])
    require_ended(first)
    assert list(device_folder.iterdir()) == []


@pytest.mark.parametrize("command", ["validate", "compile"])
def test_a_board_that_restarts_between_two_commands_is_timed_anew(
    capsys, jetson_artifact, zeros, timed_by_trtexec, tmp_path, monkeypatch, command
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    (zeros / "boot").write_text("first\n")
    make_tool(zeros, "cat", f'case "$1" in */boot_id) exec /bin/cat {zeros}/boot;; *) exec /bin/cat "$@";; esac')
    restarts = f"echo x >>{zeros}/timed; echo second >{zeros}/boot"
    make_tool(zeros, "trtexec", f'case "$*" in *--exportTimes*) {restarts};; esac\n{SAYS_ZERO}')
    if command == "validate":
        code, run = validate(capsys, jetson_artifact, "local", "cuda_graphs=false")
        assert code == 0 and run["before"]["boot_id"] == run["after"]["boot_id"] == "second"
        remarks, timed = run["remarks"], 2
    else:
        found = timed_by_trtexec(LocalTransport(str(tmp_path), "/nowhere/python3"))
        remarks, timed = found.remarks, 2 * 8
        assert any("restarted since the timing before" in remark for remark in remarks)
    assert any("restarted while it was timed" in remark for remark in remarks)
    assert len((zeros / "timed").read_text().split()) == timed


@pytest.fixture
def clocks(zeros):
    """The clocks of the board, which its program stores, locks and puts back."""
    state = zeros / "clocks"
    state.write_text("free")
    steps = f'--store) cp {state} "$2";; --restore) cp "$2" {state};; *) echo locked >{state};;'
    make_tool(zeros, "id", "echo 0")
    make_tool(zeros, "jetson_clocks", f'echo "$1" >>{zeros}/calls; case "$1" in {steps} esac')
    return state


def test_clocks_are_locked_for_the_timing_and_put_back(capsys, jetson_artifact, zeros, clocks):
    code, _ = validate(capsys, jetson_artifact, "local", "lock_clocks=true")
    assert code == 0
    assert (zeros / "calls").read_text().split("\n") == ["--store", "", "--restore", ""]
    assert clocks.read_text() == "free"


@pytest.mark.parametrize("times", [1, 9])
def test_clocks_are_put_back_after_a_lost_connection(
    capsys, jetson_artifact, clocks, on, server, device_folder, monkeypatch, times
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    broken = []

    def break_off(line, process):
        if (" timed " in line or broken) and len(broken) < times:
            broken.append(clocks.read_text())
            process.channel.get_connection().abort()
            return True
        return False

    server.on_command = break_off
    where = f"directory={device_folder}"
    code, _ = validate(capsys, jetson_artifact, on, "lock_clocks=true", where, "reconnects=1")
    assert broken[0] == "locked\n"
    if times > 1:
        # The board is away for longer than is tried, and is taken up later.
        assert code == 2 and clocks.read_text() == "locked\n"
        broken += [""] * times
        (left,) = device_folder.iterdir()
        code, _ = validate(capsys, jetson_artifact, on, "lock_clocks=true", where, f"resume={left}")
    assert code == 0
    assert clocks.read_text() == "free"
    assert list(device_folder.iterdir()) == []


def test_clocks_that_stay_locked_are_told_with_how_to_put_them_back(
    capsys, jetson_artifact, zeros, clocks, device_folder
):
    program = (zeros / "jetson_clocks").read_text().partition("\n")[2]
    make_tool(zeros, "jetson_clocks", f'[ "$1" != --restore ] || {{ echo made-up refusal >&2; exit 1; }}\n{program}')
    code, run = validate(capsys, jetson_artifact, "local", "lock_clocks=true", f"directory={device_folder}")
    assert code == 0
    (left,) = device_folder.iterdir()
    assert (left / "clocks.store").read_text() == "free"
    (remark,) = [remark for remark in run["remarks"] if "still locked" in remark]
    assert "made-up refusal" in remark and f"jetson_clocks --restore {left}/clocks.store" in remark


def test_clocks_that_cannot_be_locked_are_a_remark(capsys, jetson_artifact, zeros):
    code, run = validate(capsys, jetson_artifact, "local", "lock_clocks=true")
    assert code == 0
    assert any("Clocks could not be locked: there is no jetson_clocks" in remark for remark in run["remarks"])


def test_the_shell_sees_the_machine_that_python_sees(tmp_path, monkeypatch):
    make_tool(tmp_path, "nvidia-smi", 'echo "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with workspace(LocalTransport(str(tmp_path), "")) as place:
        seen = probe_by_shell(place)
    expected = probe_with_python()
    for name in ("architecture", "system", "cpu_info", "usable_cores", "driver", "gpus", "trtexec"):
        assert getattr(seen, name) == expected[name], name
    assert seen.state.clocks == tuple(map(tuple, expected["state"]["clocks"]))
    assert seen.state.gpu_limits == expected["state"]["gpu_limits"] and "power.limit" in seen.state.gpu_limits
    assert seen.state.temperatures_celsius.keys() == expected["state"]["temperatures_celsius"].keys()
    assert seen.state.memory_kib["MemTotal"] == expected["state"]["memory_kib"]["MemTotal"]
