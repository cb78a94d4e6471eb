"""Sparse weights: error and held-out quality of each criterion at half of the weights, anywhere and 2:4.

Magnitude, Wanda and SparseGPT are as published: no adaptation, no refit. "adaptive" is the method with its defaults,
"randomized" takes the best of four sampled masks, and "refit" fits what they leave. All run on the same samples: for
each seed another random three quarters of the case's calibration samples. Errors of layers and quality are those on
data that nothing was calibrated on: the squared error of each layer's output in the pruned network against the dense
one, relative to the outputs' squares, on average over the layers.

Run `python -m benchmarks.sparsity`, with `--case`, `--seeds` and `--only` for parts; results also go to
build/bench/sparsity.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import call_child
from benchmarks.models.case import Case, MissingDataError
from benchmarks.models.minilm import minilm_r8
from benchmarks.models.smollm2 import smollm2

OUT = Path("build/bench/sparsity.json")
CASES = {"minilm_r8": minilm_r8, "smollm2": smollm2}
SEEDS = {"minilm_r8": 3, "smollm2": 1}
PUBLISHED = {"refit": False, "adaptive_weight": False}
ROWS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude", **PUBLISHED},
    "Wanda": {"criterion": "wanda", **PUBLISHED},
    "SparseGPT": {"criterion": "sparsegpt", **PUBLISHED},
    "SparseGPT, refit": {"criterion": "sparsegpt"},
    "adaptive": {},
    "adaptive, Hessian only": {"adaptive_weight": False},
    "adaptive, weights only": {"adaptive_hessian": False},
    "randomized": {"criterion": "randomized", **PUBLISHED},
    "randomized, refit": {"criterion": "randomized"},
}
PATTERNS = ("unstructured", "2:4")


def measure(case: Case, options: dict[str, Any], seed: int, samples: int | None) -> dict[str, Any]:
    """Return cost, error and quality of one way to prune."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        _, row = call_child(
            "benchmarks.sparsity_child",
            "prune",
            model=str(case.model),
            calibration=str(case.calibration),
            options=options,
            seed=seed,
            out=str(out),
        )
        _, error = call_child(
            "benchmarks.sparsity_child",
            "error",
            dense=str(case.model),
            pruned=str(out / "model.onnx"),
            evaluation=str(case.evaluation),
        )
        return row | error | quality(case, out / "model.onnx", samples)


def quality(case: Case, model: Path, samples: int | None) -> dict[str, Any]:
    """Return the case's metric on its evaluation data, and the distance from the float model's outputs."""
    reference = OUT.parent / f"sparsity_{case.name}_{samples}.npy"
    request = {
        "data": str(case.evaluation),
        "metric": case.metric,
        "reference": str(reference),
        "samples": samples,
    }
    if not reference.exists() and case.metric != "perplexity":
        call_child("benchmarks.measuring", "quality", model=str(case.model), write_reference=True, **request)
    _, found = call_child("benchmarks.measuring", "quality", model=str(model), write_reference=False, **request)
    return found


def cell(rows: list[dict[str, Any]], key: str, digits: int = 2) -> str:
    """Return the mean over seeds, with the smallest and the largest, or a dash where nothing was measured."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "-"
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> int:
    """Print one table per case and return 1 if a case is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--samples", type=int, help="evaluation samples; none: all")
    parser.add_argument("--only", choices=sorted(ROWS), action="append")
    parser.add_argument("--pattern", choices=PATTERNS, action="append", help="repeat for several; default: all")
    arguments = parser.parse_args()
    console, failed = Console(), 0
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.case or CASES:
        try:
            case = CASES[name]()
        except MissingDataError as error:
            console.print(str(error))
            failed = 1
            continue
        metric = "perplexity" if case.metric == "perplexity" else "accuracy_percent"
        table = Table("weights", "pattern", "layer error, %", metric, "SQNR, dB", "seconds", "peak MiB", title=name)
        dense = quality(case, case.model, arguments.samples)
        table.add_row("dense", "-", "0", cell([dense], metric), "-", "-", "-")
        results.setdefault(name, {})["dense"] = dense
        for pattern in arguments.pattern or PATTERNS:
            for label, options in ROWS.items():
                if label not in (arguments.only or ROWS):
                    continue
                used = options | {"pattern": pattern}
                seeds = range(arguments.seeds or SEEDS[name])
                rows = [measure(case, used, seed, arguments.samples) for seed in seeds]
                for row in rows:
                    row["mib"] = row["bytes"] / 2**20
                results[name][f"{label}, {pattern}"] = rows
                OUT.write_text(json.dumps(results, indent=2))
                cells = [cell(rows, "error_percent"), cell(rows, metric), cell(rows, "sqnr_db", 1)]
                table.add_row(label, pattern, *cells, cell(rows, "seconds", 0), cell(rows, "mib", 0))
        console.print(table)
    return failed


if __name__ == "__main__":
    sys.exit(main())
