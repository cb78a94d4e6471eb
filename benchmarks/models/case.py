"""What a case is, where it is kept, and how packages that carry models and data are found."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

CASES = Path("build/bench/cases")
INSTALL = "pip install --no-deps --requirement benchmarks/requirements.txt"

Metric = Literal["accuracy", "features", "perplexity"]


@dataclass(frozen=True)
class Case:
    """A float model with data. The .npz files hold one array per graph input, and `labels` where the metric needs them.

    Metrics: accuracy of the first output's classes, distance of the first output from the float model's ("features"),
    or perplexity of the next token.
    """

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    metric: Metric = "accuracy"


class MissingDataError(Exception):
    """A case cannot be prepared; the message says what to install or set."""


def case_of(name: str, metric: Metric = "accuracy") -> Case:
    """Return the case with its paths; `write` fills them."""
    folder = CASES / name
    return Case(name, folder / "float.onnx", folder / "calibration.npz", folder / "evaluation.npz", metric)


def write(case: Case, model: ir.Model, arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """Write model and arrays, all or nothing: a killed run leaves no half case."""
    partial = case.model.parent.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ir.save(model, partial / case.model.name)
    for part, content in arrays.items():
        np.savez(partial / f"{part}.npz", **content)
    shutil.rmtree(case.model.parent, ignore_errors=True)
    partial.rename(case.model.parent)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        MissingDataError: It is not installed.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(f"The package {package} is not installed. Run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(package: str, pattern: str) -> Path:
    """Return the first file of an installed package that matches `pattern`."""
    found = sorted(package_folder(package).rglob(pattern))
    if not found:
        raise MissingDataError(f"The package {package} holds no file {pattern}. Run: {INSTALL}")
    return found[0]
