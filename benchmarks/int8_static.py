"""Static INT8 quantization beside onnxruntime.quantization: what the tool costs, and what comes out of it.

Each tool takes the same float file and the same calibration arrays to a quantized file, in a fresh process, from the
first import to the last byte; ours includes lowering and the check that the file loads. Tools take turns in shuffled
rounds, as do the latencies of what they wrote. Memory is the peak resident memory of the whole process. Both sides
calibrate sample by sample, which is what takes the peer least memory, with EDGESMITH_BENCH_THREADS threads (default:
all processors).

Goals: at most half the time and memory of the peer's percentile calibration and no more than its min-max;
accuracy and latency at least as good.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OURS, PERCENTILE, MINMAX = "edgesmith percentile", "onnxruntime percentile", "onnxruntime min-max"
TOOLS = (OURS, PERCENTILE, MINMAX)
OUT = Path("build/bench/int8_static.json")
THREADS = int(os.environ.get("EDGESMITH_BENCH_THREADS", os.cpu_count() or 1))


def quantize_with_edgesmith(model: Path, data: Mapping[str, np.ndarray], out: Path) -> None:
    """Write our INT8 file of `model` to `out`."""
    import onnx_ir as ir

    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import OnnxCpu
    from edgesmith_quantization.options.int8 import QuantizeInt8Options
    from edgesmith_quantization.quantize_int8 import QuantizeInt8

    target, source = OnnxCpu(), ArraySource(data)

    def context(options: Any) -> Context[Any]:
        return Context(options, target.dialect, out.parent, calibration=source, threads=THREADS)

    float_model = Model(ir.load(model), Task(), Provenance(str(model), "benchmark", ""))
    quantized = QuantizeInt8().apply(
        float_model, context(QuantizeInt8Options(range_estimator="percentile", samples=len(source)))
    )
    lowered = target.lower(quantized, context(None))
    folder = out.with_suffix("")
    folder.mkdir(exist_ok=True)
    build = target.build(lowered, folder)
    (folder / build.entry).replace(out)


def quantize_with_onnxruntime(method: str) -> Callable[[Path, Mapping[str, np.ndarray], Path], None]:
    """Return the peer with unsigned activations and signed weights per channel, its best setting on VNNI."""

    def run(model: Path, data: Mapping[str, np.ndarray], out: Path) -> None:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

        class SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.intra_op_num_threads = THREADS  # the peer has no option for it

        onnxruntime.SessionOptions = SessionOptions

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                count = len(next(iter(data.values())))
                self._batches = ({k: v[i : i + 1] for k, v in data.items()} for i in range(count))

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._batches, None)

        quantize_static(
            model,
            out,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            # For text, quantizing more than the products makes the peer slower and less accurate.
            op_types_to_quantize=["MatMul", "Gemm"] if "input_ids" in data else None,
        )

    return run


RUNNERS = {
    OURS: quantize_with_edgesmith,
    PERCENTILE: quantize_with_onnxruntime("Percentile"),
    MINMAX: quantize_with_onnxruntime("MinMax"),
}


def child_quantize(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one tool and return its peak memory."""
    with np.load(request["data"]) as archive:
        data = {name: archive[name] for name in archive.files if name != "labels"}
    RUNNERS[request["tool"]](Path(request["model"]), data, Path(request["out"]))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {"peak_bytes": peak}


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def child_latency(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return latencies in ms of one sample per model, taken in shuffled turns."""
    sessions = {name: _session(path) for name, path in request["models"].items()}
    with np.load(request["data"]) as archive:
        names = [entry.name for entry in next(iter(sessions.values())).get_inputs()]
        feed = {name: archive[name][:1] for name in names}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    generator = random.Random(request["seed"])
    for turn in range(request["turns"] + 5):
        for name in generator.sample(sorted(sessions), len(sessions)):
            started = time.perf_counter()
            sessions[name].run(None, feed)
            if turn >= 5:
                found[name].append((time.perf_counter() - started) * 1e3)
    return found


def child_accuracy(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracy in percent and the ratio of output to error in dB against the first model, for each model."""
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    labels, reference, found = arrays.pop("labels"), None, {}
    for name, path in request["models"].items():
        session = _session(path)
        batches = ({k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(labels)))
        logits = np.concatenate([session.run(None, batch)[0] for batch in batches]).astype(np.float64)
        reference = logits if reference is None else reference
        noise = np.square(logits - reference).sum()
        found[name] = {
            "accuracy_percent": float((logits.argmax(-1) == labels).mean() * 100),
            "sqnr_db": float(10 * np.log10(np.square(reference).sum() / noise)) if noise else None,
            "samples": len(labels),
        }
    return found


CHILDREN = {"quantize": child_quantize, "latency": child_latency, "accuracy": child_accuracy}


def _call(kind: str, **request: Any) -> tuple[float, dict[str, Any]]:
    """Run a child and return its wall time in seconds and its answer."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.int8_static", "--child", kind]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{kind} {request.get('tool', '')} failed:\n{done.stderr[-2000:]}")
    return seconds, json.loads(done.stdout.splitlines()[-1])


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


def measure(case: Any, rounds: int, turns: int) -> dict[str, Any]:
    """Return costs of each tool on a case, and quality and speed of what it wrote."""
    generator, folder = random.Random(0), case.model.parent
    outputs = {tool: str(folder / f"{tool.replace(' ', '-')}.onnx") for tool in TOOLS}
    seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    memory: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool in generator.sample(TOOLS, len(TOOLS)):
            spent, answer = _call(
                "quantize", tool=tool, model=str(case.model), data=str(case.calibration), out=outputs[tool]
            )
            seconds[tool].append(spent)
            memory[tool].append(answer["peak_bytes"])
    models = {"float": str(case.model), **outputs}
    latency: dict[str, list[float]] = {name: [] for name in models}
    for seed in range(rounds):
        _, answer = _call("latency", models=models, data=str(case.evaluation), seed=seed, turns=turns)
        for name, values in answer.items():
            latency[name].extend(values)
    _, quality = _call("accuracy", models=models, data=str(case.evaluation))
    result = {}
    for name in models:
        speedups = [a / b for a, b in zip(latency["float"], latency[name], strict=True)]
        result[name] = {"latency_ms": _quartiles(latency[name]), "speedup": _quartiles(speedups), **quality[name]}
        result[name]["size_bytes"] = Path(models[name]).stat().st_size
        if name in seconds:
            result[name] |= {"tool_seconds": _quartiles(seconds[name]), "tool_peak_bytes": _quartiles(memory[name])}
            against = {"time": seconds, "memory": memory}
            result[name]["ours_to_this"] = {
                key: _quartiles([a / b for a, b in zip(table[OURS], table[name], strict=True)])
                for key, table in against.items()
            }
    return result


def _show(name: str, result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def spread(entry: Mapping[str, float], scale: float = 1.0, digits: int = 2) -> str:
        low, median, high = (f"{entry[key] * scale:.{digits}f}" for key in ("low", "median", "high"))
        return f"{median} ({low}-{high})"

    table = Table("", "tool s", "tool MB", "ours/this time", "ours/this memory", "accuracy %", "SQNR dB", title=name)
    table.add_column("latency ms")
    table.add_column("speed-up")
    for tool, row in result.items():
        cost = ["", "", "", ""]
        if "tool_seconds" in row:
            cost = [spread(row["tool_seconds"], digits=1), spread(row["tool_peak_bytes"], 1e-6, 0)]
            cost += [spread(row["ours_to_this"][key]) for key in ("time", "memory")]
        sqnr = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        table.add_row(
            tool, *cost, f"{row['accuracy_percent']:.2f}", sqnr, spread(row["latency_ms"]), spread(row["speedup"])
        )
    Console(width=170).print(table)


def main() -> None:
    """Measure all cases that can be prepared, print a table each, and write `build/bench/int8_static.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="Times that each tool and latency process runs.")
    parser.add_argument("--turns", type=int, default=40, help="Latency samples per model and process.")
    parser.add_argument("--case", choices=("minilm", "mobilenet"), action="append")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](json.load(sys.stdin))))
        return
    from benchmarks import models

    results: dict[str, Any] = {"threads": THREADS, "rounds": options.rounds}
    for name in options.case or ("minilm", "mobilenet"):
        try:
            case = getattr(models, name)()
        except models.MissingDataError as error:
            print(f"{name} is left out. {error}")
            continue
        results[name] = measure(case, options.rounds, options.turns)
        _show(f"{name}, INT8 static, {THREADS} threads", results[name])
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
