"""Turns results of `benchmarks.quantization` into tables, and holds them against goals."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import spread

FLOAT = "float"
LEVELS = ("all", "basic")
METRICS = {
    "accuracy": ("accuracy_percent", "accuracy %", "{:.2f}"),
    "features": ("sqnr_db", "SQNR dB", "{:.1f}"),
    "perplexity": ("perplexity", "perplexity", "{:.2f}"),
}
HEADER = (
    "tool",
    "speed-up, all",
    "speed-up, basic",
    "quality, all",
    "quality, basic",
    "size MB",
    "tool s",
    "call s",
    "tool MB",
    "goal",
)
TITLES = {
    "minilm": "MiniLM-L6 on BBC News, 128 tokens",
    "minilm_r8": "MiniLM-L6 on Reuters R8, 128 tokens",
    "mobilenet": "MobileNetV2 on photos, 224 pixels",
    "mobilenet_200": "MobileNetV2 on photos, 224 pixels, 200 of them to calibrate with",
    "vit_s14": "ViT-S/14 at 224 pixels, features",
    "smollm2": "SmolLM2-135M, 512 tokens of Persuasion",
}


@dataclass(frozen=True)
class Goal:
    """What is asked of us at optimization level all: a speed-up, and a bound on the metric."""

    speedup: float
    lowest: float | None = None
    """Metric at least this."""
    largest_rise: float | None = None
    """Metric at most this far above the float model's."""
    largest_drop: float | None = None
    """Metric at most this far below the float model's."""


GOALS = {
    ("minilm_r8", "int8"): Goal(2.5, largest_drop=0.2),
    ("mobilenet", "int8"): Goal(2.2, largest_drop=0.5),
    ("vit_s14", "int8"): Goal(2.5, lowest=28.0),
    ("smollm2", "int8"): Goal(2.0, largest_rise=0.7),
    ("smollm2", "int4"): Goal(1.3, largest_rise=0.2),
}


def rows_of(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return header and rows of a case as text; cells that were not measured are empty."""
    return [HEADER, *(_row(result, name, row) for name, row in result["rows"].items())]


def _row(result: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (name, f"failed: {row['error'][:200]}", *[""] * (len(HEADER) - 2))
    speeds = row.get("speedup", {})
    speed = [spread(speeds[level]) if level in speeds else "" for level in LEVELS]
    cost = [spread(row[key], digits=1) if key in row else "" for key in ("tool_seconds", "tool_call_seconds")]
    cost.append(f"{row['tool_peak_bytes']['median'] / 1e6:.0f}" if "tool_peak_bytes" in row else "")
    quality = [_quality(result, row, level) for level in LEVELS]
    return (name, *speed, *quality, f"{row['size_bytes'] / 1e6:.1f}", *cost, _verdict(result, row))


def _quality(result: Mapping[str, Any], row: Mapping[str, Any], level: str) -> str:
    key, _, form = METRICS[result["metric"]]
    if level not in row.get("quality", {}):
        return ""
    value = row["quality"][level][key]
    return "exact" if value is None else form.format(value)


def _verdict(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return whether a row reaches the goal of its case and format, or by how much it misses it."""
    goal = GOALS.get((result["case"], row["format"]))
    if goal is None or "all" not in row.get("speedup", {}):
        return ""
    key, _, _ = METRICS[result["metric"]]
    value, full = (each["quality"]["all"][key] for each in (row, result["rows"][FLOAT]))
    missed = []
    if (short := goal.speedup - row["speedup"]["all"]["median"]) > 0:
        missed.append(f"{short:.2f}x too slow")
    if goal.lowest is not None and value < goal.lowest:
        missed.append(f"{goal.lowest - value:.1f} too low")
    if goal.largest_rise is not None and value - full > goal.largest_rise:
        missed.append(f"{value - full - goal.largest_rise:.2f} too high")
    if goal.largest_drop is not None and full - value > goal.largest_drop + 1e-9:
        missed.append(f"{full - value - goal.largest_drop:.2f} too low")
    return ", ".join(missed) or "reached"


def write_page(folder: Path, page: Path) -> None:
    """Write the Markdown page of all results in `folder`, with machine, versions, and how to repeat them."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [_INTRODUCTION]
    for result in results:
        parts.append(f"## {TITLES[result['case']]}\n\n{_describe(result)}\n")
        header, *rows = _without_empty_columns(rows_of(result))
        lines = [header, tuple("---" for _ in header), *rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts))


def _without_empty_columns(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
    return [tuple(row[index] for index in kept) for row in rows]


def _describe(result: Mapping[str, Any]) -> str:
    rows, machine = result["rows"], result["machine"]
    samples = next(iter(rows[FLOAT]["quality"].values()))["samples"]
    limited = result["calibration_samples"]
    versions = {name: version for row in rows.values() for name, version in row.get("versions", {}).items()}
    _, label, _ = METRICS[result["metric"]]
    parts = [
        f"Quality: {label} on {samples} held-out samples.",
        f"Calibration: {f'the first {limited}' if limited else 'all'} of the case's samples.",
        f"{result['threads']} thread(s), {result['rounds']} round(s) of {result['turns']} turns, {result['clock']}.",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
    ]
    if versions:
        parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".")
    return "\n".join(parts)


_INTRODUCTION = """\
# Quantization, measured beside the peers

Written by `python -m benchmarks.quantization --page docs/benchmarks/quantization.md` from the results of
`make peers && python -m benchmarks.quantization`.

Every tool got the same float file, calibration data and threads, and ONNX Runtime ran what it wrote. Speed-up is
latency float/quantized at batch 1, turn by turn: median (lower to upper quartile), with all graph optimizations, which
is what users run, and with basic ones. Quality is of data that no tool saw. Tool cost is seconds and peak resident
memory of a fresh process, imports and its end included; on a machine with a high load seconds are too many. Where there
is a column for the call, it holds the seconds of a second call in one process, where everything is imported.
The last column holds rows against what is asked of Edgesmith, with all optimizations.
"""
