"""The machine that numbers were taken on, as far as it can be read without privileges."""

import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")

_FEATURES = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""Instruction sets that decide how fast integer and half-precision kernels are."""

_LIBRARIES = (
    "edgesmith",
    "onnxruntime",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
)


def describe_machine() -> dict[str, str | int]:
    """Return what decides speed on this machine: processor, cores, instruction sets, memory, system, load.

    Facts that the system does not reveal are left out, never guessed.
    """
    import psutil

    facts: dict[str, str | int] = {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or 0,
        "logical_cores": psutil.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "features": " ".join(processor_features()),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "",
        "governor": _read(_GOVERNOR),
    }
    return {name: fact for name, fact in facts.items() if fact}


def library_versions(names: Sequence[str] = _LIBRARIES) -> dict[str, str]:
    """Return the version of each distribution in `names` that is installed, without importing it."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Return how many logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def processor_name() -> str:
    """Return the marketing name of the processor, or its architecture where the name is not readable."""
    facts = _cpu_info()
    board = _read(_BOARD).rstrip("\0")
    return facts.get("model name") or board or facts.get("hardware") or platform.processor() or platform.machine()


@cache
def processor_features() -> tuple[str, ...]:
    """Return the instruction sets of the processor that matter for inference."""
    facts = _cpu_info()
    present = set((facts.get("flags") or facts.get("features") or "").split())
    return tuple(name for name in _FEATURES if name in present)


def _cpu_info() -> dict[str, str]:
    """Return the facts about the first core, by lower-case key."""
    facts: dict[str, str] = {}
    for line in _read(_CPU_INFO).splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), " ".join(value.split()))
    return facts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
