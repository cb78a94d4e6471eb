"""Peak resident memory, measured in a fresh process that does nothing but load and run the model."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import MeasurementError
from edgesmith.measure.runner import MemoryPlan

if TYPE_CHECKING:
    import numpy as np

_CHILD = (sys.executable, "-P", "-m", "edgesmith.measure.child")


@dataclass(frozen=True, slots=True)
class ChildMemory:
    """What one child reported, in bytes."""

    peak_bytes: int
    resident_bytes: int
    baseline_bytes: int
    modules: tuple[str, ...] = ()
    """Top-level modules that the child had imported."""


def measure_in_child(
    entry: Path,
    inputs: "Mapping[str, np.ndarray]",
    plan: MemoryPlan,
    *,
    threads: int,
    provider: str,
    command: tuple[str, ...] = _CHILD,
) -> ChildMemory:
    """Load and run `entry` once in a fresh process and return its memory.

    Raises:
        MeasurementError: The child failed, was stopped by a signal, or exceeded `plan.timeout_seconds`.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgesmith-memory-") as scratch:
        archive = Path(scratch) / "inputs.npz"
        # By position: an input may be called `file`, as is a parameter of savez, or hold what no file name can.
        # Texts, which numpy would pickle as objects, have a type of their own, which ONNX Runtime takes too.
        np.savez(archive, *(array.astype(np.str_) if array.dtype.kind == "O" else array for array in inputs.values()))
        request = {
            "model": str(entry.resolve()),
            "inputs": str(archive),
            "names": list(inputs),
            "threads": threads,
            "runs": plan.runs,
            "provider": provider,
        }
        try:
            finished = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=plan.timeout_seconds,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failure(entry, f"took longer than {plan.timeout_seconds:g} s and was stopped") from error
    return _read_reply(entry, finished)


def _read_reply(entry: Path, finished: "subprocess.CompletedProcess[str]") -> ChildMemory:
    if finished.returncode < 0:
        name = signal.Signals(-finished.returncode).name
        hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
        raise _failure(entry, f"was stopped by {name}{hint}")
    lines = finished.stderr.strip().splitlines()
    if finished.returncode != 0:
        raise _failure(entry, f"ended with code {finished.returncode}: {lines[-1] if lines else 'no message'}")
    try:
        reply = json.loads(finished.stdout)
        return ChildMemory(
            peak_bytes=reply["peak_bytes"],
            resident_bytes=reply["resident_bytes"],
            baseline_bytes=reply["baseline_bytes"],
            modules=tuple(reply["modules"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _failure(entry, f"answered {finished.stdout[:80]!r} instead of its memory") from error


def _failure(entry: Path, what: str) -> MeasurementError:
    return MeasurementError(
        f"the process measuring the memory of {entry} {what}",
        expected="a process that loads the model, runs it and reports its peak memory",
        why="memory is not estimated when it cannot be measured",
        fix="check that the machine has room for the model and its inputs, or measure a smaller batch",
    )
