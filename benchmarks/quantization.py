"""Quantization tools side by side: ours and its peers on the same models, data, threads and runtime.

Each tool takes the same float file and the same calibration arrays to a quantized file, in a fresh process. Seconds and
peak resident memory are of the whole process, imports and its end included; `--call` adds the seconds of a second call
in one process, where everything is imported. Tools take turns in shuffled rounds. What they wrote is then judged on
held-out data and timed at batch 1: one process per pair of float and quantized model, shuffled turns inside, pairs in
shuffled rounds, ratios turn by turn. Both at the optimization level that users run (all) and at the one without fusions
(basic). A tool that fails is a row with its error. `--cpu-time` counts the processor's seconds, of tools too, which a
busy machine hardly changes; `--cost-only` prints the costs of tools and judges nothing:

    EDGESMITH_BENCH_THREADS=1 python -m benchmarks.quantization --case minilm --cpu-time --cost-only --rounds 4

    python -m benchmarks.quantization --case mobilenet --tool 'edgesmith*' --tool 'onnxruntime*'

Peers that need packages of their own run in `build/bench/peers`; `make peers` makes it.
"""

import argparse
import fnmatch
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import models
from benchmarks.measuring import THREADS, ChildError, call_child, quartiles, spread
from benchmarks.peers import MissingPeerError, Tool, tools_for
from benchmarks.quantization_table import FLOAT, LEVELS, rows_of, write_page
from edgesmith.measure.machine import describe_machine

OUT = Path("build/bench/quantization")
CASES = ("minilm_r8", "mobilenet", "vit_s14", "smollm2")
COST_CASES = ("minilm", "mobilenet_200")
"""Cases for the cost of tools; measured when named."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    turns: int
    samples: int | None
    calibration_samples: int | None
    limit_s: float
    reuse: bool
    call: bool
    levels: tuple[str, ...]
    cpu_time: bool


def quantize_all(case: models.Case, tools: Sequence[Tool], effort: Effort) -> dict[str, dict[str, Any]]:
    """Run every tool `effort.rounds` times and return its costs, or its error, by name."""
    generator, folder = random.Random(0), OUT / case.name
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {
        tool.name: {"format": tool.format, "file": _file(folder, tool)} for tool in tools
    }
    costs: dict[str, list[dict[str, float]]] = {tool.name: [] for tool in tools}
    for _ in range(effort.rounds):
        for tool in generator.sample(list(tools), len(tools)):
            row = rows[tool.name]
            if "error" in row or (effort.reuse and Path(row["file"]).exists()):
                continue
            try:
                seconds, answer = _quantize(case, tool, row["file"], effort)
                cost = {"seconds": seconds, "peak_bytes": answer["peak_bytes"]}
                if effort.call:
                    cost["call_seconds"] = _quantize(case, tool, row["file"], effort, calls=2)[1]["call_seconds"]
            except (ChildError, MissingPeerError) as error:
                row["error"] = str(error)
                continue
            costs[tool.name].append(cost)
            row["versions"] = answer["versions"]
    for name, found in costs.items():
        if found:
            rows[name]["tool_rounds"] = found
            for key in found[0]:
                rows[name][f"tool_{key}"] = quartiles([cost[key] for cost in found])
    return rows


def _file(folder: Path, tool: Tool) -> str:
    return str(folder / ("".join(letter if letter.isalnum() else "-" for letter in tool.name) + ".onnx"))


def _quantize(case: models.Case, tool: Tool, out: str, effort: Effort, calls: int = 1) -> tuple[float, dict[str, Any]]:
    Path(out).unlink(missing_ok=True)
    before = os.times()
    seconds, answer = call_child(
        "benchmarks.peers.child",
        "quantize",
        python=tool.python,
        limit_s=effort.limit_s,
        tool=tool.module,
        settings=dict(tool.settings),
        model=str(case.model),
        data=str(case.calibration),
        samples=effort.calibration_samples,
        out=out,
        calls=calls,
    )
    after = os.times()
    if effort.cpu_time:
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, answer


def judge(case: models.Case, rows: dict[str, dict[str, Any]], effort: Effort) -> None:
    """Add quality on held-out data and size to every row whose file is there, at both levels; float comes first."""
    for name, row in rows.items():
        if "error" in row:
            continue
        row["size_bytes"] = sum(
            path.stat().st_size for path in Path(row["file"]).parent.glob(Path(row["file"]).name + "*")
        )
        for level in effort.levels:
            try:
                _, answer = call_child(
                    "benchmarks.measuring",
                    "quality",
                    model=row["file"],
                    data=str(case.evaluation),
                    metric=case.metric,
                    level=level,
                    samples=effort.samples,
                    reference=str(OUT / case.name / "reference.npy"),
                    write_reference=name == FLOAT and level == effort.levels[0],
                )
            except ChildError as error:
                row["error"] = f"at {level}: {error}"
                break
            row.setdefault("quality", {})[level] = answer


def time_all(case: models.Case, rows: dict[str, dict[str, Any]], effort: Effort) -> None:
    """Add the latency and the ratio float/quantized of every row that runs, at both levels."""
    reference, generator = rows[FLOAT]["file"], random.Random(0)
    names = [name for name, row in rows.items() if name != FLOAT and "error" not in row]
    pairs = [(name, level) for name in names for level in effort.levels]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
    for seed in range(effort.rounds):
        for name, level in generator.sample(pairs, len(pairs)):
            _, answer = call_child(
                "benchmarks.measuring",
                "latency",
                models={FLOAT: reference, name: rows[name]["file"]},
                data=str(case.evaluation),
                level=level,
                seed=seed,
                turns=effort.turns,
                cpu_time=effort.cpu_time,
            )
            found[name, level].extend(zip(answer[FLOAT], answer[name], strict=True))
    for (name, level), values in found.items():
        rows[name].setdefault("latency_ms", {})[level] = quartiles([quantized for _, quantized in values])
        rows[name].setdefault("speedup", {})[level] = quartiles([full / quantized for full, quantized in values])
        rows[FLOAT].setdefault("latency_ms", {})[level] = quartiles([full for full, _ in values])


def measure(case: models.Case, tools: Sequence[Tool], effort: Effort) -> dict[str, Any]:
    """Return everything about a case: the effort, and a row per tool."""
    rows: dict[str, dict[str, Any]] = {FLOAT: {"format": "float32", "file": str(case.model)}}
    rows |= quantize_all(case, tools, effort)
    judge(case, rows, effort)
    time_all(case, rows, effort)
    return {
        "case": case.name,
        "metric": case.metric,
        "threads": THREADS,
        "rounds": effort.rounds,
        "turns": effort.turns,
        "clock": "CPU time" if effort.cpu_time else "wall time",
        "calibration_samples": effort.calibration_samples,
        "machine": describe_machine(),
        "rows": rows,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the rows of a case."""
    header, *rows = rows_of(result)
    table = Table(*header, title=f"{result['case']}, {result['threads']} threads")
    for row in rows:
        table.add_row(*row)
    Console(width=200).print(table)


