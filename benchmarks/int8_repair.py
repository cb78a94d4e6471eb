"""What each repair of `quantize-int8` is worth: distance of the outputs from float, and CPU time of one inference.

Rows are combinations of options, on the same data: calibration samples of the case, and outputs on evaluation samples.
Times are CPU time on one thread, in shuffled turns, which other work on the machine disturbs little.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks.models import minilm_r8, smollm2, vit_s14
from benchmarks.models.case import Case, MissingDataError

OUT = Path("build/bench/int8_repair")
CASES = {"minilm_r8": minilm_r8, "vit_s14": vit_s14, "smollm2": smollm2}
NONE = {"smoothing": False, "outlier_channels": 0, "bias_correction": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "no repair": NONE,
    "no repair, min-max": {**NONE, "range_estimator": "min-max"},
    "smoothing": {"outlier_channels": 0},
    "outliers": {"smoothing": False},
    "smoothing, outliers (default)": {},
    "default, second-order rounding": {"rounding": "second-order"},
    "default, at least 30 dB a product": {"minimum_sqnr_db": 30.0},
    "default, dynamic": {"mode": "dynamic"},
    "no repair, dynamic": {"mode": "dynamic", **NONE},
}
CALIBRATION, EVALUATION, TURNS = 16, 16, 15


def quantized(case: Case, options: dict[str, Any], file: Path) -> None:
    """Write the case's model, quantized with these options and lowered for ONNX Runtime."""
    import tempfile

    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.serialization import write_onnx
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import DIALECT, OnnxCpu
    from edgesmith_quantization.options.int8 import QuantizeInt8Options
    from edgesmith_quantization.quantize_int8 import QuantizeInt8

    model = Model(ir.load(case.model), Task(), Provenance(case.name, "onnx", case.name))
    with np.load(case.calibration) as archive:
        data = ArraySource({name: archive[name][:CALIBRATION] for name in archive.files if name != "labels"})
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        chosen = QuantizeInt8Options(samples=CALIBRATION, **options)
        result = QuantizeInt8().apply(model, Context(chosen, DIALECT, scratch, data))
        write_onnx(OnnxCpu().lower(result, Context(None, DIALECT, scratch, data)).ir, file)


def distance_db(case: Case, files: dict[str, Path]) -> dict[str, float]:
    """Return the signal-to-noise ratio of each file's first output on evaluation samples, against the float model."""
    from benchmarks.measuring import open_session

    with np.load(case.evaluation) as archive:
        arrays = {name: archive[name][:EVALUATION] for name in archive.files if name != "labels"}
    sessions = {name: open_session(str(file)) for name, file in files.items()}
    reference, signal, noise = open_session(str(case.model)), 0.0, dict.fromkeys(files, 0.0)
    for index in range(len(next(iter(arrays.values())))):
        feed = {name: array[index : index + 1] for name, array in arrays.items()}
        expected = reference.run(None, feed)[0]
        signal += float(np.square(expected, dtype=np.float64).sum())
        for name, session in sessions.items():
            noise[name] += float(np.square(session.run(None, feed)[0] - expected, dtype=np.float64).sum())
    return {name: 10 * float(np.log10(signal / error)) for name, error in noise.items()}


def main() -> None:
    """Measure the named cases and write table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="repeat for several; default: the first two")
    os.environ.setdefault("EDGESMITH_BENCH_THREADS", "1")
    from benchmarks.measuring import child_latency, quartiles, spread

    console, results = Console(), {}
    for name in parser.parse_args().case or list(CASES)[:2]:
        try:
            case = CASES[name]()
        except MissingDataError as error:
            console.print(f"{name} is left out. {error}")
            continue
        files = {}
        for variant, options in VARIANTS.items():
            files[variant] = OUT / name / f"{variant.replace(' ', '_').replace(',', '')}.onnx"
            files[variant].parent.mkdir(parents=True, exist_ok=True)
            quantized(case, options, files[variant])
        decibels = distance_db(case, files)
        models = {"float": str(case.model), **{variant: str(file) for variant, file in files.items()}}
        request = {"models": models, "data": str(case.evaluation), "turns": TURNS, "seed": 0, "cpu_time": True}
        times = child_latency(request)
        table = Table("options", "output against float, dB", "CPU time, ms", "float / this", title=name)
        for variant in files:
            ratios = [a / b for a, b in zip(times["float"], times[variant], strict=True)]
            table.add_row(
                variant, f"{decibels[variant]:.1f}", spread(quartiles(times[variant])), spread(quartiles(ratios))
            )
        console.print(table)
        results[name] = {"sqnr_db": decibels, "cpu_ms": times}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
