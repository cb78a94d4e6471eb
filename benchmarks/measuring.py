"""What benchmarks measure with: tools in fresh processes, latencies in shuffled turns, quality on held-out data.

Runs as `python -m benchmarks.measuring` in the processes that it starts.
"""

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

THREADS = int(os.environ.get("EDGESMITH_BENCH_THREADS", os.cpu_count() or 1))
WARM_UP_TURNS = 3

Child = Callable[[Mapping[str, Any]], dict[str, Any]]


class ChildError(Exception):
    """A process that was started to do one thing failed; the message is the last line that it wrote."""


def call_child(
    module: str, kind: str, *, python: str | Path = sys.executable, limit_s: float | None = None, **request: Any
) -> tuple[float, dict[str, Any]]:
    """Run one child of `module` in a fresh process and return its wall time in seconds and its answer.

    Raises:
        ChildError: It failed, or took longer than `limit_s`.
    """
    started = time.perf_counter()
    command = [str(python), "-m", module]
    text = json.dumps({"kind": kind, **request})
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"stopped after {limit_s:.0f} s") from error
    seconds = time.perf_counter() - started
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        killed = f"killed by signal {-done.returncode}" if done.returncode < 0 else "failed without a message"
        raise ChildError(next((line for line in reversed(lines) if not line.startswith(" ")), killed)[:1000])
    return seconds, json.loads(done.stdout.splitlines()[-1])


def answer_parent(children: Mapping[str, Child]) -> None:
    """Do what the parent asked for on standard input, and print the answer as the last line."""
    request = json.load(sys.stdin)
    answer = children[request["kind"]](request)
    print("\n" + json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median, lower and upper quartile, and how many values they are of."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


def spread(entry: Mapping[str, float], scale: float = 1.0, digits: int = 2) -> str:
    """Return "median (lower-upper quartile)"."""
    low, median, high = (f"{entry[key] * scale:.{digits}f}" for key in ("low", "median", "high"))
    return f"{median} ({low}-{high})"


def open_session(path: str, level: str = "all") -> Any:
    """Return a session of ONNX Runtime with `THREADS` threads, at optimization level "all" or "basic"."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def child_latency(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return latencies in ms of the first sample per model, taken in shuffled turns; CPU time if `cpu_time` is set."""
    return {name: [1e3 * each for each in found] for name, found in timed_turns(request, 1).items()}


def timed_turns(request: Mapping[str, Any], batch: int) -> dict[str, list[float]]:
    """Return the seconds that each model takes for the first samples, models in another order each turn.

    Args:
        request: `models` by name, `data`, `turns`, `seed`; CPU time if `cpu_time` is set; `level` of optimization.
        batch: Samples per run.
    """
    clock = time.process_time if request.get("cpu_time") else time.perf_counter
    sessions = {name: open_session(path, request.get("level", "all")) for name, path in request["models"].items()}
    with np.load(request["data"]) as archive:
        names = [entry.name for entry in next(iter(sessions.values())).get_inputs()]
        feed = {name: archive[name][:batch] for name in names}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    generator = random.Random(request["seed"])
    for turn in range(request["turns"] + WARM_UP_TURNS):
        for name in generator.sample(sorted(sessions), len(sessions)):
            started = clock()
            sessions[name].run(None, feed)
            if turn >= WARM_UP_TURNS:
                found[name].append(clock() - started)
    return found


def child_quality(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the case's metric of one model, sample by sample, and how far its outputs are from the reference.

    The request names `model`, `data`, `metric`, `level`, `samples` (none: all), and a file `reference` with the float
    model's outputs: written if `write_reference` is set, otherwise read. Perplexity is without reference.
    """
    session, metric = open_session(request["model"], request.get("level", "all")), request["metric"]
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name][: request.get("samples")] for name in archive.files}
    labels, count = arrays.pop("labels", None), len(next(iter(arrays.values())))
    names = {entry.name for entry in session.get_inputs()}
    outputs, surprise = [], 0.0
    for index in range(count):
        feed = {name: array[index : index + 1] for name, array in arrays.items() if name in names}
        output = session.run(None, feed)[0]
        if metric == "perplexity":
            surprise += _surprise(output[0, :-1], arrays["input_ids"][index, 1:])
        else:
            outputs.append(output)
    found: dict[str, Any] = {"samples": count}
    if metric == "perplexity":
        return found | {"perplexity": float(np.exp(surprise / count))}
    found["sqnr_db"] = _compare(np.concatenate(outputs), Path(request["reference"]), request["write_reference"])
    if metric == "accuracy":
        found["accuracy_percent"] = float((np.concatenate(outputs).argmax(-1) == labels).mean() * 100)
    return found


def _surprise(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log likelihood of `targets` [tokens] under `logits` [tokens, vocabulary], in nats."""
    logits = logits.astype(np.float32)
    highest = logits.max(-1)
    normalizer = np.log(np.exp(logits - highest[:, None]).sum(-1)) + highest
    return float((normalizer - logits[np.arange(len(targets)), targets]).mean())


def _compare(outputs: np.ndarray, reference: Path, write: bool) -> float | None:
    """Return signal to error in dB against the reference's outputs; none where there is no error."""
    if write:
        np.save(reference, outputs)
        return None
    expected = np.load(reference).astype(np.float64)
    noise = np.square(outputs - expected).sum()
    return float(10 * np.log10(np.square(expected).sum() / noise)) if noise else None


if __name__ == "__main__":
    answer_parent({"latency": child_latency, "quality": child_quality})
