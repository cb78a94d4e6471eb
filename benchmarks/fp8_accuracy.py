"""Accuracy of eight-bit floats and integers on MiniLM and Reuters R8: same model, same texts, three calibration seeds.

Each seed calibrates every format with the same 64 of the 128 calibration texts; accuracy is that of all test texts, in
percent. FP8 is simulated: ONNX Runtime rounds to eight-bit floats and computes in float32. Texts are cut behind their
last token before they run, which changes no score, because padding is masked. What is scored is the built file.

Goals: E4M3 within 0.3 points of float, and never below INT8 per tensor.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import models
from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import OnnxCpu
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8

OUT = Path("build/bench/fp8_accuracy.json")
THREADS = int(os.environ.get("EDGESMITH_BENCH_THREADS", os.cpu_count() or 1))
SEEDS, CALIBRATION_TEXTS, BATCH = 3, 64, 16

_PLAIN: dict[str, Any] = {"smoothing": False, "bias_correction": False, "outlier_channels": 0}
FORMATS: dict[str, tuple[type[Any], Any]] = {
    "INT8 per tensor, min-max": (
        QuantizeInt8,
        QuantizeInt8Options(per_channel=False, range_estimator="min-max", **_PLAIN),
    ),
    "INT8 per channel, percentile": (QuantizeInt8, QuantizeInt8Options(percentile=99.99, **_PLAIN)),
    "INT8, defaults with repair": (QuantizeInt8, QuantizeInt8Options()),
    "E4M3": (QuantizeFp8, QuantizeFp8Options()),
    "E4M3 per tensor": (QuantizeFp8, QuantizeFp8Options(per_channel=False)),
    "E5M2": (QuantizeFp8, QuantizeFp8Options(format="e5m2")),
}

Arrays = Mapping[str, NDArray[Any]]


def built(name: str, model: Model, data: Arrays, seed: int, folder: Path) -> Path:
    """Return the file of the model in that format, calibrated on the texts of that seed, as it ships."""
    method, options = FORMATS[name]
    count = len(next(iter(data.values())))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:CALIBRATION_TEXTS])
    source = ArraySource({key: array[chosen] for key, array in data.items() if key != "labels"})
    target = OnnxCpu()

    def context(of: Any) -> Context[Any]:
        return Context(of, target.dialect, folder, calibration=source, threads=THREADS)

    lowered = target.lower(method().apply(model, context(options)), context(None))
    artifact = folder / "artifact"
    artifact.mkdir()
    return artifact / target.build(lowered, artifact).entry


def accuracy_percent(path: Path, data: Arrays) -> float:
    """Return the share of texts whose highest output is their label."""
    session = ReferenceSession(ir.load(path), optimization="all", threads=THREADS)
    output, hits = session.output_names[0], 0
    for batch in _batches(data):
        feeds = {name: batch[name] for name in session.input_names}
        hits += int((session.run(feeds)[output].argmax(-1) == batch["labels"]).sum())
    return 100 * hits / len(data["labels"])


def _batches(data: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield texts of like length together, cut behind the last token of the longest."""
    lengths = data["attention_mask"].sum(axis=1)
    for chosen in np.array_split(np.argsort(lengths, kind="stable"), -(-len(lengths) // BATCH)):
        longest = int(lengths[chosen].max())
        yield {key: array[chosen] if key == "labels" else array[chosen, :longest] for key, array in data.items()}


def main() -> None:
    """Print and store accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="Evaluate on the first texts only.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--format", choices=tuple(FORMATS), action="append", help="Only these; the file is then kept.")
    options = parser.parse_args()
    case = models.minilm_r8()
    with np.load(case.calibration) as archive:
        calibration = dict(archive)
    with np.load(case.evaluation) as archive:
        evaluation = {key: array[: options.samples] for key, array in archive.items()}
    model = Model(ir.load(case.model), Task(), Provenance(str(case.model), "benchmark", ""))
    reference = accuracy_percent(case.model, evaluation)
    results: dict[str, Any] = {"float": [reference], "texts": len(evaluation["labels"])}
    table = Table("format", "accuracy %, mean", "lowest to highest", "drop, points", title="MiniLM on Reuters R8")
    table.add_row("float", f"{reference:.2f}", "", "")
    for name in options.format or FORMATS:
        found = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                path = built(name, model, calibration, seed, Path(folder))
                found.append(accuracy_percent(path, evaluation))
        results[name] = found
        spread = f"{min(found):.2f} to {max(found):.2f}"
        table.add_row(name, f"{np.mean(found):.2f}", spread, f"{reference - np.mean(found):.2f}")
    if not options.format:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(results, indent=2))
    Console().print(table)


if __name__ == "__main__":
    main()
