"""`edgesmith validate` from the command line to the record: on this machine, and over SSH on loopback."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgesmith.cli import main
from edgesmith.device.plan import ValidationPlan
from edgesmith.device.record import load_record

QUICK = ("--set", "seconds=0", "--set", "fewest_runs=5", "--set", "warmup_runs=1", "--set", "threads=1")


def validate(capsys, artifact, on, *more):
    code = main(["validate", str(artifact), "--on", on, "--json", *QUICK, "--set", f"python={sys.executable}", *more])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


@pytest.fixture
def on(server):
    return f"ssh://tester@127.0.0.1:{server.port}"


@pytest.fixture
def labelled(tmp_path):
    random = np.random.default_rng(3)
    np.savez(
        tmp_path / "data.npz", x=random.normal(size=(24, 16)).astype(np.float32), labels=random.integers(0, 16, 24)
    )
    (tmp_path / "data.yaml").write_text("evaluation: {kind: npz, path: data.npz}\n")
    return tmp_path / "data.yaml"


def damage_weights(artifact):
    """Change the model as a faulty runtime would: the manifest is told, the simulation is not."""
    model = onnx.load(artifact / "model.onnx")
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, artifact / "model.onnx")


def test_here_the_numbers_stay_reference_and_nothing_is_left(capsys, artifact, device_folder):
    code, run = validate(capsys, artifact, "local", "--set", f"directory={device_folder}")
    assert code == 0
    assert run["tier"] == run["row"]["latency_ms"]["tier"] == "reference"
    assert run["row"]["latency_ms"]["samples"] == 5
    assert run["gaps"]["logits"]["cosine"] == 1
    assert list(device_folder.iterdir()) == []


def test_over_ssh_the_numbers_are_those_of_the_device_with_its_conditions(
    capsys, artifact, on, labelled, device_folder
):
    code, run = validate(capsys, artifact, on, "--data", str(labelled), "--set", f"directory={device_folder}")
    assert code == 0
    assert run["tier"] == run["row"]["metric"]["tier"] == "device"
    assert run["row"]["latency_ms"]["conditions"].keys() >= {"runtime", "threads", "power_mode", "clocks", "shapes"}
    assert run["row"]["metric"]["value"] == run["simulated_metric"]["value"]
    assert run["simulated_metric"]["tier"] == "simulated"
    assert run["row"]["metric"]["samples"] == 24
    assert run["machine"]["onnxruntime"]
    assert list(device_folder.iterdir()) == []


def test_runs_are_added_to_the_record_and_to_the_report(capsys, artifact):
    _, first = validate(capsys, artifact, "local")
    _, second = validate(capsys, artifact, "local")
    assert first["against_last_run"] is None
    times = [run["row"]["latency_ms"]["value"] for run in (first, second)]
    assert second["against_last_run"]["ratio"] == pytest.approx(times[1] / times[0])
    assert [run.when for run in load_record(artifact).runs] == [first["when"], second["when"]]
    assert "On devices" in (artifact / "report.html").read_text()


def test_runs_of_other_threads_are_not_compared_and_the_reason_is_said(capsys, artifact):
    validate(capsys, artifact, "local")
    _, second = validate(capsys, artifact, "local", "--set", "threads=2")
    assert second["against_last_run"]["ratio"] is None
    assert "threads 1 and 2" in second["against_last_run"]["refusal"]


def test_people_read_the_same_in_a_table(capsys, artifact):
    assert main(["validate", str(artifact), "--on", "local", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "tier reference" in shown
    assert "gap of logits" in shown


def test_a_device_that_computes_otherwise_shows_as_a_gap(capsys, artifact, on, server, tmp_path):
    other = tmp_path / "other.onnx"
    original = (artifact / "model.onnx").read_bytes()
    damage_weights(artifact)
    other.write_bytes((artifact / "model.onnx").read_bytes())
    (artifact / "model.onnx").write_bytes(original)

    def exchange(line, process):
        # The device runs another model than was sent: its first product is 1 % too large.
        if " run " in line:
            folder = line.split()[-1].rpartition("/")[0]
            (Path(folder) / "model.onnx").write_bytes(other.read_bytes())
        return False

    server.on_command = exchange
    code, run = validate(capsys, artifact, on)
    assert code == 0
    # One of two linear layers is scaled by 1.01, so every output is: the noise is 0.01 of the signal, which is 40 dB.
    assert run["gaps"]["logits"]["sqnr_db"] == pytest.approx(20 * math.log10(1 / 0.01), abs=0.01)


def test_a_changed_artifact_is_not_validated(capsys, artifact):
    damage_weights(artifact)
    code, error = validate(capsys, artifact, "local")
    assert code == 2
    assert "was changed" in error


@pytest.mark.parametrize(
    ("program", "message"),
    [("exit 127", "no usable Python"), ("exit 126", "not of the architecture"), ("kill -9 $$", "ended by SIGKILL")],
)
def test_an_interpreter_that_does_not_work_is_explained_and_nothing_recorded(
    capsys, artifact, on, tmp_path, device_folder, program, message
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    code, error = validate(capsys, artifact, on, "--set", f"python={python}", "--set", f"directory={device_folder}")
    assert code == 2
    assert message in error
    assert list(device_folder.iterdir()) == []
    assert load_record(artifact).runs == ()


def python_without(tmp_path, module):
    """An interpreter on which importing a module fails, as on a device that lacks it."""
    (tmp_path / "hidden").mkdir(exist_ok=True)
    (tmp_path / "hidden" / f"{module}.py").write_text(f"raise ImportError('No module named {module!r}')\n")
    python = tmp_path / f"python-without-{module}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "hidden"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("module", ["numpy", "onnxruntime"])
def test_a_missing_module_is_named_with_the_way_to_get_it(capsys, artifact, on, tmp_path, module):
    code, error = validate(capsys, artifact, on, "--set", f"python={python_without(tmp_path, module)}")
    assert code == 2
    assert f"no usable {module}" in error
    assert "nstall" in error


def test_a_jetson_artifact_is_refused_on_another_architecture(capsys, jetson_artifact, on, server):
    code, error = validate(capsys, jetson_artifact, on)
    assert code == 2
    assert "jetson-orin-nano is aarch64" in error
    assert not any(" run " in line for line in server.commands)


def test_here_a_jetson_artifact_needs_tensorrt_and_never_becomes_device(capsys, jetson_artifact):
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "no usable tensorrt" in error
    code, run = validate(capsys, jetson_artifact, "local", "--set", "runtime=onnxruntime")
    assert code == 0
    assert run["tier"] == "reference"
    assert "is not the device of jetson-orin-nano" in run["reason"]


@pytest.fixture
def fake_trtexec(tmp_path, monkeypatch):
    """A device that has trtexec, or what plays it."""
    program = tmp_path / "tools" / "trtexec"
    program.parent.mkdir()
    script = Path(__file__).with_name("fake_trtexec.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_a_device_with_trtexec_alone_builds_times_and_answers(capsys, jetson_artifact, fake_trtexec):
    code, run = validate(capsys, jetson_artifact, "local")
    assert code == 0
    conditions = run["row"]["latency_ms"]["conditions"]
    assert conditions["runtime"] == "trtexec of TensorRT 00000-fake"
    assert "threads" not in conditions
    # Of the made-up times 1, 2 and 3 ms on the GPU; copies are left out.
    assert run["row"]["latency_ms"]["value"] == 2
    # Six digits leave a relative error of at most 5e-6, which is 106 dB.
    assert run["gaps"]["logits"]["sqnr_db"] > 106
    assert any("trtexec" in remark and "built" in remark for remark in run["remarks"])
    # This machine is not the device of the profile, whatever runs on it.
    assert run["tier"] == "reference"


def test_what_trtexec_says_of_an_error_arrives(capsys, jetson_artifact, fake_trtexec):
    fake_trtexec.write_text(fake_trtexec.read_text().replace("exec ", 'echo "[E] made-up fault" >&2; exit 1 #'))
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "building the engine on local failed: [E] made-up fault" in error


def test_a_model_that_runs_too_long_ends_itself_on_the_device(capsys, artifact, on, device_folder):
    more = ("--set", "seconds=60", "--set", "most_runs=100000000", "--set", "timeout=1")
    code, error = validate(capsys, artifact, on, *more, "--set", f"directory={device_folder}")
    assert code == 2
    assert "took longer than 1 s" in error
    assert list(device_folder.iterdir()) == []


def test_after_a_lost_connection_nothing_runs_on_and_nothing_is_left(capsys, artifact, on, server, device_folder):
    started = []

    def break_off(line, process):
        if " run " not in line:
            return False
        started.append(subprocess.Popen(["/bin/sh", "-c", line]))
        while not list(device_folder.glob("*/worker.pid")):
            assert started[0].poll() is None
            time.sleep(0.02)
        process.channel.get_connection().abort()
        return True

    server.on_command = break_off
    more = ("--set", "seconds=600", "--set", "most_runs=100000000", "--set", f"directory={device_folder}")
    code, error = validate(capsys, artifact, on, *more)
    assert code == 2
    assert "was lost" in error
    assert started[0].wait(30) in (-9, 137)
    assert list(device_folder.iterdir()) == []


def test_control_c_leaves_the_device_clean(artifact, on, server, device_folder):
    words = ["validate", str(artifact), "--on", on, "--set", f"python={sys.executable}"]
    words += ["--set", "seconds=600", "--set", "most_runs=100000000", "--set", f"directory={device_folder}"]
    program = "import sys; from edgesmith.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(device_folder.glob("*/worker.pid")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert any(line.startswith("kill") for line in server.commands)
    assert list(device_folder.iterdir()) == []


@pytest.mark.parametrize("setting", ["nonsense=1", "samples=0", "threads=many", "runtime=torch", "seconds"])
def test_a_setting_that_is_not_understood_is_refused_before_connecting(capsys, artifact, setting):
    code, error = validate(capsys, artifact, "ssh://nobody@192.0.2.1", "--set", setting)
    assert code == 2
    assert f"--set {setting.partition('=')[0]}" in error


def test_a_directory_that_is_no_artifact_is_refused(capsys, tmp_path):
    code, error = validate(capsys, tmp_path, "local")
    assert code == 2
    assert "damaged" in error


def test_the_guide_explains_every_setting():
    guide = (Path(__file__).parents[2] / "docs" / "targets" / "validation.md").read_text()
    assert [name for name in ValidationPlan.model_fields if f"`{name}`" not in guide] == []
