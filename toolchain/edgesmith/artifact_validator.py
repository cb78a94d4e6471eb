"""Check this artifact where it is: files against their hashes, outputs against those seen when it was compiled.

Stands alone: needs Python, numpy and onnxruntime, and nothing of Edgesmith.

    python validate.py
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 0.05
"""Largest accepted relative error. Integer kernels of other processors round differently, by about one step."""

NOT_CHECKED = (
    "The graph is for another runtime. ONNX Runtime on a CPU computes float16 in float32 without its rounding, as for "
    "the recorded outputs, so equal outputs show whole files and nothing about numbers on the device; "
    "`edgesmith validate ARTIFACT --on DEVICE` compares those."
)


def main() -> int:
    """Print a JSON result and return 0 if everything holds."""
    import onnxruntime

    here = Path(__file__).resolve().parent
    manifest = json.loads((here / "manifest.json").read_text())
    # An engine may have been built anew here; the record beside it has the hash.
    known = {name: facts["sha256"] for name, facts in manifest["files"].items() if "sha256" in facts}
    damaged = [name for name, expected in (known | _engine(here)).items() if _hash(here / name) != expected]
    errors = _compare(here, manifest) if (here / "samples.npz").is_file() else {}
    passed = not damaged and all(error <= TOLERANCE for error in errors.values())
    result: dict[str, Any] = {
        "passed": passed,
        "damaged_files": damaged,
        "relative_errors": errors,
        "tolerance": TOLERANCE,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
    }
    if _is_for_another_runtime(manifest):
        result["not_checked"] = NOT_CHECKED
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0 if passed else 1


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _engine(here: Path) -> dict[str, str]:
    """Return the engine's hash as its record has it; nothing where none is recorded."""
    try:
        return {"engine.plan": str(json.loads((here / "engine.json").read_text())["sha256"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        return {"engine.json": "unreadable"}


def _compare(here: Path, manifest: dict[str, Any]) -> dict[str, float]:
    """Return the relative error of each output against the one recorded; values that are not finite must be equal.

    A graph for another runtime runs as it is written. At its higher levels ONNX Runtime does not load some products in
    float8, and loses biases beside scales in float16.
    """
    import numpy as np
    import onnxruntime

    samples = np.load(here / "samples.npz", allow_pickle=False)
    inputs = {name.removeprefix("input/"): samples[name] for name in samples if name.startswith("input/")}
    options, disabled = onnxruntime.SessionOptions(), []
    if _is_for_another_runtime(manifest):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        disabled = ["WeightBiasQuantization"]
    session = onnxruntime.InferenceSession(
        str(here / manifest["entry"]), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    names = [output.name for output in session.get_outputs()]
    errors = {}
    for name, found in zip(names, session.run(names, inputs), strict=True):
        expected, actual = samples[f"output/{name}"].astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(expected)
        if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
            errors[name] = sys.float_info.max
            continue
        scale = float(np.linalg.norm(expected[finite])) or 1.0
        errors[name] = float(np.linalg.norm(actual[finite] - expected[finite])) / scale
    return errors


def _is_for_another_runtime(manifest: dict[str, Any]) -> bool:
    return bool(manifest["build"].get("runtime") != "onnxruntime")


if __name__ == "__main__":
    sys.exit(main())
