"""Converts `model.onnx` to the ORT format and compares the two on samples. Runs as a child process.

    python convert.py DIRECTORY --style Fixed --samples samples.npz

The converter of onnxruntime prints as it works and keeps every model that it loads, so it gets a process of its own.
Writes `model.ort` (style Fixed) or `model.with_runtime_opt.ort` (style Runtime), and the operators and types that a
reduced build needs as `.config`. The last line on standard output is JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

MODEL = "model.onnx"
NAMES = {"Fixed": "model.ort", "Runtime": "model.with_runtime_opt.ort"}
PLATFORM = "arm"


def convert(directory: Path, style: str) -> tuple[Path, Path]:
    """Return the new files of ORT format and of required operators, beside `model.onnx`."""
    known = set(directory.iterdir())
    convert_onnx_models_to_ort(
        directory / MODEL,
        output_dir=directory,
        optimization_styles=[OptimizationStyle[style]],
        target_platform=PLATFORM,
        enable_type_reduction=True,
    )
    (config,) = (path for path in directory.iterdir() if path.suffix == ".config" and path not in known)
    return directory / NAMES[style], config


def load(path: Path, style: str) -> Any:
    """Return a session as a phone would run it: without the layouts that x86 processors alone have."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if path.suffix == ".ort" and style == "Runtime":
        options.add_session_config_entry("session.enable_saved_runtime_optimizations", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )


def compare(directory: Path, converted: Path, style: str, samples: Path) -> dict[str, float]:
    """Return the relative error (L2) of each output of the converted file against `model.onnx`."""
    feed = dict(np.load(samples))
    expected_session, actual_session = load(directory / MODEL, style), load(converted, style)
    names = [output.name for output in expected_session.get_outputs()]
    expected, actual = expected_session.run(names, feed), actual_session.run(names, feed)
    return {name: distance(*pair) for name, *pair in zip(names, expected, actual, strict=True)}


def distance(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the relative error (L2) of an array against another; 0 for equal bits, whatever they mean."""
    if np.array_equal(expected, actual, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    wide, found = expected.astype(np.float64), actual.astype(np.float64)
    return float(np.linalg.norm(found - wide) / max(float(np.linalg.norm(wide)), 1e-30))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--style", choices=sorted(NAMES), required=True)
    parser.add_argument("--samples", type=Path)
    arguments = parser.parse_args()
    converted, config = convert(arguments.directory, arguments.style)
    facts: dict[str, object] = {"file": converted.name, "required_operators": config.name, "style": arguments.style}
    if arguments.samples is not None:
        facts["relative_errors"] = compare(arguments.directory, converted, arguments.style, arguments.samples)
    sys.stdout.write("\n" + json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
