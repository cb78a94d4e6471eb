"""Bits against perplexity: SmolLM2-135M with weights of 8, 4 and 2 bits, by each rounding.

Perplexity is that of the shipped file in a default ONNX Runtime session, on text that nothing was calibrated on.
Stored bits count everything in the file: codes, scales, zero points, offsets, and what stayed in float. Latencies of a
batch of one sample are taken in shuffled rounds beside the float model, as ratios: in CPU time with one thread, which
other processes on the machine disturb less, and in wall time with more.

Run `python -m benchmarks.weight_only_curve`, with `--only` for rows whose name contains a text; results also go to
build/bench/weight_only_curve.json.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.models.case import Case, MissingDataError
from benchmarks.models.smollm2 import smollm2
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import OnnxCpu
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights

OUT = Path("build/bench/weight_only_curve.json")
ROUNDINGS = ("nearest", "mse", "second-order")
ROWS: dict[str, dict[str, object]] = {
    **{
        f"{bits} bits, {each}": {"bits": bits, "table_bits": 8, "rounding": each}
        for bits in (8, 4, 2)
        for each in ROUNDINGS
    },
    "4 bits, mse, offsets": {"bits": 4, "table_bits": 8, "offsets": True},
    "4 bits, mse, offsets, 36 dB": {"bits": 4, "table_bits": 8, "offsets": True, "minimum_sqnr_db": 36},
    "4 bits, mse, offsets, float inputs": {"bits": 4, "table_bits": 8, "offsets": True, "activations": "float"},
    "4 bits, mse, table too": {"bits": 4},
    "2 bits, second-order, blocks of 16": {"bits": 2, "table_bits": 8, "block_size": 16, "rounding": "second-order"},
    "2 bits, second-order, offsets": {
        "bits": 2,
        "table_bits": 8,
        "block_size": 16,
        "offsets": True,
        "rounding": "second-order",
    },
}
ROUNDS = 5


def write_quantized(case: Case, options: dict[str, object], folder: Path, threads: int) -> Path:
    """Quantize and lower the float model of a case; return the written file."""
    with np.load(case.calibration) as arrays:
        source = ArraySource(dict(arrays))
    target = OnnxCpu()

    def context(values: Any) -> Context[Any]:
        return Context(values, target.dialect, folder, calibration=source, threads=threads)

    model = QuantizeWeights().apply(Model.load(case.model), context(QuantizeWeightsOptions.model_validate(options)))
    artifact = folder / "artifact"
    artifact.mkdir()
    return artifact / target.build(target.lower(model, context(None)), artifact).entry


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session with default options but for its threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def perplexity(runner: onnxruntime.InferenceSession, arrays: dict[str, np.ndarray]) -> float:
    """Return the perplexity of the next token over all samples."""
    loss = count = 0.0
    for index in range(len(arrays["input_ids"])):
        feeds = {name: array[index : index + 1] for name, array in arrays.items()}
        logits = runner.run(None, feeds)[0][0, :-1].astype(np.float64)
        targets = feeds["input_ids"][0, 1:]
        highest = logits.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        loss += float((normalizer - logits[np.arange(len(targets)), targets]).sum())
        count += len(targets)
    return float(np.exp(loss / count))


def latency_ratio(
    runner: onnxruntime.InferenceSession, float_runner: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]
) -> float:
    """Return the median of float time over quantized time, in shuffled rounds."""
    clock = time.process_time if runner.get_session_options().intra_op_num_threads == 1 else time.perf_counter
    runners, ratios = [runner, float_runner], []
    for each in runners:
        each.run(None, feeds)
    for _ in range(ROUNDS):
        seconds = {}
        for each in random.sample(runners, 2):
            started = clock()
            each.run(None, feeds)
            seconds[each] = clock() - started
        ratios.append(seconds[float_runner] / seconds[runner])
    return statistics.median(ratios)


def stored_bits(path: Path, parameters: int) -> float:
    """Return the bits of a file, and of its weights beside it, per weight of the float model."""
    return sum(file.stat().st_size for file in path.parent.iterdir()) * 8 / parameters


def main() -> int:
    """Print one row per form and return 1 if the case is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--samples", type=int, help="Evaluation samples of 512 tokens; default: all.")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    console = Console()
    try:
        case = smollm2()
    except MissingDataError as error:
        console.print(str(error))
        return 1
    with np.load(case.evaluation) as loaded:
        arrays = {name: loaded[name][: arguments.samples] for name in ("input_ids", "attention_mask")}
    float_runner = session(case.model, arguments.threads)
    graph = ir.load(case.model).graph
    parameters = sum(v.const_value.size for v in graph.initializers.values() if v.const_value is not None)
    table = Table("weights", "perplexity", "bits per weight", "512 tokens", "1 token", "seconds to make")
    results: dict[str, Any] = {"float": {"perplexity": perplexity(float_runner, arrays)}}
    table.add_row("float", f"{results['float']['perplexity']:.2f}", "32", "1.00", "1.00", "-")
    whole = {name: array[:1] for name, array in arrays.items()}
    token = {name: array[:1, :1] for name, array in arrays.items()}
    for name, options in ROWS.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            path = write_quantized(case, options, Path(folder), arguments.threads)
            seconds = time.perf_counter() - started
            runner = session(path, arguments.threads)
            row = {
                "perplexity": perplexity(runner, arrays),
                "bits": stored_bits(path, parameters),
                "ratio_512": latency_ratio(runner, float_runner, whole),
                "ratio_1": latency_ratio(runner, float_runner, token),
                "seconds": seconds,
            }
        results[name] = {**row, "options": options}
        cells = f"{row['perplexity']:.2f}", f"{row['bits']:.2f}", f"{row['ratio_512']:.2f}x", f"{row['ratio_1']:.2f}x"
        table.add_row(name, *cells, f"{seconds:.0f}")
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(results, indent=2))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
