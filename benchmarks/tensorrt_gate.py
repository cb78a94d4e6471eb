"""Real networks in every format through NVIDIA's own compiler: what TensorRT for RTX builds for which card.

Each network is quantized for the newest card, lowered once, and handed to the compiler for compute capabilities 8.6,
8.9 and 12.0. No GPU is needed, and none is used: this shows which graphs parse and build, and nothing about speed.
Calibration is short, since the form of a graph does not depend on it; the scores of these graphs mean nothing.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks import models
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Target
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_calibration.sources import ArraySource
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_weights import QuantizeWeights
from edgesmith_tensorrt.build_recipe import record_shapes
from edgesmith_tensorrt.gate import ask_compiler, build_here
from edgesmith_tensorrt.precision import lower_to_half

OUT = Path("build/bench/tensorrt_gate.json")
CARDS = ("rtx-30", "rtx-40", "rtx-50")
LOWERED_FOR = "rtx-50"
SAMPLES, TOKENS = 4, 64

_PLAIN: dict[str, Any] = {"smoothing": False, "bias_correction": False, "outlier_channels": 0}
FORMATS: Mapping[str, tuple[Callable[[], Any] | None, Any]] = {
    "float16": (None, None),
    "INT8": (QuantizeInt8, QuantizeInt8Options(**_PLAIN)),
    "FP8": (QuantizeFp8, QuantizeFp8Options()),
    "INT4 weights": (QuantizeWeights, QuantizeWeightsOptions(bits=4, block_size=32)),
}
CASES: Mapping[str, Callable[[], models.Case]] = {
    "MobileNetV2": models.mobilenet,
    "MiniLM-L6": models.minilm,
    "ViT-S/14": models.vit_s14,
    "SmolLM2-135M": models.smollm2,
}


def build_all(case: models.Case, name: str) -> list[dict[str, Any]]:
    """Return a row for each format of one network."""
    rows = []
    for form, (method, options) in FORMATS.items():
        started = time.perf_counter()
        try:
            row = build_one(case, method, options)
        except Exception as error:  # noqa: BLE001  a format that fails is a row of the table, with its reason
            row = {"remarks": [f"{type(error).__name__}: {error}"], "cards": {}}
        rows.append({"network": name, "format": form, "seconds": time.perf_counter() - started, **row})
    return rows


def build_one(case: models.Case, method: Callable[[], Any] | None, options: Any) -> dict[str, Any]:
    """Quantize, lower, and build for each card."""
    registry = load_registry()
    target = find_target(registry, LOWERED_FOR)[1]
    arrays = short_samples(case)
    model = Model(ir.load(case.model), Task(), Provenance(case.name, "benchmark", ""))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(None, target.dialect, Path(folder), calibration=ArraySource(arrays), threads=1)
        if method is not None:
            chosen = Context(options, target.dialect, Path(folder), calibration=ArraySource(arrays), threads=1)
            model = method().apply(model, chosen)
        lowered = model.with_ir(lower_to_half(model.ir, context))
        record_shapes(lowered)
        (built := Path(folder) / "files").mkdir()
        target.build(lowered, built)
        cards = {card: build_for(find_target(registry, card)[1], built) for card in CARDS}
    return {"remarks": context.notes.remarks, "cards": cards}


def build_for(target: Target, folder: Path) -> dict[str, Any]:
    """Return what the compiler says of the files in `folder` for one card."""
    assert target.profile is not None
    answer = ask_compiler(folder, target.profile)
    facts = build_here(folder, target.profile) if answer.status == "built" else {}
    return {
        "status": answer.status,
        "compiler": answer.compiler,
        "layers": answer.layers,
        "seconds": facts.get("seconds"),
        "bytes": facts.get("bytes"),
        "message": answer.message,
        "nodes": answer.nodes[:3],
    }


def short_samples(case: models.Case) -> dict[str, np.ndarray]:
    """Return a few calibration samples, texts cut short."""
    with np.load(case.calibration) as data:
        arrays = {name: data[name][:SAMPLES] for name in data.files if name != "labels"}
    return {name: array[:, :TOKENS] if array.ndim == 2 else array for name, array in arrays.items()}


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table, and what stands in the way of each rejected build."""
    table = Table("network", "format", *(f"{card} layers, MB, s" for card in CARDS))
    for row in rows:
        cells = []
        for card in CARDS:
            found = row["cards"].get(card, {"status": "failed", "message": row["remarks"][0] if row["remarks"] else ""})
            if found["status"] == "built":
                cells.append(f"{found['layers']}, {found['bytes'] / 1e6:.1f}, {found['seconds']:.1f}")
            else:
                cells.append(f"{found['status']}: {found['message'][:60]}")
        table.add_row(row["network"], row["format"], *cells)
    console.print(table)


def main() -> None:
    """Build everything and write the rows with their date and versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Part of the name of one network.")
    arguments = parser.parse_args()
    os.environ.setdefault("EDGESMITH_STORE", "build/bench/store")
    console, rows = Console(width=160), known_rows()
    for name, prepare in CASES.items():
        if arguments.only.lower() not in name.lower():
            continue
        try:
            rows = [row for row in rows if row["network"] != name] + build_all(prepare(), name)
        except models.MissingDataError as error:
            console.print(f"{name} is left out: {error}")
            continue
        show(rows, console)
        OUT.parent.mkdir(parents=True, exist_ok=True)
        content = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine(), "rows": rows}
        OUT.write_text(json.dumps(content, indent=2) + "\n")


def known_rows() -> list[dict[str, Any]]:
    """Return the rows of an earlier run, so that one network can be built again alone."""
    return list(json.loads(OUT.read_text())["rows"]) if OUT.is_file() else []


if __name__ == "__main__":
    main()
