"""Accuracy and processor time of the forms of gate-channels, and of other files beside them.

python measure.py model.onnx calibration.npz evaluation.npz [other.onnx ...]
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import edgesmith_ftwt
import numpy as np
import onnx_ir as ir
import onnxruntime
from rich.console import Console

from edgesmith import Model, Provenance, Task
from edgesmith.graph.cost import count_cost
from edgesmith.testing import isolated_registry, run_method
from edgesmith_calibration.sources import ArraySource

TURNS = 21
FORMS: dict[str, dict[str, Any]] = {
    f"{form}, mass {mass}": {"form": form, "mass": mass}
    for form, mass in (("masked", 0.98), ("gathered", 0.98), ("masked", 0.95), ("gathered", 0.95))
} | {f"static, mass {mass}": {"form": "static", "mass": mass} for mass in (0.98, 0.95)}


def session(file: Path) -> Any:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print one line for each file."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    source, calibration, evaluation, *others = map(Path, sys.argv[1:])
    model = Model(ir.load(source), Task(), Provenance(str(source), "onnx", source.stem))
    name = str(model.graph.inputs[0].name)
    data = ArraySource({name: np.load(calibration)[name]})
    registry = isolated_registry(edgesmith_ftwt)
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": source} | {other.stem: other for other in others}
        for form, options in FORMS.items():
            result = run_method(registry, "gate-channels", model, options, calibration=data)
            files[form] = Path(folder) / f"{len(files)}.onnx"
            ir.save(result.model.ir, files[form])
            console.print(form, *result.notes.remarks[:3], sep="\n  ")
        sessions = {form: session(file) for form, file in files.items()}
        with np.load(evaluation) as archive:
            inputs, labels = archive[name], archive["labels"]
        times = _times(sessions, {name: inputs[:1]})
        for form, each in sessions.items():
            tops = [each.run(None, {name: inputs[i : i + 1]})[0].argmax() for i in range(len(labels))]
            macs = count_cost(ir.load(files[form]), {"batch": 1}).macs
            ratio = median(a / b for a, b in zip(times[form], times["dense"], strict=True))
            console.print(
                f"{form}: {100 * np.mean(tops == labels):.1f} %, {macs / 1e6:.0f} M MACs, {ratio:.2f} of the time"
            )


def _times(sessions: dict[str, Any], feed: dict[str, Any]) -> dict[str, list[float]]:
    """Return processor times in seconds, in turns."""
    times: dict[str, list[float]] = {form: [] for form in sessions}
    for turn in range(TURNS + 2):
        for form, each in sessions.items():
            started = time.process_time()
            each.run(None, feed)
            if turn > 1:
                times[form].append(time.process_time() - started)
    return times


if __name__ == "__main__":
    main()
