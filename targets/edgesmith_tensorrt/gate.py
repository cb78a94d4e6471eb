"""Asks NVIDIA's own compiler, where one is installed, whether it takes a graph for a device.

The compiler runs in a child process, since a runtime without a driver may end its process. TensorRT for RTX builds
ahead of time without any GPU. For RTX cards that is the product; for other devices it stands in as a proxy, with the
nearest compute capability that it knows, and says nothing about speed or about kernels that are really chosen.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.profile import Profile
from edgesmith_tensorrt import engine

COMPILERS = ("tensorrt_rtx", "tensorrt_rtx_bindings")
KNOWN = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 builds for."""
PROXIES: Mapping[str, str] = {"8.7": "8.6", "9.0": "8.9", "10.0": "12.0", "11.0": "12.0"}
"""Device to the nearest capability with the same number formats."""

_TIMEOUT_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the compiler said."""

    status: str
    """built, rejected, or missing where no compiler could be asked."""
    compiler: str = ""
    """Its name and version."""
    compute_capability: str = ""
    proxy: bool = True
    """Whether the answer is about another device than the one asked for."""
    layers: int = 0
    message: str = ""
    nodes: tuple[str, ...] = ()

    def remark(self) -> str:
        """Return one sentence for the report."""
        if self.status == "missing":
            return f"No NVIDIA compiler was asked ({self.message}); only documented rules were checked."
        about = "as a proxy, which is no validation" if self.proxy else "which is what this card runs"
        outcome = f"parsed and built {self.layers} layers" if self.status == "built" else f"rejected: {self.message}"
        return f"{self.compiler} for compute capability {self.compute_capability}, {about}: {outcome}."


def ask_compiler(directory: Path, profile: Profile) -> GateResult:
    """Return whether the graph and recipe in `directory` parse and build for the device of `profile`.

    Args:
        directory: Holds `build.json` and what it names.
        profile: The device.
    """
    wanted = profile.device.compute_capability or ""
    capability = wanted if wanted in KNOWN else PROXIES.get(wanted, "")
    if not capability:
        return GateResult("missing", message=f"none builds for compute capability {wanted or 'unknown'} here")
    if not any(importlib.util.find_spec(name) for name in COMPILERS):
        return GateResult("missing", message="install the extra edgesmith[tensorrt-rtx] for TensorRT for RTX")
    command = [sys.executable, engine.__file__, "--recipe", str(directory / "build.json"), "--check"]
    command += ["--compute-capability", capability]
    for name in COMPILERS:
        command += ["--module", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return GateResult("missing", message=f"the compiler did not answer within {_TIMEOUT_SECONDS} s")
    return _result(done, capability, proxy=capability != wanted)


def _result(done: "subprocess.CompletedProcess[str]", capability: str, *, proxy: bool) -> GateResult:
    try:
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        ending = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return GateResult("missing", message=f"the compiler ended without an answer: {ending[0]}")
    errors = facts.get("errors", [])
    message = "; ".join(str(error.get("message", "")) for error in errors[:2])
    if facts["status"] == "missing":
        return GateResult("missing", message=message)
    nodes = tuple(error["node"] or error["operator"] for error in errors if error.get("node") or error.get("operator"))
    compiler = f"{facts['module'].removesuffix('_bindings')} {facts['version']}"
    return GateResult(facts["status"], compiler, capability, proxy, facts.get("layers", 0), message, nodes)
