"""What is read out of the texts of a device's tools. Every text here is made up, and says so in its name."""

import json

import pytest
from device_fixtures import made_up, made_up_probe, made_up_reply, made_up_state
from pydantic import ValidationError

from edgesmith.device.comparison import OutputComparison
from edgesmith.device.facts import (
    Probe,
    Reply,
    State,
    read_jetson_release,
    read_power,
    read_power_mode,
    require_one_state,
    total_power,
)
from edgesmith.device.record import append_run, compare_runs, load_record
from edgesmith.device.runtimes import (
    best_runtime,
    own_runtime,
    require_architecture,
    require_runtime,
    tier_of,
    unlisted_version,
)
from edgesmith.device.summary import Seen, conditions_of, percentiles, summarize_run
from edgesmith.errors import DeviceError, MeasurementError
from edgesmith.host.records import Tier
from edgesmith.ledger import LedgerRow, OutputError
from edgesmith.profile import load_profile

ORIN_NANO = load_profile("edgesmith_tensorrt:profiles/jetson-orin-nano.toml")
RTX_40 = load_profile("edgesmith_tensorrt:profiles/rtx-40.toml")
H100 = load_profile("edgesmith_tensorrt:profiles/h100.toml")
RTX_30 = load_profile("edgesmith_tensorrt:profiles/rtx-30.toml")
RTX_50 = load_profile("edgesmith_tensorrt:profiles/rtx-50.toml")
EXECUTORCH = load_profile("edgesmith_executorch:profiles/executorch-xnnpack.toml")
ONNX_CPU = load_profile("edgesmith_onnxruntime:profiles/onnx-cpu.toml")
ANDROID_CPU = load_profile("edgesmith_onnxruntime:profiles/android-cpu.toml")
QNN = load_profile("edgesmith_onnxruntime:profiles/android-qnn.toml")
IOS = load_profile("edgesmith_onnxruntime:profiles/ios-coreml.toml")


def probe(**changes) -> Probe:
    return Probe.model_validate_json(json.dumps(made_up_probe(**changes)))


def reply(**changes) -> Reply:
    return Reply.model_validate_json(json.dumps(made_up_reply(**changes)))


def device_run(answer: Reply, tier: Tier = Tier.DEVICE):
    gap = OutputError(against="simulation", sqnr_db=40.0, cosine=0.99, max_abs=0.1)
    seen = Seen("ssh://made-up", tier, "a test", probe(), answer, OutputComparison({"logits": gap}, 8), "nothing", "")
    return summarize_run(seen, LedgerRow(index=0, stage="made up"), conditions_of(seen, {}, 2, None), ())


def test_the_power_mode_is_read_below_warnings():
    assert read_power_mode(made_up("nvpmodel")) == "MADE_UP_15W"


@pytest.mark.parametrize("text", ["", "nvpmodel: command not found", "NV Power Mode:", "NV Power Mode:\n0"])
def test_without_a_power_mode_there_is_no_name_for_one(text):
    assert read_power_mode(text) == ""


def test_power_is_read_per_rail_and_cut_lines_are_left_out():
    rails = read_power(made_up("tegrastats"))
    assert rails == {"VDD_IN": [4000, 6000], "VDD_CPU_GPU_CV": [700, 2700], "VDD_SOC": [1200, 1200]}
    assert total_power(rails) == [4000, 6000]
    assert total_power({"VDD_SOC": [1]}) == []


def test_release_and_driver_are_read():
    assert read_jetson_release(made_up("nv_tegra_release")) == "99.8.7"
    assert read_jetson_release("# made up") == ""
    assert probe().facts()["driver"] == "999.88.77"


def test_a_gpu_is_read_from_nvidia_smi_and_a_board_goes_before_it():
    server = probe(board="", gpus="Made-up H100, 1.2.3, 9.0, 80000 MiB\nMade-up second, 1.2.3, 9.0, 1 MiB")
    assert server.machine == "Made-up H100"
    assert server.facts()["driver"] == "1.2.3"
    assert probe(gpus="Made-up GPU, 1, 2, 3").machine.startswith("Made-up Jetson")
    assert probe(board="", gpus="no devices were found").machine == "aarch64"


@pytest.mark.parametrize(
    ("clocks", "locked"),
    [((), None), ((("policy0", 5, 5, 5), ("gpu", 7, 7, 7)), True), ((("policy0", 5, 5, 5), ("gpu", 1, 7, 7)), False)],
)
def test_clocks_are_locked_when_none_can_change(clocks, locked):
    assert State.model_validate(made_up_state(clocks=clocks)).clocks_locked is locked


