"""Which runtime a device runs an artifact in, and what its numbers are then worth."""

import re

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from edgesmith.device import faults
from edgesmith.device.facts import Probe
from edgesmith.device.transport import Transport
from edgesmith.host.records import Tier
from edgesmith.profile import Profile

ONNX_RUNTIME, TENSORRT, TENSORRT_RTX = "onnxruntime", "tensorrt", "tensorrt_rtx"
"""Names of the Python modules."""
TRTEXEC = "trtexec"
"""NVIDIA's program around TensorRT, which needs no Python module."""

LOADGEN = "mlperf_loadgen"
"""Python module of MLPerf's load generator."""

_BY_PROFILE = {"TensorRT": TENSORRT, "TensorRT-RTX": TENSORRT_RTX, "ONNX Runtime": ONNX_RUNTIME}
_TRTEXEC_VERSION = re.compile(rf"{TRTEXEC} of TensorRT (\d+)")
_OTHER_ARCHITECTURE = ("wrong ELF class", "invalid ELF header", "Exec format error", "incompatible architecture")
_INSTALL = {
    "numpy": "Install numpy there (apt-get install python3-numpy), or name another interpreter (--set python=PATH).",
    ONNX_RUNTIME: "Run `python3 -m pip install onnxruntime` there, or name another interpreter (--set python=PATH).",
    TENSORRT: "Install TensorRT with its Python module there (on a Jetson: apt-get install nvidia-jetpack).",
    LOADGEN: "Run `python3 -m pip install mlcommons-loadgen` there, or leave --loadgen out.",
    TENSORRT_RTX: "Run `python3 -m pip install tensorrt-rtx` there, with the driver of the card.",
}
_OWN = "with the target's runtime"
_INSTEAD = " With --set runtime=onnxruntime the graph runs there in ONNX Runtime, and its numbers stay reference."


def own_runtime(profile: Profile | None) -> str:
    """Return the module of the runtime that a target is made for; empty where the worker has no way to run it.

    Without a device profile it is ONNX Runtime.
    """
    if profile is None:
        return ONNX_RUNTIME
    return next((_BY_PROFILE[runtime.name] for runtime in profile.runtimes if runtime.name in _BY_PROFILE), "")


def best_runtime(profile: Profile | None, probe: Probe) -> str:
    """Return what the device runs the artifact in.

    It is the target's runtime, or trtexec where the device has that and no Python module of TensorRT. A runtime that
    the worker cannot run is replaced by ONNX Runtime.
    """
    runtime = own_runtime(profile) or ONNX_RUNTIME
    module = probe.modules.get(runtime)
    usable = module is not None and module.version and probe.cuda_runtime
    return TRTEXEC if runtime == TENSORRT and not usable and probe.trtexec else runtime


def usable_runtime(transport: Transport, probe: Probe, profile: Profile | None, wanted: str) -> str:
    """Return what the device runs models in: `wanted`, or what is best there where that is empty.

    Raises:
        DeviceError: The device is of another architecture, or lacks the runtime.
    """
    # In place of the target's own runtime, ONNX Runtime runs the graph on any processor; such numbers are a reference.
    is_stand_in = wanted == ONNX_RUNTIME != own_runtime(profile)
    if not transport.is_local and not is_stand_in:
        require_architecture(transport.address, probe, profile)
    runtime = wanted or best_runtime(profile, probe)
    require_runtime(transport.address, probe, runtime)
    return runtime


def require_runtime(address: str, probe: Probe, runtime: str) -> None:
    """Check that the device has a runtime, and numpy where Python runs it.

    Raises:
        DeviceError: One is missing, with how to install it, or was built for another processor.
    """
    if runtime == TRTEXEC and not probe.trtexec:
        raise faults.missing_runtime(address, TRTEXEC, "it is not found", _INSTALL[TENSORRT] + _INSTEAD)
    for name in () if runtime == TRTEXEC else ("numpy", runtime):
        require_module(address, probe, name)
    if runtime in (TENSORRT, TENSORRT_RTX) and not probe.cuda_runtime:
        fix = "Install CUDA's runtime library there (on a Jetson: apt-get install nvidia-jetpack)."
        reason = "libcudart is not found, and without it no buffers can be made on the GPU"
        raise faults.missing_runtime(address, "CUDA", reason, fix)


def require_module(address: str, probe: Probe, name: str) -> None:
    """Check that Python on the device has a module; without Python it has none.

    Raises:
        DeviceError: It has not, with how to install it, or it was built for another processor.
    """
    module = probe.modules.get(name)
    if module is not None and module.version:
        return
    reason = module.reason if module else "it was not looked for"
    if any(text in reason for text in _OTHER_ARCHITECTURE):
        raise faults.wrong_architecture(address, reason, f"{name} for {probe.architecture}")
    instead = _INSTEAD if name in (TENSORRT, TENSORRT_RTX) else ""
    raise faults.missing_runtime(address, name, reason, _INSTALL[name] + instead)


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


