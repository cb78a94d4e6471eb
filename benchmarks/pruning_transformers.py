"""Structured pruning of transformers without training: scores and repairs of `prune-structure` side by side.

Every row prunes the same graph by the same ratio with the same calibration data; only score and repair differ. Data is
drawn anew for each seed from the case's calibration part; quality is that of the evaluation part. Each pruning runs in
a process of its own, which gives its time and peak memory. Latencies are medians of shuffled turns.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import call_child, quartiles, spread
from benchmarks.models import minilm_r8, smollm2
from benchmarks.models.case import Case, MissingDataError
from benchmarks.models.minilm import reuters_tokens

OUT = Path("build/bench/pruning_transformers")
CHILD, MEASURING = "benchmarks.structure_child", "benchmarks.measuring"
CASES = {"minilm_r8": minilm_r8, "smollm2": smollm2}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "minilm_r8": {"25 % of heads and channels": {"ratio": 0.25}, "50 % of heads and channels": {"ratio": 0.5}},
    # Three groups of heads leave no room for 20 %, so channels of values go instead.
    "smollm2": {"20 % of value and MLP channels": {"ratio": 0.2, "kinds": ["value-channels", "channels"]}},
}
METHODS: dict[str, dict[str, Any]] = {
    "elimination, refit (default)": {},
    "elimination, two-step refit": {"refit": "two-step"},
    "elimination, no repair": {"refit": "none"},
    "second moment, no repair": {"score": "second-moment", "refit": "none"},
    "second moment, refit": {"score": "second-moment"},
    "FLAP with bias": {"score": "fluctuation", "refit": "bias"},
    "Wanda-sp": {"score": "wanda", "refit": "none"},
    "Taylor": {"score": "taylor", "refit": "none"},
    "L2": {"score": "magnitude", "refit": "none"},
    "random": {"score": "random", "refit": "none"},
}
SAMPLES, TURNS = 128, 21


def measure(case: Case, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each setting and method of a case."""
    quality = {"data": str(case.evaluation), "metric": case.metric, "samples": arguments.evaluation}
    reference = str(OUT / f"{name}.npy")
    quality |= {"reference": reference, "write_reference": True}
    _, base = call_child(MEASURING, "quality", model=str(case.model), **quality)
    rows = [{"case": name, "setting": "", "method": "unpruned", "quality": [base], "runs": []}]
    for setting, ratio in SETTINGS[name].items():
        for method, options in METHODS.items():
            if arguments.method and method not in arguments.method:
                continue
            row: dict[str, Any] = {"case": name, "setting": setting, "method": method, "quality": [], "runs": []}
            for seed in range(arguments.seeds):
                file = OUT / name / f"{setting}-{method}-{seed}.onnx".replace(" ", "_").replace("%", "percent")
                file.parent.mkdir(parents=True, exist_ok=True)
                request = {"model": str(case.model), "data": str(pool(case)), "file": str(file), "seed": seed}
                request |= {"samples": arguments.samples, "threads": arguments.threads}
                _, run = call_child(CHILD, "prune", **request, options={**ratio, **options})
                _, found = call_child(MEASURING, "quality", model=str(file), **(quality | {"write_reference": False}))
                row["runs"].append(run)
                row["quality"].append(found)
            if arguments.turns:
                models = {"before": str(case.model), "after": str(file)}
                latency = {"models": models, "data": str(case.evaluation), "turns": arguments.turns, "seed": 0}
                _, times = call_child(MEASURING, "latency", **latency, cpu_time=True)
                row["speedup"] = quartiles([a / b for a, b in zip(times["before"], times["after"], strict=True)])
            rows.append(row)
            (OUT / f"{name}.json").write_text(json.dumps(rows, indent=2))
    return rows


def pool(case: Case) -> Path:
    """Return the file that seeds draw calibration samples from: of R8 its whole training part."""
    if case.name != "minilm_r8":
        return case.calibration
    file = OUT / "minilm_r8_training.npz"
    if not file.exists():
        np.savez(file, **reuters_tokens("train"))
    return file


def show(console: Console, rows: list[dict[str, Any]], metric: str) -> None:
    """Print the rows of one case."""
    key = {"accuracy": "accuracy_percent", "perplexity": "perplexity"}[metric]
    columns = (metric, "of seeds", "MACs", "parameters", "faster", "s", "CPU s", "peak MiB")
    table = Table("removed", "method", *columns, title=rows[0]["case"])
    for row in rows:
        values = [found[key] for found in row["quality"]]
        cells = [f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]
        if row["runs"]:
            run = row["runs"][-1]
            times = spread(row["speedup"]) if "speedup" in row else ""
            cells += [f"{run['macs']:.1%}", f"{run['parameters']:.1%}", times]
            cells += [f"{mean(r[kind] for r in row['runs']):.0f}" for kind in ("seconds", "cpu_seconds")]
            cells += [f"{max(r['peak_bytes'] for r in row['runs']) / 2**20:.0f}"]
        table.add_row(row["setting"], row["method"], *cells)
    console.print(table)


def main() -> None:
    """Measure the named cases, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="repeat for several; default: all")
    parser.add_argument("--method", action="append", choices=METHODS, help="repeat for several; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration samples")
    parser.add_argument("--evaluation", type=int, default=None, help="evaluation samples; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=TURNS, help="turns of timing; 0: none")
    arguments, console = parser.parse_args(), Console(width=160)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in arguments.case or CASES:
        try:
            case = CASES[name]()
        except MissingDataError as error:
            console.print(f"{name} is left out. {error}")
            continue
        show(console, measure(case, name, arguments), case.metric)


if __name__ == "__main__":
    main()