@pytest.mark.parametrize(
    "damage", [{"times_ms": []}, {"times_ms": [float("nan")]}, {"times_ms": [-1.0]}, {"outputs": []}, {"extra": 1}]
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(damage):
    with pytest.raises(ValidationError):
        reply(**damage)


def test_numbers_have_spread_percentiles_throughput_and_energy():
    run = device_run(reply())
    latency = run.row.latency_ms
    assert (latency.value, latency.low, latency.high, latency.samples, latency.tier) == (3.0, 2.0, 4.0, 5, Tier.DEVICE)
    assert run.samples_per_second == pytest.approx(2 / 3e-3)
    # Median power of 4 and 6 W is 5 W; for 3 ms that is 15 mJ.
    assert run.energy_mj.value == pytest.approx(15.0)
    assert (run.before.hottest_celsius, run.after.hottest_celsius) == (40, 50)
    assert latency.conditions["power_mode"] == "made_up_15W"


def test_without_power_readings_no_energy_is_claimed():
    assert device_run(reply(tegrastats="")).energy_mj is None


def test_percentiles_are_those_of_numpy():
    import numpy as np

    times = list(np.random.default_rng(0).exponential(size=57))
    found = percentiles(times)
    for percent in (50, 90, 95, 99):
        assert found[f"p{percent}"] == pytest.approx(np.percentile(times, percent))
    assert set(percentiles([7.0]).values()) == {7.0}


def test_runs_in_different_power_modes_are_not_compared():
    slow, fast = (
        device_run(reply(before=made_up_state("made_up_7W"), after=made_up_state("made_up_7W"))),
        device_run(reply()),
    )
    assert compare_runs(fast, fast).ratio == 1
    figure = compare_runs(slow, fast)
    assert figure.ratio is None
    assert "power_mode made_up_7W and made_up_15W" in figure.refusal


def test_runs_with_locked_and_unlocked_clocks_are_not_compared():
    locked = reply(before=made_up_state(clocks=(("gpu", 5, 5, 5),)))
    unlocked = reply(before=made_up_state(clocks=(("gpu", 1, 5, 5),)))
    assert "clocks locked and not locked" in compare_runs(device_run(locked), device_run(unlocked)).refusal
    assert any("not locked" in remark for remark in device_run(unlocked).remarks)


def test_runs_under_other_limits_of_clocks_or_power_are_not_compared():
    slow, fast = (reply(before=made_up_state(clocks=(("gpu", mhz, mhz, mhz),))) for mhz in (600, 1200))
    assert "clock_limits gpu 600 and gpu 1200" in compare_runs(device_run(slow), device_run(fast)).refusal
    weak, strong = (reply(before=made_up_state(gpu_limits=f"{watts}.00 W, Disabled")) for watts in (300, 700))
    assert "gpu_limits 300.00 W, Disabled and 700.00 W" in compare_runs(device_run(weak), device_run(strong)).refusal
    with pytest.raises(MeasurementError, match="clock limits of made-up changed from gpu 600 to gpu 1200"):
        require_one_state("made-up", slow.before, fast.before)
    with pytest.raises(MeasurementError, match=r"gpu limits of made-up changed from 300.00 W, Disabled to unknown"):
        require_one_state("made-up", weak.before, reply().before)


def test_limits_of_clocks_are_said_once_for_neighbours_and_not_the_present_frequency():
    clocks = (("policy0", 1, 5, 2), ("policy4", 1, 5, 3), ("gpu", 7, 7, 7))
    conditions = State.model_validate(made_up_state(clocks=clocks)).conditions
    assert conditions["clock_limits"] == "policy0 to policy4 1-5, gpu 7"
    assert "clock_limits" not in State.model_validate(made_up_state()).conditions


def test_a_power_mode_that_changes_while_timing_makes_the_run_void():
    require_one_state("made-up", reply().before, reply().after)
    with pytest.raises(MeasurementError, match="power mode of made-up changed from made_up_15W to made_up_7W"):
        require_one_state("made-up", reply().before, reply(after=made_up_state("made_up_7W")).after)


def test_clocks_that_are_unlocked_while_timing_make_the_run_void():
    locked, unlocked = (reply(before=made_up_state(clocks=(("made-up", low, 2, 2),))).before for low in (2, 1))
    with pytest.raises(MeasurementError, match="clocks of made-up changed from locked to not locked"):
        require_one_state("made-up", locked, unlocked)


def test_the_record_keeps_every_run_and_infinite_ratios(tmp_path):
    run = device_run(reply())
    equal = OutputError(against="simulation", sqnr_db=float("inf"), cosine=1.0, max_abs=0.0)
    append_run(tmp_path, run)
    append_run(tmp_path, run.model_copy(update={"gaps": {"logits": equal}}))
    first, second = load_record(tmp_path).runs
    assert first == run
    assert second.gaps["logits"] == equal


def test_a_damaged_record_is_not_overwritten(tmp_path):
    (tmp_path / "validation.json").write_text('{"format": 1, "runs": [{}]}')
    with pytest.raises(MeasurementError, match="cannot be read as a validation record"):
        append_run(tmp_path, device_run(reply()))
    assert (tmp_path / "validation.json").read_text() == '{"format": 1, "runs": [{}]}'


def card(name: str, capability: str) -> dict:
    return {"architecture": "x86_64", "board": "", "gpus": f"{name}, 580.1, {capability}, 8192 MiB"}


def phone(**changes: str) -> dict:
    return {"board": "", "android": "SM-S928B", "chip": "SM8650", **changes}


PI = {"board": "Raspberry Pi 5 Model B"}


@pytest.mark.parametrize(
    ("profile", "changes", "runtime", "is_local", "tier"),
    [
        (ORIN_NANO, {}, "tensorrt", False, Tier.DEVICE),
        (ORIN_NANO, {}, "tensorrt", True, Tier.DEVICE),
        (ORIN_NANO, {}, "trtexec", False, Tier.DEVICE),
        (ORIN_NANO, {}, "onnxruntime", False, Tier.REFERENCE),
        (ORIN_NANO, {"board": "Made-up Jetson AGX Orin"}, "tensorrt", False, Tier.REFERENCE),
        (RTX_40, card("NVIDIA GeForce RTX 4090", "8.9"), "trtexec", False, Tier.REFERENCE),
        (RTX_40, card("NVIDIA GeForce RTX 4090", "8.9"), "tensorrt_rtx", False, Tier.DEVICE),
        (RTX_40, card("NVIDIA RTX 5000 Ada Generation", "8.9"), "tensorrt_rtx", False, Tier.DEVICE),
        (RTX_40, card("NVIDIA L4", "8.9"), "tensorrt_rtx", False, Tier.PROXY),
        (RTX_40, card("Quadro RTX 4000", "7.5"), "tensorrt_rtx", False, Tier.REFERENCE),
        (RTX_50, card("NVIDIA RTX 5000 Ada Generation", "8.9"), "tensorrt_rtx", False, Tier.REFERENCE),
        (RTX_30, card("NVIDIA RTX 3000 Ada Generation Laptop GPU", "8.9"), "tensorrt_rtx", False, Tier.REFERENCE),
        (RTX_30, card("NVIDIA RTX A2000", "8.6"), "tensorrt_rtx", False, Tier.DEVICE),
        (H100, card("NVIDIA H200", "9.0"), "tensorrt", False, Tier.DEVICE),
        (H100, card("NVIDIA GH200 480GB", "9.0"), "tensorrt", False, Tier.PROXY),
        (H100, {"board": "", "gpus": ""}, "tensorrt", False, Tier.REFERENCE),
        (EXECUTORCH, PI, "onnxruntime", False, Tier.REFERENCE),
        (ANDROID_CPU, PI, "onnxruntime", False, Tier.PROXY),
        (ANDROID_CPU, {"board": "", "cpu_info": "model name : AWS Graviton\n"}, "onnxruntime", False, Tier.PROXY),
        (ANDROID_CPU, phone(), "onnxruntime", False, Tier.DEVICE),
        (ANDROID_CPU, phone(architecture="x86_64"), "onnxruntime", False, Tier.REFERENCE),
        (IOS, {"board": "", "architecture": "arm64", "system": "Linux 6"}, "onnxruntime", False, Tier.REFERENCE),
        (QNN, phone(), "onnxruntime", False, Tier.REFERENCE),
        (QNN, phone(chip="", android="SM8650 QRD"), "onnxruntime", False, Tier.REFERENCE),
        (ONNX_CPU, PI, "onnxruntime", False, Tier.DEVICE),
        (ONNX_CPU, PI, "onnxruntime", True, Tier.REFERENCE),
        (None, {}, "onnxruntime", False, Tier.DEVICE),
        (None, {}, "onnxruntime", True, Tier.REFERENCE),
    ],
)
def test_device_is_only_the_machine_of_the_profile_with_its_own_runtime(profile, changes, runtime, is_local, tier):
    provider = "CPUExecutionProvider" if runtime == "onnxruntime" else "GPU"
    found, reason = tier_of(profile, probe(**changes), runtime, provider, is_local=is_local)
    assert found == tier, reason
    assert reason


@pytest.mark.parametrize(
    ("profile", "changes", "provider", "tier"),
    [
        (QNN, phone(), "QNNExecutionProvider", Tier.DEVICE),
        (QNN, phone(chip="Tensor G4", android="Pixel 9"), "QNNExecutionProvider", Tier.REFERENCE),
        (IOS, {"board": "", "architecture": "arm64", "system": "iOS 18.1"}, "CoreMLExecutionProvider", Tier.DEVICE),
        (IOS, {"board": "", "architecture": "arm64", "system": "Darwin 24"}, "CoreMLExecutionProvider", Tier.PROXY),
    ],
)
def test_the_provider_and_the_chip_of_a_phone_decide(profile, changes, provider, tier):
    found, reason = tier_of(profile, probe(**changes), "onnxruntime", provider, is_local=False)
    assert found == tier, reason


@pytest.mark.parametrize(
    ("version", "is_listed"),
    [("10.3.0", True), ("10.16.1.11", True), ("10.7.0", False), ("12.0.0", False), ("made up", True)],
)
def test_a_version_of_the_runtime_that_the_profile_does_not_list_is_told(version, is_listed):
    modules = {**made_up_probe()["modules"], "tensorrt": {"version": version, "reason": ""}}
    told = unlisted_version(ORIN_NANO, probe(modules=modules), "tensorrt")
    assert (told == "") == is_listed
    assert is_listed or (version in told and ">=10.3,<10.4" in told)
    assert unlisted_version(ORIN_NANO, probe(modules=modules), "onnxruntime") == ""


def test_each_profile_has_its_runtime():
    assert [own_runtime(profile) for profile in (None, ORIN_NANO, RTX_40, ONNX_CPU, EXECUTORCH)] == [
        "onnxruntime",
        "tensorrt",
        "tensorrt_rtx",
        "onnxruntime",
        "",
    ]
    assert best_runtime(EXECUTORCH, probe()) == "onnxruntime"


def missing(name: str, reason: str) -> dict:
    return {**made_up_probe()["modules"], name: {"version": "", "reason": reason}}


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "tensorrt"])
def test_a_missing_runtime_is_named_with_what_to_install(name):
    wanted = "tensorrt" if name == "numpy" else name
    with pytest.raises(DeviceError, match=f"no usable {name}: made up") as caught:
        require_runtime("ssh://made-up", probe(modules=missing(name, "made up")), wanted)
    assert "nstall" in caught.value.fix


