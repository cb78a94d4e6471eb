"""Removing and sharing blocks of SmolLM2-135M: scores side by side, with and without compensation and cure.

Every row removes as many blocks of the same graph. Calibration samples are drawn anew for each seed from the case's
calibration part; perplexity is that of another novel. Each removal runs in a process of its own, which gives its time
and peak memory. Latencies are medians of shuffled turns; the ideal ratio is that of MACs.

With `--cure-steps` each result is also trained against the whole network by `recover`, for as many steps in all rows
and on the same passages, which are of all novels but the one that perplexity is of.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import call_child, quartiles, spread
from benchmarks.models import smollm2
from benchmarks.models.case import MissingDataError

OUT = Path("build/bench/folding")
CHILD, MEASURING = "benchmarks.folding_child", "benchmarks.measuring"
SCORES: dict[str, dict[str, Any]] = {
    "block influence": {"score": "block-influence"},
    "angular": {"score": "angular"},
    "SLEB": {"score": "sleb"},
    "Taylor": {"score": "taylor", "score_samples": 4},
    "gates": {"score": "gates", "gate_steps": 100, "gate_rate": 0.03, "score_samples": 2},
    "random": {"score": "random"},
}
FORMS: dict[str, dict[str, Any]] = {
    "none": {"compensation": "none"},
    "folded": {"compensation": "folded"},
    "product": {"compensation": "product"},
    "LaCo": {"compensation": "none", "merge": "laco"},
    "LaCo as released": {"compensation": "none", "merge": "laco-release"},
}
USUAL_FORMS = ("none", "folded", "product")
MERGED = ("angular",)
"""Scores whose rows are also merged by LaCo, unless forms are named: its two forms differ on runs of blocks alone."""
COUNTS, SEEDS, RANDOM_SEEDS, SAMPLES, TURNS = (3, 6), 1, 5, 8, 15
_PAIRS = [[number, number + 1] for number in range(10, 20, 2)]
SHARING: dict[str, dict[str, Any]] = {
    **{f"pairs of the middle third, {weights}": {"weights": weights} for weights in ("first", "mean", "weighted")},
    # The same model, written in the same way.
    "nothing shared": {"weights": "first", "groups": []},
    "pairs of the middle third, weighted, rank 16": {"weights": "weighted", "correction_rank": 16},
}
MEMORY_TOKENS = 16
"""Few, so that weights and not activations fill the memory."""
CURE_HELD_OUT, CURE_EVALUATIONS = 4, 4


def plans(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what is asked for, each with a name, a method, options and seeds."""
    found = []
    for count in arguments.count or COUNTS:
        for score in arguments.score or SCORES:
            for form in arguments.form or (FORMS if score in MERGED else USUAL_FORMS):
                seeds = arguments.random_seeds if score == "random" else arguments.seeds
                options = {**SCORES[score], "count": count, **FORMS[form]}
                name = f"{count} removed, {score}, {form}"
                found.append({"name": name, "method": "remove-blocks", "options": options, "seeds": seeds})
    for name, options in SHARING.items() if arguments.sharing or arguments.only_sharing or arguments.share else ():
        if arguments.share and name not in arguments.share:
            continue
        options = {"groups": _PAIRS, **options}
        found.append({"name": name, "method": "share-blocks", "options": options, "seeds": arguments.seeds})
    return [plan for plan in found if plan["method"] == "share-blocks" or not arguments.only_sharing]


def resident(model: Path | str, data: Path) -> dict[str, float]:
    """Return the MiB that ONNX Runtime takes for a model, with weights packed anew for its kernels and without."""
    found = {}
    for name, prepacked in (("prepacked", True), ("plain", False)):
        request = {"model": str(model), "data": str(data), "prepacked": prepacked, "tokens": MEMORY_TOKENS}
        found[name] = call_child(CHILD, "memory", **request)[1]["resident_bytes"] / 2**20
    return found


