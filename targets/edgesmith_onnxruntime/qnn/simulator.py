"""Runs a graph in Qualcomm's simulator of the tensor processor, where onnxruntime-qnn is installed.

The runtime gets a child process, since native code may end its process. What it computes has the tier `simulated`:
the arithmetic of the tensor processor on this machine, nothing about time, power or a chip that was really asked.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgesmith.child_answer import ask_child
from edgesmith.errors import ModelError
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith.profile import Hexagon
from edgesmith_onnxruntime.qnn import context as context_script

PACKAGE = "onnxruntime_qnn"
PREFERRED = "v75"
"""Architecture that samples run on, where the profile has it: of the middle of those that ship."""

_MOST_SAMPLES = 8
_LONGEST_SIMULATION_SECONDS = 300
_LONGEST_BUILD_SECONDS = 1800
_INSTALL = "install the extra edgesmith[qnn] for Qualcomm's simulator and context binaries"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the simulator said."""

    status: str
    """simulated, rejected, or missing where it could not be asked."""
    message: str = ""
    architecture: str = ""
    version: str = ""
    parts: int = 0
    """Parts of the graph on the tensor processor; values cross to the processor between them."""
    outside: dict[str, int] = field(default_factory=dict)
    """Operators that stay on the processor, with how many."""
    errors: tuple[float, ...] = ()
    """Largest relative error (L2) of an output against ONNX Runtime on this processor, of each sample."""

    def remark(self) -> str:
        """Return one sentence for the report."""
        if self.status != "simulated":
            return f"No simulator answered ({self.message}); only documented rules were checked."
        outside = ", ".join(f"{count} {operator}" for operator, count in sorted(self.outside.items()))
        where = f"{self.parts} part{'s' if self.parts != 1 else ''} on the tensor processor"
        where += f", on the processor {outside}" if outside else ", nothing on the processor"
        return (
            f"Qualcomm's simulator (onnxruntime-qnn {self.version}, {self.architecture}, tier simulated): {where}; "
            f"outputs of {len(self.errors)} samples differ from ONNX Runtime on this machine by "
            f"{median(self.errors):.1e} (median, relative L2), {max(self.errors):.1e} at most."
        )


def run(folder: Path, model: Model, hexagon: Hexagon, context: Context[None]) -> Answer:
    """Return what the simulator says of the graph and recipe in `folder`, on a few samples.

    Args:
        folder: Holds `build.json` and what it names; samples and outputs are written there too.
        model: The graph.
        hexagon: The architectures of the device.
        context: Calibration data, of which the first samples run; random inputs otherwise.
    """
    recipe = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    names = [each["name"] for each in recipe["architectures"]]
    if not names:
        listed = ", ".join(each.name for each in hexagon.architectures)
        return Answer("rejected", "the graph is in float, which needs float16 arithmetic", listed)
    obstacle = "" if importlib.util.find_spec(PACKAGE) else _INSTALL
    obstacle = obstacle or obstacle_to_running(model.ir)
    inputs = [] if obstacle else _samples(model, context)
    if not inputs:
        return Answer("missing", obstacle or "the graph runs on no made-up inputs")
    architecture = PREFERRED if PREFERRED in names else names[0]
    samples, outputs = folder / "samples.npz", folder / "outputs.npz"
    with samples.open("wb") as stream:
        np.savez(stream, **{name: np.stack([each[name] for each in inputs]) for name in inputs[0]})  # type: ignore[arg-type]
    words = ("--check", "--architecture", architecture, "--samples", str(samples), "--outputs", str(outputs))
    facts = _ask(folder, *words, longest_seconds=_LONGEST_SIMULATION_SECONDS)
    versions = facts.get("versions", {})
    if facts["status"] != "simulated":
        return Answer(facts["status"], facts.get("message", ""), architecture, versions.get(PACKAGE, ""))
    session = ReferenceSession(model.ir, threads=context.threads)
    with np.load(outputs) as found:
        actual = [{name: found[name][index] for name in found.files} for index in range(facts["runs"])]
    errors = []
    for sample, outcome in zip(inputs, actual, strict=False):
        expected = session.run(sample)
        errors.append(max(_distance(array, outcome[name]) for name, array in expected.items()))
    return Answer(
        "simulated",
        architecture=architecture,
        version=versions.get(PACKAGE, ""),
        parts=facts["parts"],
        outside=facts["outside"],
        errors=tuple(errors),
    )


def build_contexts(folder: Path) -> object:
    """Write a context binary for each architecture of `build.json` in `folder`; return facts, or why there are none."""
    if not importlib.util.find_spec(PACKAGE):
        return _INSTALL
    facts = _ask(folder)
    return facts.get("contexts") or facts.get("message", facts["status"])


def _ask(folder: Path, *words: str, longest_seconds: float = _LONGEST_BUILD_SECONDS) -> Mapping[str, Any]:
    recipe = ("--recipe", str(folder / "build.json"))
    answer = ask_child(context_script.__file__, (*recipe, *words), longest_seconds=longest_seconds)
    return answer.facts or {"status": "missing", "message": answer.problem}


def _samples(model: Model, context: Context[None]) -> list[dict[str, np.ndarray]]:
    names = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    if context.calibration is not None and len(context.calibration):
        batches = islice(context.calibration.batches(1), _MOST_SAMPLES)
        return [{name: batch.inputs[name] for name in names} for batch in batches]
    try:
        return [runnable_inputs(model.ir)]
    except ModelError:
        return []


def _distance(expected: np.ndarray, actual: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    error = float(np.linalg.norm(actual.astype(np.float64) - wide)) / max(float(np.linalg.norm(wide)), 1e-30)
    return error if np.isfinite(error) else float("inf")
