"""Channels of MobileNetV2 removed without training: ours beside Torch-Pruning, on the same photos.

Each seed deals the photos anew: 200 to calibrate with, the others to judge on. Every row removes the same share of MACs
by the same float weights, and Torch-Pruning's batch normalization is estimated anew on the calibration photos. Files
are judged and timed in ONNX Runtime, one process per seed and share, shuffled turns inside. Times are processor time,
which other work on the machine disturbs little.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import ChildError, call_child, quartiles, spread
from benchmarks.models import MissingDataError, mobilenet
from benchmarks.models.mobilenet import mobilenet_weights
from benchmarks.models.photos import read_photos
from benchmarks.peers import ENVIRONMENT

OUT = Path("build/bench/pruning")
CALIBRATION, TURNS = 200, 41
PEER, MEASURING = "torch-pruning", "benchmarks.measuring"
OURS: dict[str, dict[str, Any]] = {
    "edgesmith": {"allocation": "measured"},
    "edgesmith, any width": {"allocation": "measured", "alignment": 1},
    "edgesmith, same share everywhere": {},
    "edgesmith, statistics anew": {"allocation": "measured", "refit": "statistics"},
    "edgesmith, no refit": {"allocation": "measured", "refit": "none"},
    "edgesmith, magnitude, no refit": {"score": "magnitude", "refit": "none"},
}
PEERS = ("L2", "Taylor", "global L2", "global L2, widths of 16")


def deal(seed: int, folder: Path) -> dict[str, Path]:
    """Write the photos of a seed and return the files of both parts."""
    photos, labels = read_photos()
    order = np.random.default_rng(seed).permutation(len(photos))
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, chosen in {"calibration": order[:CALIBRATION], "evaluation": order[CALIBRATION:]}.items():
        files[part] = folder / f"{part}.npz"
        np.savez(files[part], image=photos[chosen], labels=labels[chosen])
    return files


def prune(name: str, request: dict[str, Any], threads: int) -> dict[str, Any]:
    """Prune with one tool in a fresh process."""
    if name.startswith(PEER):
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            raise ChildError("not installed; run: make peers")
        setting: dict[str, Any] = {"setting": name.removeprefix(f"{PEER} "), "weights": str(mobilenet_weights())}
        _, answer = call_child("benchmarks.peers.torch_pruning", "prune", python=python, **request, **setting)
    else:
        options = {**OURS[name], "ratio": request["share"], "budget": "macs"}
        settings: dict[str, Any] = {
            "options": options,
            "samples": CALIBRATION,
            "threads": threads,
            "model": str(mobilenet().model),
        }
        _, answer = call_child("benchmarks.structure_child", "prune", **request, **settings)
    return answer


def macs(file: str) -> int:
    """Return the MACs of a file for one photo."""
    import onnx_ir as ir

    from edgesmith.graph.cost import count_cost

    return count_cost(ir.load(file), {"batch": 1}).macs


def measure(seed: int, shares: list[float], names: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each share and tool, and one for the dense network.

    With `--resume` rows that an earlier run wrote stay as they are.
    """
    record = OUT / f"seed{seed}.json"
    earlier = json.loads(record.read_text()) if arguments.resume and record.exists() else []
    rows: list[dict[str, Any]] = [row for row in earlier if "error" not in row]
    known = {(row["tool"], row["share"]) for row in rows}
    parts = deal(seed, OUT / f"seed{seed}")
    dense = str(mobilenet().model)
    quality: dict[str, Any] = {
        "data": str(parts["evaluation"]),
        "metric": "accuracy",
        "reference": str(OUT / "reference.npy"),
    }
    _, before = call_child(MEASURING, "quality", model=dense, write_reference=True, **quality)
    if not rows:
        rows.append({"tool": "dense", "share": 0.0, "seed": seed, "macs": 1.0, **before})
    for share in shares:
        files = {"dense": dense}
        for name in names:
            if (name, share) in known:
                continue
            file = OUT / f"{name}-{share}-{seed}.onnx".replace(" ", "_").replace(",", "")
            request: dict[str, Any] = {
                "data": str(parts["calibration"]),
                "file": str(file),
                "share": share,
                "seed": seed,
            }
            row: dict[str, Any] = {"tool": name, "share": share, "seed": seed}
            rows.append(row)
            try:
                row |= prune(name, request, arguments.threads)
                _, found = call_child(
                    "benchmarks.measuring", "quality", model=str(file), write_reference=False, **quality
                )
            except ChildError as error:
                row["error"] = str(error)
                continue
            row |= {**found, "macs": macs(str(file)) / macs(dense)}
            files[name] = str(file)
        latency: dict[str, Any] = {
            "models": files,
            "data": str(parts["evaluation"]),
            "turns": arguments.turns,
            "cpu_time": True,
            "seed": seed,
        }
        _, times = call_child(MEASURING, "latency", **latency)
        for row in rows:
            if row["share"] == share and row["tool"] in files:
                pairs = zip(times["dense"], times[row["tool"]], strict=True)
                row["time"] = [after / before for before, after in pairs]
        record.write_text(json.dumps(rows, indent=2))
    return rows


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print means over seeds. Times are shares of the dense network's, turn by turn."""
    seeds = len({row["seed"] for row in rows})
    table = Table(
        "MACs removed", "tool", "top-1 %", "of dense %", "MACs left", "time left", "s", title=f"{seeds} seeds"
    )
    dense = {row["seed"]: row["accuracy_percent"] for row in rows if row["tool"] == "dense"}
    for share, name in dict.fromkeys((row["share"], row["tool"]) for row in rows):
        found = [row for row in rows if (row["share"], row["tool"]) == (share, name)]
        good = [row for row in found if "error" not in row]
        if not good:
            table.add_row(f"{share:.0%}", name, found[0]["error"])
            continue
        tops = [row["accuracy_percent"] for row in good]
        cells = [f"{mean(tops):.1f}" + (f" ± {stdev(tops):.1f}" if len(tops) > 1 else "")]
        cells += [f"{mean(100 * row['accuracy_percent'] / dense[row['seed']] for row in good):.1f}"]
        cells += [f"{mean(row['macs'] for row in good):.3f}"]
        times = [ratio for row in good for ratio in row.get("time", ())]
        cells += [spread(quartiles(times)) if times else "", f"{mean(row.get('seconds', 0.0) for row in good):.0f}"]
        table.add_row(f"{share:.0%}", name, *cells)
    console.print(table)


def main() -> None:
    """Measure, print a table and write JSON."""
    names = [*OURS, *(f"{PEER} {name}" for name in PEERS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, action="append", help="repeat for several; default: 0, 1 and 2")
    parser.add_argument("--resume", action="store_true", help="keep the rows that earlier runs wrote")
    parser.add_argument("--share", type=float, action="append", help="share of MACs to remove; default: 0.2 and 0.3")
    parser.add_argument("--tool", action="append", choices=names, help="repeat for several; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments, console = parser.parse_args(), Console(width=140)
    rows: list[dict[str, Any]] = []
    try:
        for seed in arguments.seed or range(3):
            rows += measure(seed, arguments.share or [0.2, 0.3], arguments.tool or names, arguments)
    except MissingDataError as error:
        console.print(f"MobileNetV2 is left out. {error}")
        return
    show(console, rows)


if __name__ == "__main__":
    main()
