"""`edgesmith validate` from the command line to the record: on this machine, and over SSH on loopback."""

import importlib.util
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
from measure_models import dense_model
from onnx import numpy_helper

import edgesmith
from edgesmith.cli import main
from edgesmith.device import validation
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


@pytest.fixture
def sorted_by_class(tmp_path):
    """Samples of four classes, one class after the other, as folders of images hold them."""
    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(4), 10)
    np.savez(tmp_path / "sorted.npz", x=random.normal(size=(40, 16)).astype(np.float32), labels=labels)
    (tmp_path / "sorted.yaml").write_text("evaluation: {kind: npz, path: sorted.npz}\n")
    return tmp_path / "sorted.yaml"


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


def test_few_samples_are_of_all_classes_and_the_same_each_time(capsys, artifact, sorted_by_class, monkeypatch):
    pushed = []
    send = validation._send
    monkeypatch.setattr(
        validation, "_send", lambda place, visit, runtime: pushed.append(visit) or send(place, visit, runtime)
    )
    for _ in range(2):
        code, run = validate(capsys, artifact, "local", "--data", str(sorted_by_class), "--set", "samples=8")
        assert code == 0
        assert run["row"]["metric"]["samples"] == 8
        assert any("8 of the 40 evaluation samples" in remark and "samples=40" in remark for remark in run["remarks"])
    first, second = (np.concatenate([batch.labels for batch in visit.samples.batches]) for visit in pushed)
    assert np.bincount(first).tolist() == [2, 2, 2, 2]
    assert first.tolist() == second.tolist()
    for one, other in zip(pushed[0].samples.batches, pushed[1].samples.batches, strict=True):
        np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])


@pytest.mark.parametrize(("settings", "size"), [((), 1), (("--set", "batch_size=3"), 3)])
def test_random_inputs_have_the_batch_size_of_the_settings(capsys, artifact, settings, size):
    _, run = validate(capsys, artifact, "local", *settings)
    assert run["row"]["latency_ms"]["conditions"]["batch"] == size


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


def test_an_artifact_of_an_own_profile_brings_its_device(capsys, tmp_path):
    profile = tmp_path / "my-board.toml"
    profile.write_text('extends = "onnx-cpu"\nname = "pi"\n[device]\narchitectures = ["riscv128"]\n', encoding="utf-8")
    settings = edgesmith.Settings(threads=1, store=tmp_path / "store")
    source = dense_model(tmp_path / "dense.onnx")
    made = edgesmith.compile(
        source, out=tmp_path / "pi", target=str(profile), recipe={"version": 1, "steps": []}, settings=settings
    )
    assert made.ledger.chosen_row.latency_ms is None
    assert "Not timed: the device is not here" in made.ledger.verdict
    profile.unlink()
    code, run = validate(capsys, made.directory, "local")
    assert code == 0
    assert "pi is riscv128" in run["reason"]
    (made.directory / "profile.json").write_text("{}")
    code, message = validate(capsys, made.directory, "local")
    assert code != 0
    assert "profile.json" in message


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


def test_a_jetson_artifact_is_refused_on_another_architecture_but_for_onnx_runtime(capsys, jetson_artifact, on, server):
    code, error = validate(capsys, jetson_artifact, on)
    assert code == 2
    assert "jetson-orin-nano is aarch64" in error
    assert not any(" run " in line for line in server.commands)
    code, run = validate(capsys, jetson_artifact, on, "--set", "runtime=onnxruntime")
    assert code == 0
    assert run["tier"] == "reference"
    assert "is not the runtime of jetson-orin-nano" in run["reason"]
    assert "jetson-orin-nano is aarch64" in run["reason"]


def test_here_a_jetson_artifact_needs_tensorrt_and_never_becomes_device(capsys, jetson_artifact):
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "no usable tensorrt" in error
    code, run = validate(capsys, jetson_artifact, "local", "--set", "runtime=onnxruntime")
    assert code == 0
    assert run["tier"] == "reference"
    assert "is not the runtime of jetson-orin-nano" in run["reason"]


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
    assert conditions["cuda_graph"] == "used"
    assert [layer["name"] for layer in run["engine"]["layers"]] == ["made-up product", "made-up pair"]
    assert "engine-unfused-pairs" in [finding["rule"] for finding in run["engine"]["findings"]]
    assert "layers in float16" in (jetson_artifact / "report.html").read_text()
    # This machine is not the device of the profile, whatever runs on it.
    assert run["tier"] == "reference"


