"""Asks NVIDIA's own compiler, where one is installed, whether it takes a graph for a device, and lets it build.

The compiler runs in a child process, since a runtime without a driver may end its process. TensorRT for RTX builds
ahead of time without any GPU. For RTX cards that is the product; for other devices it stands in as a proxy, with the
nearest compute capability that it knows, and says nothing about speed or about kernels that are really chosen.
TensorRT itself is asked where it is installed on a machine whose GPU is of the device's kind.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.profile import Profile
from edgesmith.store import default_store_directory
from edgesmith_tensorrt import engine
from edgesmith_tensorrt.build_recipe import MODULES, modules_of

COMPILERS = MODULES["TensorRT-RTX"]
KNOWN = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 builds for."""
PROXIES: Mapping[str, str] = {"8.7": "8.6", "9.0": "8.9", "10.0": "12.0", "11.0": "12.0"}
"""Device to the nearest capability with the same number formats."""

_TIMEOUT_SECONDS = 1800
_SECONDS_FOR_THE_DRIVER = 20
_LARGEST_CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Compiler:
    """A way to build an engine on this machine."""

    modules: tuple[str, ...]
    """Python modules with TensorRT's interface, best first."""
    compute_capability: str
    """What to build for."""
    is_proxy: bool
    """Whether that is another device than the one asked for."""
    for_this_gpu: bool = False
    """Whether it builds for the GPU of this machine, which needs no further word."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the compiler said."""

    status: str
    """built, rejected, or missing where no compiler could be asked."""
    compiler: str = ""
    """Its name and version."""
    compute_capability: str = ""
    is_proxy: bool = True
    """Whether the answer is about another device than the one asked for."""
    layers: int = 0
    message: str = ""
    nodes: tuple[str, ...] = ()

    def remark(self) -> str:
        """Return one sentence for the report."""
        if self.status == "missing":
            return f"No NVIDIA compiler was asked ({self.message}); only documented rules were checked."
        about = "as a proxy, which is no validation" if self.is_proxy else "which is what this card runs"
        outcome = f"parsed and built {self.layers} layers" if self.status == "built" else f"rejected: {self.message}"
        return f"{self.compiler} for compute capability {self.compute_capability}, {about}: {outcome}."


def choose_compiler(profile: Profile) -> Compiler | str:
    """Return what can build for the device of `profile` here, or why nothing can.

    The runtime of the profile itself is preferred; without it, TensorRT for RTX stands in.
    """
    wanted = profile.device.compute_capability or ""
    own = modules_of(profile)
    if "tensorrt" in own and _is_installed("tensorrt") and wanted in local_capabilities():
        return Compiler(("tensorrt",), wanted, is_proxy=False, for_this_gpu=True)
    capability = wanted if wanted in KNOWN else PROXIES.get(wanted, "")
    if not capability:
        return f"none builds for compute capability {wanted or 'unknown'} here"
    if not any(map(_is_installed, COMPILERS)):
        return "install the extra edgesmith[tensorrt-rtx] for TensorRT for RTX"
    return Compiler(COMPILERS, capability, is_proxy=capability != wanted or not set(own) & set(COMPILERS))


def local_capabilities() -> frozenset[str]:
    """Return the compute capabilities of the GPUs of this machine, as the driver's own tool lists them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return frozenset()
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_FOR_THE_DRIVER, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(line.strip() for line in done.stdout.splitlines()) if done.returncode == 0 else frozenset()


def ask_compiler(directory: Path, profile: Profile) -> GateResult:
    """Return whether the graph and recipe in `directory` parse and build for the device of `profile`.

    An engine that the device itself could run is kept in the cache of engines; nothing is written to `directory`.

    Args:
        directory: Holds `build.json` and what it names.
        profile: The device.
    """
    compiler = choose_compiler(profile)
    if isinstance(compiler, str):
        return GateResult("missing", message=compiler)
    facts, fault = _run(directory, compiler, "--check") if compiler.is_proxy else _build(directory, compiler)
    return _result(facts, fault, compiler)


def build_here(directory: Path, profile: Profile) -> dict[str, Any]:
    """Build `engine.plan` in `directory` where this machine can build what the device runs, or take it from the cache.

    Returns:
        Facts about the engine; empty where it must be built on the device.
    """
    compiler = choose_compiler(profile)
    if isinstance(compiler, str) or compiler.is_proxy:
        return {}
    facts, _ = _build(directory, compiler)
    # Whoever compiles sees the engine; the timing cache serves this machine only and is no part of an artifact.
    return {name: fact for name, fact in facts.items() if name != "errors"} if facts.get("status") != "missing" else {}


def engine_cache() -> Path:
    """Return the directory in which engines are kept."""
    return default_store_directory() / "engines"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _build(directory: Path, compiler: Compiler) -> tuple[dict[str, Any], str]:
    cache = engine_cache()
    answer = _run(directory, compiler, "--cache", str(cache))
    _trim(cache, _LARGEST_CACHE_BYTES)
    return answer


def _run(directory: Path, compiler: Compiler, *words: str) -> tuple[dict[str, Any], str]:
    """Return what `engine.py` answers, or nothing and the reason why it did not."""
    command = [sys.executable, engine.__file__, "--recipe", str(directory / "build.json"), *words]
    command += [] if compiler.for_this_gpu else ["--compute-capability", compiler.compute_capability]
    for name in compiler.modules:
        command += ["--module", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"the compiler did not answer within {_TIMEOUT_SECONDS} s"
    try:
        return dict(json.loads(done.stdout.splitlines()[-1])), ""
    except (IndexError, ValueError, TypeError):
        ending = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {}, f"the compiler ended without an answer: {ending[0]}"


def _result(facts: dict[str, Any], fault: str, compiler: Compiler) -> GateResult:
    errors = facts.get("errors", [])
    message = fault or "; ".join(str(error.get("message", "")) for error in errors[:2])
    if not facts or facts["status"] == "missing":
        return GateResult("missing", message=message)
    nodes = tuple(error["node"] or error["operator"] for error in errors if error.get("node") or error.get("operator"))
    name = f"{facts['module'].removesuffix('_bindings')} {facts['version']}"
    status = "rejected" if facts["status"] == "rejected" else "built"
    return GateResult(
        status, name, compiler.compute_capability, compiler.is_proxy, facts.get("layers", 0), message, nodes
    )


def _trim(cache: Path, most_bytes: int) -> None:
    """Remove the engines that were made first until the others fit."""
    entries = [path for path in cache.glob("*") if (path / engine.ENGINE).is_file()]
    entries.sort(key=lambda path: (path / engine.ENGINE).stat().st_mtime, reverse=True)
    total = 0
    for entry in entries:
        total += (entry / engine.ENGINE).stat().st_size
        if total > most_bytes and entry != entries[0]:
            shutil.rmtree(entry, ignore_errors=True)
