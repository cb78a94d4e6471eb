"""What the machine is and does: processor, tools of its maker, power, temperatures and clocks."""

import ctypes
import ctypes.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .archive import Facts

MODULES = ("numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "mlperf_loadgen")
CUDA_RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so")
TOOL_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/cuda/bin", "/usr/src/tensorrt/bin")
GPU_LIMITS = (
    "power.limit",
    "mig.mode.current",
    "clocks.max.graphics",
    "clocks.max.memory",
    "clocks.applications.graphics",
    "clocks.applications.memory",
)
"""Settings that stay as they are while a model runs."""
CLOCKS_FILE = "clocks.store"
"""Where the clocks of before are kept while they are locked."""
SECONDS_PER_TOOL = 20
SECONDS_TO_COOL = 600


def probe() -> Facts:
    """Return what the machine is, which runtimes it has, and its present state."""
    return {
        "architecture": platform.machine(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "board": read_text("/proc/device-tree/model").rstrip("\0"),
        "cpu_info": read_text("/proc/cpuinfo")[:4000],
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "jetson_release": read_text("/etc/nv_tegra_release"),
        "jetpack": _tool("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack"),
        "driver": read_text("/proc/driver/nvidia/version"),
        "gpus": _tool(
            "nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"
        ),
        "android": _tool("getprop", "ro.product.model"),
        "chip": _tool("getprop", "ro.soc.model"),
        "cuda_runtime": cuda_library() is not None,
        "trtexec": which("trtexec") or "",
        "modules": {name: _version(name) for name in MODULES},
        "state": state(),
    }


def state() -> Facts:
    """Return what changes from minute to minute: power mode, clocks, temperatures, memory."""
    memory = dict(line.split(":", 1) for line in read_text("/proc/meminfo").splitlines() if ":" in line)
    return {
        "power_mode": _tool("nvpmodel", "-q"),
        "clocks": _clocks(),
        "gpu_limits": _tool("nvidia-smi", "--query-gpu=" + ",".join(GPU_LIMITS), "--format=csv,noheader"),
        "temperatures_celsius": _temperatures(),
        "memory_kib": {name: int(memory[name].split()[0]) for name in ("MemTotal", "MemAvailable") if name in memory},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "boot_id": read_text("/proc/sys/kernel/random/boot_id"),
    }


def waited_seconds() -> float:
    """Return how long this thread could have run but had no processor, as Linux counts it; 0 where nobody does."""
    words = read_text("/proc/thread-self/schedstat").split()
    return int(words[1]) / 1e9 if len(words) > 1 and words[1].isdigit() else 0.0


def _clocks() -> list[list[Any]]:
    """Return lowest, highest and present frequency of each processor policy and device, as the kernel shows them."""
    shown = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpufreq").glob("policy*")):
        shown.append([folder.name, *(read_text(folder / f"scaling_{name}_freq") for name in ("min", "max", "cur"))])
    for folder in sorted(Path("/sys/class/devfreq").glob("*")):
        shown.append([folder.name, *(read_text(folder / f"{name}_freq") for name in ("min", "max", "cur"))])
    return [[name, *map(int, numbers)] for name, *numbers in shown if all(number.isdigit() for number in numbers)]


def _temperatures() -> dict[str, float]:
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        degrees = read_text(zone / "temp")
        if degrees.lstrip("-").isdigit():
            found[zone.name + " " + read_text(zone / "type")] = int(degrees) / 1000
    return found


def read_text(path: str | Path) -> str:
    """Return the text of a file; nothing where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def which(name: str) -> str | None:
    """Return where a program is, also in the folders in which makers of boards put theirs."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *TOOL_FOLDERS]))


def _tool(name: str, *arguments: str) -> str:
    """Return what a tool of the device prints; nothing where it is missing or fails."""
    program = which(name)
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=SECONDS_PER_TOOL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def die_with_parent() -> None:
    """Have the kernel end this process when the worker ends, however that happens."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        set_signal_of_parents_death = 1
        library.prctl(set_signal_of_parents_death, int(signal.SIGKILL))


def _version(module: str) -> dict[str, str]:
    """Return version and reason of absence of a module. Asked in a child: some end the process without a driver."""
    code = "import sys, importlib; print(getattr(importlib.import_module(sys.argv[1]), '__version__', 'installed'))"
    try:
        done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"version": "", "reason": str(error)}
    if done.returncode == 0:
        return {"version": done.stdout.decode().strip().splitlines()[-1], "reason": ""}
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return {"version": "", "reason": lines[-1] if lines else f"the import ended with code {done.returncode}"}


def cuda_library() -> Any:
    """Return CUDA's runtime library; None where there is none."""
    for name in (*CUDA_RUNTIMES, ctypes.util.find_library("cudart") or "libcudart.dylib"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def cool_down(limit_celsius: float) -> float:
    """Wait until every zone is below the limit; return the seconds that it took."""
    started = time.monotonic()
    while max(_temperatures().values(), default=0.0) > limit_celsius:
        if time.monotonic() - started > SECONDS_TO_COOL:
            raise RuntimeError(f"the device did not cool below {limit_celsius} C in {SECONDS_TO_COOL} s")
        time.sleep(2)
    return time.monotonic() - started


@contextmanager
def power_log(path: Path) -> Iterator[None]:
    """Let tegrastats, where there is one, write to `path` while the block runs."""
    program = which("tegrastats")
    if program is None:
        yield
        return
    with path.open("wb") as log:
        process = subprocess.Popen(
            [program, "--interval", "100"], stdout=log, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def locked_clocks(folder: Path) -> Iterator[str]:
    """Lock the clocks at their highest while the block runs, with the board's own `jetson_clocks`.

    Yields:
        Why it could not be done; nothing where it was.
    """
    store = folder / CLOCKS_FILE
    problem = _lock_clocks(store)
    try:
        yield problem
    finally:
        _restore_clocks(store)


def _lock_clocks(store: Path) -> str:
    program = which("jetson_clocks")
    if program is None:
        return "there is no jetson_clocks"
    # Clocks of before are kept once: a second time they may be locked already.
    steps: list[list[str]] = [[]] if store.is_file() else [["--store", str(store)], []]
    for words in steps:
        done = subprocess.run([*_as_root(), program, *words], capture_output=True, timeout=120, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"jetson_clocks ended with code {done.returncode}"
    return ""


def _restore_clocks(store: Path) -> None:
    """Put clocks back as they were. Where that fails the file stays, by which it is tried again and told of."""
    program = which("jetson_clocks")
    if program is None or not store.is_file():
        return
    command = [*_as_root(), program, "--restore", str(store)]
    if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
        store.unlink(missing_ok=True)


def _as_root() -> list[str]:
    """Return the words before a command that only root may run. Nobody is asked for a password."""
    return [] if os.geteuid() == 0 else ["sudo", "-n"]