def show_costs(case: models.Case, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what tools cost."""
    table = Table("tool", "tool s", "tool MB", title=f"{case.name}, {THREADS} threads")
    for name, row in rows.items():
        if "error" in row:
            table.add_row(name, f"failed: {row['error'][:200]}")
        else:
            table.add_row(name, spread(row["tool_seconds"]), f"{row['tool_peak_bytes']['median'] / 1e6:.0f}")
    Console(width=200).print(table)


def main() -> None:
    """Measure the cases that can be prepared, print a table each, and write `build/bench/quantization/*.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=(*CASES, *COST_CASES), action="append")
    parser.add_argument("--tool", action="append", help="Only tools whose name matches; may be repeated.")
    parser.add_argument("--rounds", type=int, default=3, help="Times that each tool and each latency process runs.")
    parser.add_argument("--turns", type=int, default=20, help="Latency samples per model and process.")
    parser.add_argument("--samples", type=int, help="Evaluation samples; default: all.")
    parser.add_argument("--calibration-samples", type=int, help="Calibration samples; default: all.")
    parser.add_argument("--limit", type=float, default=1800, help="Seconds that one run of a tool may take.")
    parser.add_argument("--level", choices=LEVELS, action="append", help="Optimization level; default: both.")
    parser.add_argument("--cpu-time", action="store_true", help="Compare CPU time: for one thread, on a busy machine.")
    parser.add_argument("--cost-only", action="store_true", help="Print the costs of tools, and measure nothing else.")
    parser.add_argument("--reuse", action="store_true", help="Take files that an earlier run wrote; no tool costs.")
    parser.add_argument("--call", action="store_true", help="Time a second call in one process, too.")
    parser.add_argument("--page", type=Path, help="Write this Markdown page from all results, and measure nothing.")
    chosen = parser.parse_args()
    if chosen.page:
        write_page(OUT, chosen.page)
        return
    effort = Effort(
        rounds=chosen.rounds,
        turns=chosen.turns,
        samples=chosen.samples,
        calibration_samples=chosen.calibration_samples,
        limit_s=chosen.limit,
        reuse=chosen.reuse,
        call=chosen.call,
        levels=tuple(chosen.level or LEVELS),
        cpu_time=chosen.cpu_time,
    )
    for name in chosen.case or CASES:
        try:
            case = getattr(models, name)()
        except models.MissingDataError as error:
            Console().print(f"{name} is left out. {error}")
            continue
        patterns = chosen.tool or ["*"]
        tools = [tool for tool in tools_for(name) if any(fnmatch.fnmatch(tool.name, each) for each in patterns)]
        if chosen.cost_only:
            show_costs(case, quantize_all(case, tools, effort))
            continue
        result = measure(case, tools, effort)
        (OUT / f"{name}.json").write_text(json.dumps(result, indent=2))
        show(result)


if __name__ == "__main__":
    main()