def test_an_engine_that_takes_no_graph_in_trtexec_says_so(capsys, jetson_artifact, fake_trtexec, monkeypatch):
    monkeypatch.setenv("FAKE_TRTEXEC_NO_GRAPH", "1")
    code, run = validate(capsys, jetson_artifact, "local")
    assert code == 0
    assert run["row"]["latency_ms"]["conditions"]["cuda_graph"] == "not used"
    assert any("without a CUDA graph" in remark for remark in run["remarks"])


def test_graphs_can_be_switched_off_and_such_runs_are_not_compared(capsys, jetson_artifact, fake_trtexec):
    validate(capsys, jetson_artifact, "local")
    code, run = validate(capsys, jetson_artifact, "local", "--set", "cuda_graphs=false")
    assert code == 0
    assert run["against_last_run"]["ratio"] is None


def test_what_trtexec_says_of_an_error_arrives(capsys, jetson_artifact, fake_trtexec):
    fake_trtexec.write_text(fake_trtexec.read_text().replace("exec ", 'echo "[E] made-up fault" >&2; exit 1 #'))
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert "building the engine on local failed: [E] made-up fault" in error


def test_why_trtexec_builds_nothing_is_told_and_not_what_follows_from_it(capsys, jetson_artifact, fake_trtexec):
    said = [
        "[I] made-up start",
        "[E] Error[2]: OutOfMemory (Requested size was 17 bytes.)",
        "[E] no engine",
        "[W] hm",
        "[E] set-up failed",
        "[E] and so on",
    ]
    words = "; ".join(f"echo '{line}' >&2" for line in said) + "; echo '&&&& FAILED TensorRT.trtexec'; exit 1"
    fake_trtexec.write_text(fake_trtexec.read_text().replace("exec ", f'case "$*" in *--onnx*) {words};; esac; exec '))
    code, error = validate(capsys, jetson_artifact, "local")
    assert code == 2
    assert f"building the engine on local failed: {said[1]} {said[2]} {said[4]}" in " ".join(error.split())


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
    code, error = validate(capsys, artifact, on, *more, "--set", "reconnects=0")
    assert code == 2
    assert "was lost" in error
    assert started[0].wait(30) in (-9, 137)
    assert list(device_folder.iterdir()) == []