def cure(file: Path, seed: int, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Train a folded network for a fixed number of steps; return the file of the result, and how it went."""
    cured = file.with_name(f"{file.stem}-cured.onnx")
    steps, batch = arguments.cure_steps, arguments.cure_batch
    count = steps * batch + CURE_HELD_OUT
    options = {
        "steps": steps,
        "batch_size": batch,
        "parameters": arguments.cure_parameters,
        "held_out": CURE_HELD_OUT / count,
        "evaluations": CURE_EVALUATIONS,
        "patience": CURE_EVALUATIONS,
    }
    request = {"source": str(smollm2().model), "model": str(file), "file": str(cured), "seed": seed, "options": options}
    request |= {"count": count, "tokens": arguments.cure_tokens, "threads": arguments.threads}
    return cured, call_child(CHILD, "cure", **request)[1]


def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Return one row for each plan; each is written as soon as it is there."""
    from edgesmith.graph.cost import count_cost

    case = smollm2()
    quality = {"data": str(case.evaluation), "metric": case.metric, "samples": arguments.evaluation}
    _, base = call_child(MEASURING, "quality", model=str(case.model), **quality)
    console.print(f"unchanged: perplexity {base['perplexity']:.2f}")
    macs = count_cost(ir.load(case.model)).macs
    rows = []
    for plan in plans(arguments):
        row: dict[str, Any] = {**plan, "unchanged": base["perplexity"], "perplexity": [], "runs": []}
        row |= {"cured": [], "cures": []}
        for seed in range(plan["seeds"]):
            file = OUT / f"{arguments.name}.onnx"
            request = {"model": str(case.model), "data": str(case.calibration), "file": str(file), "seed": seed}
            request |= {"method": plan["method"], "options": plan["options"], "tokens": arguments.tokens}
            _, run = call_child(CHILD, "fold", samples=arguments.samples, threads=arguments.threads, **request)
            _, found = call_child(MEASURING, "quality", model=str(file), **quality)
            row["runs"].append(run)
            row["perplexity"].append(found["perplexity"])
            if arguments.cure_steps:
                cured, how = cure(file, seed, arguments)
                _, found = call_child(MEASURING, "quality", model=str(cured), **quality)
                row["cures"].append(how)
                row["cured"].append(found["perplexity"])
        row["macs"] = count_cost(ir.load(file)).macs / macs
        if plan["method"] == "share-blocks":
            row["resident_mib"] = resident(file, case.evaluation)
        if arguments.turns:
            latency = {"models": {"before": str(case.model), "after": str(file)}, "data": str(case.evaluation)}
            _, times = call_child(MEASURING, "latency", turns=arguments.turns, seed=0, **latency)
            row["speedup"] = quartiles([a / b for a, b in zip(times["before"], times["after"], strict=True)])
        rows.append(row)
        cured = f"; cured {_listed(row['cured'])}" if row["cured"] else ""
        console.print(f"{row['name']}: {_listed(row['perplexity'])}{cured}")
        (OUT / f"{arguments.name}.json").write_text(json.dumps(rows, indent=2))
    return rows


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print all rows."""
    columns = ("perplexity", "of seeds", "cured", "its CPU s", "MACs", "faster", "MiB", "s, of CPU", "peak MiB")
    table = Table(
        "",
        *columns,
        "resident MiB packed, plain",
        title="SmolLM2-135M; weights are trained in the cure alone, gates in rows of gates",
    )
    for row in rows:
        values, runs = row["perplexity"], row["runs"]
        cells = [f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}", _listed(row["cured"])]
        cells += [_listed([how["cpu_seconds"] for how in row["cures"]], 0), f"{row['macs']:.1%}"]
        cells += [spread(row["speedup"]) if "speedup" in row else "", f"{runs[-1]['file_bytes'] / 2**20:.0f}"]
        cells += [f"{mean(run['seconds'] for run in runs):.0f}, {mean(run['cpu_seconds'] for run in runs):.0f}"]
        cells += [f"{max(run['peak_bytes'] for run in runs) / 2**20:.0f}"]
        memory = row.get("resident_mib", {})
        table.add_row(row["name"], *cells, ", ".join(f"{value:.0f}" for value in memory.values()))
    console.print(table)


def _listed(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="append", type=int, help="blocks to remove; repeat for several")
    parser.add_argument("--score", action="append", choices=SCORES, help="repeat for several; default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="compensation; repeat for several")
    parser.add_argument(
        "--sharing", action="store_true", help="share pairs of blocks too, in all ways unless --share names some"
    )
    parser.add_argument("--only-sharing", action="store_true", help="remove nothing")
    parser.add_argument("--share", action="append", choices=SHARING, help="share in this way too; repeat for several")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--random-seeds", type=int, default=RANDOM_SEEDS, help="seeds of the score random")
    parser.add_argument("--cure-steps", type=int, default=0, help="steps of `recover` behind each row; 0: none")
    parser.add_argument("--cure-batch", type=int, default=1, help="passages per step")
    parser.add_argument("--cure-tokens", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--cure-parameters", choices=("all", "low-rank", "biases-and-norms"), default="low-rank")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration samples")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of each of them, at most 512")
    parser.add_argument("--evaluation", type=int, default=None, help="evaluation samples; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=TURNS, help="timed turns; 0 measures no latency")
    parser.add_argument("--name", default="smollm2", help="name of the JSON file")
    arguments, console = parser.parse_args(), Console(width=140)
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        show(console, measure(arguments, console))
    except MissingDataError as error:
        console.print(f"left out: {error}")


if __name__ == "__main__":
    main()