def test_trtexec_stands_in_where_tensorrt_has_no_usable_module_and_nowhere_else():
    without = missing("tensorrt", "made up")
    assert best_runtime(ORIN_NANO, probe(trtexec="/made/up")) == "tensorrt"
    assert best_runtime(ORIN_NANO, probe(trtexec="/made/up", modules=without)) == "trtexec"
    assert best_runtime(ORIN_NANO, probe(trtexec="/made/up", cuda_runtime=False)) == "trtexec"
    assert best_runtime(ORIN_NANO, probe(modules=without)) == "tensorrt"
    assert best_runtime(None, probe(trtexec="/made/up", modules=without)) == "onnxruntime"
    require_runtime("ssh://made-up", probe(trtexec="/made/up", modules=without), "trtexec")
    with pytest.raises(DeviceError, match="no usable trtexec"):
        require_runtime("ssh://made-up", probe(), "trtexec")


def test_tensorrt_without_cuda_is_a_missing_runtime_and_not_a_guess():
    require_runtime("ssh://made-up", probe(), "tensorrt")
    with pytest.raises(DeviceError, match="no usable CUDA"):
        require_runtime("ssh://made-up", probe(cuda_runtime=False), "tensorrt")


def test_a_library_for_another_processor_is_the_wrong_architecture():
    modules = missing("onnxruntime", "ImportError: made_up.so: wrong ELF class: ELFCLASS32")
    with pytest.raises(DeviceError, match="not of the architecture"):
        require_runtime("ssh://made-up", probe(modules=modules), "onnxruntime")


def test_the_architecture_must_be_the_profiles():
    require_architecture("ssh://made-up", probe(), ORIN_NANO)
    require_architecture("ssh://made-up", probe(architecture="x86_64"), None)
    with pytest.raises(DeviceError, match="jetson-orin-nano is aarch64"):
        require_architecture("ssh://made-up", probe(architecture="x86_64"), ORIN_NANO)


def test_a_busy_machine_is_told_with_the_share_of_waiting():
    (remark,) = [one for one in device_run(reply(waiting_share=0.4)).remarks if "busy" in one]
    assert "waited for a processor 40% of the time" in remark
    assert not any("busy" in one for one in device_run(reply(waiting_share=0.01)).remarks)