def test_a_worker_that_has_just_started_is_stopped_too(capsys, artifact, on, server, device_folder, tmp_path):
    """It is known before Python there has read a line: the connection is lost while the interpreter still starts."""
    number = tmp_path / "number"
    slow = tmp_path / "slow-python"
    stalled = f"echo $$ >{number}; exec {sys.executable} -c 'import time; time.sleep(600)' \"$@\""
    slow.write_text(f'#!/bin/sh\nif [ "$2" = run ]; then {stalled}; fi\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    started = []

    def break_off(line, process):
        if " run " not in line:
            return False
        started.append(subprocess.Popen(["/bin/sh", "-c", line]))
        while not (number.exists() and number.read_text().strip()):
            time.sleep(0.02)
        process.channel.get_connection().abort()
        return True

    server.on_command = break_off
    more = ("--set", f"python={slow}", "--set", f"directory={device_folder}", "--set", "reconnects=0")
    code, _ = validate(capsys, artifact, on, *more)
    assert code == 2
    started[0].wait(timeout=10)
    assert not Path(f"/proc/{number.read_text().strip()}").exists()
    assert list(device_folder.iterdir()) == []


def test_control_c_leaves_the_device_clean(artifact, on, device_folder):
    words = ["validate", str(artifact), "--on", on, "--set", f"python={sys.executable}"]
    words += ["--set", "seconds=600", "--set", "most_runs=100000000", "--set", f"directory={device_folder}"]
    program = "import sys; from edgesmith.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    number = ""
    while not number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        number = "".join(file.read_text() for file in device_folder.glob("*/worker.pid"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not Path("/proc", number, "cmdline").exists() or not Path("/proc", number, "cmdline").read_text()
    assert list(device_folder.iterdir()) == []


def break_once(word):
    """Return what breaks the connection the first time that a command with `word` in it is sent."""
    broken = []

    def break_off(line, process):
        if word not in line or broken:
            return False
        broken.append(line)
        process.channel.get_connection().abort()
        return True

    return break_off


@pytest.mark.parametrize("word", [" probe ", "df -P", " run ", "mkdir"])
def test_a_connection_that_is_lost_once_is_made_again_and_the_work_goes_on(
    capsys, artifact, on, server, device_folder, monkeypatch, word
):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    breaking = break_once(word)
    lost = break_once(" run ") if word == "mkdir" else breaking
    server.on_command = lambda line, process: lost(line, process) or breaking(line, process)
    code, run = validate(capsys, artifact, on, "--set", f"directory={device_folder}")
    assert code == 0
    assert run["gaps"]["logits"]["cosine"] == 1
    assert any("was lost and made again" in remark for remark in run["remarks"])
    assert list(device_folder.iterdir()) == []


def test_what_is_there_already_is_not_sent_again(capsys, artifact, on, server, monkeypatch):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    server.on_command = break_once(" run ")
    code, _ = validate(capsys, artifact, on)
    assert code == 0
    after = server.commands[next(i for i, line in enumerate(server.commands) if line.startswith("mkdir")) :]
    # Each file of the first try is found by its hash, and room is asked for the request alone, which never arrived.
    assert sum(line.startswith("sha256sum") for line in after) >= 3
    assert sum(line.startswith("df") for line in after) <= 1


def test_results_that_are_there_are_fetched_and_nothing_runs_twice(capsys, artifact, on, server, monkeypatch):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    done = []

    def run_then_break(line, process):
        if " run " not in line or done:
            return False
        done.append(subprocess.run(["/bin/sh", "-c", line], check=True))
        process.channel.get_connection().abort()
        return True

    server.on_command = run_then_break
    code, run = validate(capsys, artifact, on)
    assert code == 0
    assert run["gaps"]["logits"]["cosine"] == 1
    assert sum(" run " in line for line in server.commands) == 1


def test_a_device_that_stays_away_can_be_taken_up_later(capsys, artifact, on, server, device_folder, monkeypatch):
    monkeypatch.setattr("edgesmith.device.insistence._WAITS_SECONDS", (0.0,))
    away = []

    def go_away(line, process):
        away.append(line) if " run " in line else None
        if away:
            process.channel.get_connection().abort()
        return bool(away)

    server.on_command = go_away
    code, error = validate(capsys, artifact, on, "--set", f"directory={device_folder}")
    assert code == 2
    (left,) = device_folder.iterdir()
    assert f"--set resume={left}" in " ".join(error.split()).replace("- ", "-")
    away.clear()
    server.on_command = lambda line, process: False
    server.commands.clear()
    code, run = validate(capsys, artifact, on, "--set", f"resume={left}")
    assert code == 0
    assert run["gaps"]["logits"]["cosine"] == 1
    assert not any(line.startswith("mktemp") for line in server.commands)
    assert list(device_folder.iterdir()) == []


@pytest.mark.parametrize("directory", ["/etc", "relative/edgesmith-abcdefghij", "/tmp/edgesmith-..", "/"])
def test_only_a_directory_of_ours_is_taken_up_since_it_is_removed_in_the_end(capsys, artifact, on, server, directory):
    code, error = validate(capsys, artifact, on, "--set", f"resume={directory}")
    assert code == 2
    assert "not the directory of an earlier try" in error
    assert not any(line.startswith("rm") for line in server.commands)


def test_a_directory_that_is_gone_is_not_taken_up(capsys, artifact, on):
    code, error = validate(capsys, artifact, on, "--set", "resume=/tmp/edgesmith-abcdefghij")
    assert code == 2
    assert "not there any more" in error


def test_the_gap_inside_the_graph_is_measured_and_shown(capsys, artifact, on, server, tmp_path):
    original = (artifact / "model.onnx").read_bytes()

    def exchange(line, process):
        # The device computes the first layer 1 % too large, in the graph with the values read out as in the other.
        if " run " in line:
            folder = Path(line.split()[-1].rpartition("/")[0])
            for name in ("model.onnx", "tapped.onnx"):
                model = onnx.load(folder / name)
                weight = next(each for each in model.graph.initializer if each.name.startswith("weight_0"))
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
                onnx.save(model, folder / name)
        return False

    server.on_command = exchange
    code, run = validate(capsys, artifact, on, "--set", "taps=4", "--set", "samples=8")
    assert code == 0
    assert (artifact / "model.onnx").read_bytes() == original
    (layer,) = run["row"]["layers"]
    # The noise is 0.01 of the signal, which is 40 dB.
    assert layer["sqnr_db"] == pytest.approx(40, abs=0.01)
    assert "gap inside" in (artifact / "report.html").read_text()


def test_taps_that_cannot_be_read_out_are_a_remark(capsys, artifact, on, monkeypatch):
    monkeypatch.setattr("edgesmith.device.validation.choose_taps", lambda model, row, count: {})
    code, run = validate(capsys, artifact, on, "--set", "taps=4")
    assert code == 0 and run["row"]["layers"] == []
    assert any("No value inside was compared" in remark for remark in run["remarks"])


def test_a_device_without_thermometer_is_not_said_to_be_cool(capsys, artifact, on, monkeypatch, tmp_path):
    from edgesmith.device.worker import machine

    cool = any(machine._temperatures().values())
    code, run = validate(capsys, artifact, on, "--set", "cool_below=1000")
    assert code == 0
    assert cool != any("tells no temperature" in remark for remark in run["remarks"])


def test_a_full_disk_while_it_runs_is_explained(capsys, artifact, on, server):
    def fill(line, process):
        if " run " not in line:
            return False
        folder = Path(line.split()[-1].rpartition("/")[0])
        reason = "OSError: [Errno 28] No space left on device"
        (folder / "answer.json").write_text(json.dumps({"status": "failed", "reason": reason}))
        process.exit(1)
        return True

    server.on_command = fill
    code, error = validate(capsys, artifact, on)
    assert code == 2
    assert "--set directory=PATH" in error


needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None,
    reason="MLPerf's load generator is not installed: pip install 'edgesmith[loadgen]'",
)


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_a_scenario_of_the_load_generator_is_run_on_the_device(capsys, artifact, on, scenario):
    code, run = validate(capsys, artifact, on, "--loadgen", scenario, "--set", "samples=4")
    assert code == 0
    assert run["loadgen"]["scenario"] == scenario
    wanted = "percentile latency (ns)" if scenario == "SingleStream" else "Samples per second"
    assert any(wanted in name and number > 0 for name, number in run["loadgen"]["figures"].items())
    assert "LoadGen" in (artifact / "report.html").read_text()


def test_without_the_load_generator_there_the_user_learns_how_to_get_it(capsys, artifact, on, tmp_path):
    python = python_without(tmp_path, "mlperf_loadgen")
    code, error = validate(capsys, artifact, on, "--loadgen", "Offline", "--set", f"python={python}")
    assert code == 2
    assert "mlcommons-loadgen" in error


def test_trtexec_takes_no_load_generator(capsys, jetson_artifact, fake_trtexec):
    code, error = validate(capsys, jetson_artifact, "local", "--loadgen", "Offline")
    assert code == 2
    assert "--loadgen" in error


@pytest.mark.parametrize("setting", ["nonsense=1", "samples=0", "threads=many", "runtime=torch", "seconds"])
def test_a_setting_that_is_not_understood_is_refused_before_connecting(capsys, artifact, setting):
    code, error = validate(capsys, artifact, "ssh://nobody@192.0.2.1", "--set", setting)
    assert code == 2
    assert f"--set {setting.partition('=')[0]}" in error


def test_a_directory_that_is_no_artifact_is_refused(capsys, tmp_path):
    for directory, reason in ((tmp_path, "it has no manifest.json"), (tmp_path / "nope", "there is no such directory")):
        code, error = validate(capsys, directory, "local")
        assert code == 2
        assert f"is no artifact: {reason}" in " ".join(error.split())


def test_the_guide_explains_every_setting():
    guide = (Path(__file__).parents[2] / "docs" / "targets" / "validation.md").read_text()
    assert [name for name in ValidationPlan.model_fields if f"`{name}`" not in guide] == []
