"""Writes the page about profiles and networks from the rows of `benchmarks.profiles`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesmith.files import write_atomically

HEAD = """# Every profile with every network

`python -m benchmarks.profiles` compiles four networks for each device profile, with the recipe that fits both:

| network | samples to calibrate, to evaluate | recipe for a processor | other recipes |
|---|---|---|---|
{networks}

A cell says the recipe, the size of the whole artifact, the distance of its outputs from the source (SQNR), and who else
than ONNX Runtime looked at the graph:

- *reference*: nobody. ONNX Runtime computed the outputs here, and the artifact's `validate.py` found them again.
- *simulated*: Qualcomm's simulator ran samples, on the architecture that is named.
- *compiled*: Qualcomm's compiler wrote context binaries. Its simulator gave no answer in the time that it has, or was
  not asked where the cell says so.
- *built*: TensorRT for RTX built the engine that this card runs. No card ran it.
- *proxy*: TensorRT for RTX parsed and built the graph for the compute capability that is named, which is not that of
  the device. That shows that the graph parses, and nothing more.

No device ran anything on this page, and nothing was timed. So few samples say that an artifact is sound; what a recipe
costs in accuracy is on the pages of the [methods](../methods/quantize-int8.md).
"""

FOOT = """
Seen on {seen}.

A cell with "not run" has no row yet. The command goes on where it stopped, and `--again` makes chosen cells anew;
`--page docs/targets/profiles.md` writes this page from the rows.
"""


def write_page(
    path: Path, rows: Sequence[Mapping[str, Any]], networks: Iterable[str], profiles: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        path: The page.
        rows: One for each pair that was run.
        networks: Columns.
        profiles: Rows, with the recipes that networks are compiled with.
    """
    names = list(networks)
    found = {(row["profile"], row["network"]): row for row in rows}
    used = [_network(name, [row for row in rows if row["network"] == name]) for name in names]
    lines = [
        HEAD.format(networks="\n".join(used)),
        f"| profile | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for profile in profiles:
        cells = [_cell(found.get((profile, name))) for name in names]
        lines.append(f"| `{profile}` | {' | '.join(cells)} |")
    refused = [row for row in rows if row["status"] != "artifact"]
    lines += ["", *(f"- `{row['profile']}`, {row['network']}: {row['error']}" for row in refused)]
    lines.append(FOOT.format(seen=_conditions(rows)) if rows else "")
    write_atomically(path, "\n".join(lines))


def _network(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    counts = {row["profile"]: "{calibration}, {evaluation}".format(**row["samples"]) for row in rows}
    samples = max(counts.values(), key=list(counts.values()).count, default="")
    samples += "".join(f"; `{profile}`: {count}" for profile, count in counts.items() if count != samples)
    recipes = sorted({row["recipe"] for row in rows})
    processor = {row["recipe"] for row in rows if row["profile"] == "onnx-cpu"}
    others = [recipe for recipe in recipes if recipe not in processor]
    return f"| {name} | {samples} | {', '.join(processor)} | {', '.join(others)} |"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row["status"] != "artifact":
        return f"{row['recipe']}: {row['status']}"
    passed = "" if row["validator"]["passed"] else ", validator failed"
    return f"{row['recipe']}, {row['bytes'] / 1e6:.1f} MB, {_distance(row)}, {_looked(row)}{passed}"


def _distance(row: Mapping[str, Any]) -> str:
    sqnr = row["sqnr_db"]
    return "equal" if sqnr is None or sqnr > 150 else f"{sqnr:.0f} dB"


def _looked(row: Mapping[str, Any]) -> str:
    """Return who looked at the graph, from the remark in the ledger and what was built."""
    said, contexts = row["gate"], row["build"].get("contexts")
    if simulator := re.search(r"\((?:.*), (v\d+), tier simulated\): (\d+ parts?)", said):
        return f"simulated {simulator[1]} in {simulator[2]}"
    if compiler := re.search(r"compute capability ([\d.]+), (as a proxy|which is).*built (\d+) layers", said):
        kind = "proxy" if compiler[2] == "as a proxy" else "built"
        return f"{kind} {compiler[1]}, {compiler[3]} layers"
    built = [name for name, one in contexts.items() if one["status"] == "built"] if isinstance(contexts, dict) else []
    unasked = "" if "did not answer" in said else ", simulator not asked"
    return f"compiled for {built[0]} to {built[-1]}{unasked}" if built else "reference"


def _conditions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return when, where and with which versions the rows were made: every one that occurs."""
    versions = [row.get("versions", {}) for row in rows]
    said = " ".join(row.get("gate", "") for row in rows)
    libraries = {
        "ONNX Runtime": [each.get("onnxruntime", "") for each in versions],
        "onnx": [each.get("onnx", "") for each in versions],
        "TensorRT for RTX": re.findall(r"tensorrt_rtx ([\d.]+)", said),
        "onnxruntime-qnn": re.findall(r"onnxruntime-qnn ([\d.]+)", said),
    }
    used = [f"{name} {_every(found)}" for name, found in libraries.items() if any(found)]
    seen = f"{_every(row['when'][:10] for row in rows)}, on {_every(row['machine'] for row in rows)} without a GPU"
    return ", ".join([seen, "with " + ", ".join(used)] if used else [seen])


def _every(words: Iterable[str]) -> str:
    return " and ".join(sorted({word for word in words if word}))
