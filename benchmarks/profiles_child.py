"""Compiles one model for one target in a fresh process: `python -m benchmarks.profiles_child`, asked on stdin."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import THREADS, answer_parent, peak_bytes

COMPILERS = ("tensorrt", "Qualcomm's simulator", "No NVIDIA compiler", "No simulator")
"""How remarks begin that say what a compiler of the device made of the graph."""


def child_compile(request: Mapping[str, Any]) -> dict[str, Any]:
    """Compile into the folder that the request names, and return what the artifact holds, or the refusal."""
    folder = Path(request["folder"])
    # Engines of TensorRT are cached in the store as well, and what is written on the way goes there too.
    os.environ["EDGESMITH_STORE"], os.environ["TMPDIR"] = str(folder / "store"), str(folder)
    return compile_in(folder, request) | {"peak_bytes": peak_bytes()}


def compile_in(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Compile into `folder`, check the artifact with its own validator, and return the facts."""
    import edgesmith
    from edgesmith.api import Settings
    from edgesmith.measure.runner import LatencyPlan

    plan = LatencyPlan(warmup_runs=1, runs_per_visit=1, min_rounds=1, max_rounds=1)
    settings = Settings(threads=THREADS, latency_plan=plan)
    try:
        artifact = edgesmith.compile(
            request["model"],
            out=folder / "artifact",
            target=request["target"],
            recipe=request["recipe"],
            data=open_samples(request),
            settings=settings,
        )
    except edgesmith.EdgesmithError as error:
        return {"status": "refused", "error": f"{error.what} Fix: {error.fix}"}
    ledger, manifest = artifact.ledger, json.loads((artifact.directory / "manifest.json").read_text())
    lowered = ledger.rows[-1]
    return {
        "status": "artifact",
        "bytes": sum(entry["size_bytes"] for entry in manifest["files"].values()),
        "files": sorted(name for name in manifest["files"]),
        "metric": {"name": ledger.metric} | lowered.metric.model_dump(mode="json") if lowered.metric else None,
        "sqnr_db": next((error.sqnr_db for error in lowered.errors if error.against == "source"), None),
        "gate": " ".join(remark for remark in lowered.remarks if remark.startswith(COMPILERS)),
        "remarks": {row.stage: list(row.remarks) for row in ledger.rows},
        "build": manifest["build"],
        "versions": dict(ledger.versions),
        "validator": run_validator(artifact.directory),
    }


def open_samples(request: Mapping[str, Any]) -> Any:
    """Return a few samples to calibrate with and a few others to evaluate on, passages cut short."""
    from edgesmith.data import RunData
    from edgesmith_calibration.sources import ArraySource

    sources = {}
    for part, path in request["data"].items():
        with np.load(path) as archive:
            arrays = {name: archive[name][: request["samples"][part]] for name in archive.files}
        labels = arrays.pop("labels", None)
        if labels is None:
            arrays = {
                name: array[:, : request["tokens"]] if array.ndim == 2 else array for name, array in arrays.items()
            }
        sources[part] = ArraySource(arrays, labels=labels)
    return RunData(**sources)


def run_validator(directory: Path) -> dict[str, Any]:
    """Return what the artifact's own validator says."""
    done = subprocess.run(
        [sys.executable, "validate.py"], cwd=directory, capture_output=True, text=True, check=False, timeout=300
    )
    return json.loads(done.stdout) if done.returncode in (0, 1) else {"passed": False, "errors": done.stderr[-500:]}


if __name__ == "__main__":
    answer_parent({"compile": child_compile})