def tier_of(profile: Profile | None, probe: Probe, runtime: str, provider: str, *, is_local: bool) -> tuple[Tier, str]:
    """Return what numbers from this machine are worth, and why.

    `device` is only for the machine that the target's profile names, with the target's own runtime and provider. A
    target whose profile names none, or that has no profile, is for any machine of its architectures and systems: there
    a machine that the user reaches as a device is the device. Another machine of the same kind is a `proxy`.

    Args:
        profile: The target's device; None where it has none.
        probe: What the machine is.
        runtime: Module or program that ran the model.
        provider: Execution provider that ran it.
        is_local: Whether it is the machine that this process runs on.
    """
    if profile is None:
        return _unnamed(probe, is_local=is_local)
    others = [each for each in (_other_runtime(profile, runtime, provider), _other_kind(profile, probe)) if each]
    if others:
        return Tier.REFERENCE, "; ".join(others)
    words = profile.device.machines
    is_named = not words or any(_has_word(name, word) for name in probe.names for word in words)
    has_system = not profile.device.systems or probe.operating_system in profile.device.systems
    if is_named and has_system:
        return _unnamed(probe, is_local=is_local) if not words else (Tier.DEVICE, f"{probe.machine}, {_OWN}")
    reason = (
        f"{probe.machine} ({probe.operating_system}) is not the device of {profile.name}, {profile.device.processor}"
    )
    # Without a fact that both share, there is no knowing that they are of one kind.
    is_alike = bool(profile.device.compute_capability or (profile.device.architectures and not words))
    return Tier.PROXY if is_alike and not is_local and _tells_kind(profile, probe) else Tier.REFERENCE, reason


def unlisted_version(profile: Profile | None, probe: Probe, runtime: str, called: str = "") -> str:
    """Return a sentence where the device's version of its own runtime is none that the profile lists; else nothing.

    Args:
        profile: The target's device; None where it has none.
        probe: What the machine is.
        runtime: Module or program that runs the model.
        called: What a program calls itself, such as "trtexec of TensorRT 100300".
    """
    module = probe.modules.get(runtime)
    told = _trtexec_version(called) if runtime == TRTEXEC else module.version if module else ""
    own = TENSORRT if runtime == TRTEXEC else runtime
    if profile is None or own != own_runtime(profile):
        return ""
    ranges = [each.versions for each in profile.runtimes if _BY_PROFILE.get(each.name) == own]
    try:
        version = Version(told)
    except InvalidVersion:
        return ""
    if any(SpecifierSet(each).contains(version, prereleases=True) for each in ranges):
        return ""
    return (
        f"The device has {own} {version}, and {profile.name} is known with {' or '.join(ranges)}: "
        "its facts may not hold for this version."
    )


def _trtexec_version(called: str) -> str:
    """Return the version in the digits that trtexec prints: 8502 is 8.5.2, and from 10 on 100300 is 10.3.0."""
    found = _TRTEXEC_VERSION.search(called)
    number = int(found[1]) if found else 0
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}" if major else ""


def _unnamed(probe: Probe, *, is_local: bool) -> tuple[Tier, str]:
    if is_local:
        return Tier.REFERENCE, "the machine that compiles, with no device named"
    return Tier.DEVICE, f"{probe.machine}, {_OWN}"


def _other_runtime(profile: Profile, runtime: str, provider: str) -> str:
    """Return how what ran the model differs from what the target is made for; empty if it does not."""
    own = own_runtime(profile)
    if (TENSORRT if runtime == TRTEXEC else runtime) != own:
        return f"{runtime} is not the runtime of {profile.name} ({own or profile.runtimes[0].name})"
    wanted = {each.provider for each in profile.runtimes if each.provider}
    if wanted and provider not in wanted:
        return f"it ran in {provider}, and {profile.name} is for {' or '.join(sorted(wanted))}"
    return ""


def _other_kind(profile: Profile, probe: Probe) -> str:
    """Return why no machine of this kind can be the device; empty if one can."""
    device, capability = profile.device, probe.gpu.get("compute_capability", "")
    if device.architectures and probe.architecture not in device.architectures:
        return f"{probe.machine} is {probe.architecture}, and {profile.name} is {' or '.join(device.architectures)}"
    if device.compute_capability and capability and capability != device.compute_capability:
        return f"{probe.machine} has compute capability {capability}, and {profile.name} {device.compute_capability}"
    return ""


def _tells_kind(profile: Profile, probe: Probe) -> bool:
    """Return whether a GPU, where one is the device, says what it is."""
    return not profile.device.compute_capability or bool(probe.gpu.get("compute_capability"))


def _has_word(name: str, word: str) -> bool:
    """Return whether a name has a word or several: H200 is in NVIDIA H200, and not in GH200."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", name, re.IGNORECASE) is not None
