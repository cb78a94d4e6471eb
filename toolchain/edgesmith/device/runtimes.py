"""Which runtime a device runs an artifact in, and what its numbers are then worth."""

from edgesmith.device import faults
from edgesmith.device.facts import Probe
from edgesmith.host.records import Tier
from edgesmith.profile import Profile

ONNX_RUNTIME, TENSORRT, TENSORRT_RTX = "onnxruntime", "tensorrt", "tensorrt_rtx"
"""Names of the Python modules."""
TRTEXEC = "trtexec"
"""NVIDIA's program around TensorRT, which needs no Python module."""

LOADGEN = "mlperf_loadgen"
"""Python module of MLPerf's load generator."""

_BY_PROFILE = {"TensorRT": TENSORRT, "TensorRT-RTX": TENSORRT_RTX}
_OTHER_ARCHITECTURE = ("wrong ELF class", "invalid ELF header", "Exec format error", "incompatible architecture")
_INSTALL = {
    "numpy": "Install numpy there (apt-get install python3-numpy), or name another interpreter (--set python=PATH).",
    ONNX_RUNTIME: "Run `python3 -m pip install onnxruntime` there, or name another interpreter (--set python=PATH).",
    TENSORRT: "Install TensorRT with its Python module there (on a Jetson: apt-get install nvidia-jetpack).",
    LOADGEN: "Run `python3 -m pip install mlcommons-loadgen` there, or leave --loadgen out.",
    TENSORRT_RTX: "Run `python3 -m pip install tensorrt-rtx` there, with the driver of the card.",
}
_INSTEAD = " With --set runtime=onnxruntime the graph runs there in ONNX Runtime, and its numbers stay reference."


def own_runtime(profile: Profile | None) -> str:
    """Return the module of the runtime that a target is made for; ONNX Runtime where it has no device profile."""
    names = [runtime.name for runtime in profile.runtimes] if profile else []
    return next((_BY_PROFILE[name] for name in names if name in _BY_PROFILE), ONNX_RUNTIME)


def best_runtime(profile: Profile | None, probe: Probe) -> str:
    """Return the target's runtime, or trtexec where the device has that and no Python module of TensorRT."""
    runtime = own_runtime(profile)
    module = probe.modules.get(runtime)
    usable = module is not None and module.version and probe.cuda_runtime
    return TRTEXEC if runtime == TENSORRT and not usable and probe.trtexec else runtime


def require_runtime(address: str, probe: Probe, runtime: str) -> None:
    """Check that the device has numpy and a runtime.

    Raises:
        DeviceError: One is missing, with how to install it, or was built for another processor.
    """
    if runtime == TRTEXEC and not probe.trtexec:
        raise faults.missing_runtime(address, TRTEXEC, "it is not found", _INSTALL[TENSORRT] + _INSTEAD)
    for name in ("numpy",) if runtime == TRTEXEC else ("numpy", runtime):
        module = probe.modules.get(name)
        if module is not None and module.version:
            continue
        reason = module.reason if module else "it was not looked for"
        if any(text in reason for text in _OTHER_ARCHITECTURE):
            raise faults.wrong_architecture(address, reason, f"{name} for {probe.architecture}")
        instead = _INSTEAD if name in (TENSORRT, TENSORRT_RTX) else ""
        raise faults.missing_runtime(address, name, reason, _INSTALL[name] + instead)
    if runtime in (TENSORRT, TENSORRT_RTX) and not probe.cuda_runtime:
        fix = "Install CUDA's runtime library there (on a Jetson: apt-get install nvidia-jetpack)."
        reason = "libcudart is not found, and without it no buffers can be made on the GPU"
        raise faults.missing_runtime(address, "CUDA", reason, fix)


def require_loadgen(address: str, probe: Probe, runtime: str) -> None:
    """Check that a scenario of MLPerf's load generator can run.

    Raises:
        DeviceError: Its module is missing, or the runtime is a program that runs by itself.
    """
    module = probe.modules.get(LOADGEN)
    if module is None or not module.version:
        raise faults.missing_runtime(address, LOADGEN, module.reason if module else "unknown", _INSTALL[LOADGEN])
    if runtime == TRTEXEC:
        fix = "Install TensorRT's Python module there, or leave --loadgen out."
        raise faults.missing_runtime(address, "Python runtime for --loadgen", "trtexec times itself", fix)


def require_architecture(address: str, probe: Probe, profile: Profile | None) -> None:
    """Check that the processor is of a kind that the target's device has.

    Raises:
        DeviceError: It is not.
    """
    wanted = profile.device.architectures if profile else ()
    if profile and wanted and probe.architecture not in wanted:
        reason = f"{probe.machine} is {probe.architecture}, and {profile.name} is {' or '.join(wanted)}"
        raise faults.wrong_architecture(address, reason, f"the device of the target, {profile.device.processor}")


def tier_of(profile: Profile | None, probe: Probe, runtime: str, *, is_local: bool) -> tuple[Tier, str]:
    """Return what numbers from this machine are worth, and why.

    `device` is only for the machine that the target's profile names, with the target's own runtime. A target whose
    profile names none, or that has no profile, is for any processor: there a machine that the user reaches as a device
    is the device.
    """
    if profile is None or not profile.device.machines:
        if is_local:
            return Tier.REFERENCE, "the machine that compiles, with no device named"
        return Tier.DEVICE, f"{probe.machine}, with the target's runtime"
    if not any(name.casefold() in probe.machine.casefold() for name in profile.device.machines):
        return Tier.REFERENCE, f"{probe.machine} is not the device of {profile.name} ({profile.device.processor})"
    if (TENSORRT if runtime == TRTEXEC else runtime) != own_runtime(profile):
        return Tier.REFERENCE, f"{runtime} is not the runtime of {profile.name} ({own_runtime(profile)})"
    return Tier.DEVICE, f"{probe.machine}, with the target's runtime"
