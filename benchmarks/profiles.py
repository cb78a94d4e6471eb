"""Every device profile with every network: what `edgesmith.compile` makes of it, or why it refuses.

Each pair of profile and network is compiled in a fresh process, with the recipe that fits both and few samples, which
is enough for the form of an artifact and says little about accuracy. Nothing is timed. Rows are written one by one to
`build/bench/profiles.json`, and a run goes on where the last one stopped; `--again` makes the chosen pairs anew.

    python -m benchmarks.profiles --profile 'jetson-*' --network 'Mobile*' --again
"""

import argparse
import fnmatch
import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import models
from benchmarks.measuring import ChildError, call_child
from benchmarks.profiles_page import write_page
from edgesmith.files import write_atomically

OUT = Path("build/bench/profiles.json")
LIMIT_S = 3600
TOKENS = 32
"""Length that passages of the language model are cut to."""

NETWORKS: Mapping[str, tuple[Callable[[], models.Case], int, int]] = {
    "MobileNetV2": (models.mobilenet, 8, 16),
    "MiniLM-L6": (models.minilm_r8, 8, 16),
    "SmolLM2-135M": (models.smollm2, 2, 2),
    "ViT-S/14": (models.fashion_vit_s14, 4, 8),
}
"""Network to its case, and how many samples of it calibrate and how many are evaluated on."""
LANGUAGE_MODEL = "SmolLM2-135M"

RECIPES: Mapping[str, str | dict[str, Any]] = {
    "float": "float",
    "int8": "int8",
    "int8-dynamic": "int8-dynamic",
    "fp8": {"name": "fp8", "steps": [{"method": "quantize-fp8"}]},
    "int4-weights": {"name": "int4-weights", "steps": [{"method": "quantize-weights", "options": {"bits": 4}}]},
}
PROFILES: Mapping[str, tuple[str, str]] = {
    "onnx-cpu": ("int8", "int8-dynamic"),
    "android-cpu": ("int8", "int8-dynamic"),
    "android-qnn": ("int8", "int8"),
    "ios-coreml": ("float", "float"),
    "jetson-orin-nano": ("int8", "int4-weights"),
    "jetson-orin-nx": ("int8", "int4-weights"),
    "jetson-agx-orin": ("int8", "int4-weights"),
    "jetson-thor": ("fp8", "int4-weights"),
    "h100": ("fp8", "int4-weights"),
    "rtx-30": ("int8", "int4-weights"),
    "rtx-40": ("fp8", "int4-weights"),
    "rtx-50": ("fp8", "int4-weights"),
}
"""Profile to the recipes that its users would take: for networks that classify, and for language models."""


def compile_pair(profile: str, network: str, case: models.Case) -> dict[str, Any]:
    """Return the row of one pair."""
    chosen = PROFILES[profile][network == LANGUAGE_MODEL]
    _, calibration, evaluation = NETWORKS[network]
    samples = {"calibration": calibration, "evaluation": evaluation}
    row: dict[str, Any] = {"profile": profile, "network": network, "recipe": chosen, "samples": samples}
    row |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine()}
    # Artifact and store go with this folder, also where the child was stopped.
    with tempfile.TemporaryDirectory(prefix="edgesmith-profiles-") as folder:
        try:
            seconds, answer = call_child(
                "benchmarks.profiles_child",
                "compile",
                limit_s=LIMIT_S,
                folder=folder,
                model=str(case.model),
                data={"calibration": str(case.calibration), "evaluation": str(case.evaluation)},
                samples=samples,
                tokens=TOKENS,
                target=profile,
                recipe=RECIPES[chosen],
            )
        except ChildError as error:
            return row | {"status": "failed", "error": str(error)}
    return row | {"seconds": seconds, **answer}


def known_rows() -> list[dict[str, Any]]:
    """Return the rows of earlier runs."""
    if not OUT.is_file():
        return []
    known = json.loads(OUT.read_text())
    # Before rows named the machine that made them, the file did.
    return [{"machine": known.get("machine", ""), **row} for row in known["rows"]]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print what became of each pair."""
    table = Table("profile", "network", "recipe", "status", "MB", "s", "peak GB", "what the target says")
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
        peak = f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else ""
        said = row.get("error") or row.get("gate", "")
        seconds = f"{row.get('seconds', 0):.0f}"
        table.add_row(row["profile"], row["network"], row["recipe"], row["status"], size, seconds, peak, said)
    console.print(table)


def main() -> int:
    """Compile every pair that has no row yet, and return 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="*", help="Pattern of profiles.")
    parser.add_argument("--network", default="*", help="Pattern of networks.")
    parser.add_argument("--again", action="store_true", help="Make rows anew that are there.")
    parser.add_argument("--page", type=Path, help="Write this Markdown page from the rows, and compile nothing.")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(arguments.page, known_rows(), NETWORKS, PROFILES)
        return 0
    console, rows = Console(width=200), known_rows()
    for network, (prepare, _, _) in NETWORKS.items():
        for profile in PROFILES:
            if not (fnmatch.fnmatch(profile, arguments.profile) and fnmatch.fnmatch(network, arguments.network)):
                continue
            there = [row for row in rows if (row["profile"], row["network"]) == (profile, network)]
            if there and not arguments.again:
                continue
            try:
                case = prepare()
            except models.MissingDataError as error:
                console.print(f"{network} is left out: {error}")
                break
            rows = [row for row in rows if row not in there] + [compile_pair(profile, network, case)]
            show(rows[-1:], console)
            write_atomically(OUT, json.dumps({"rows": rows}, indent=2) + "\n")
    show(rows, console)
    return int(any(row["status"] == "failed" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
