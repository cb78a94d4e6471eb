"""Where the time of one inference goes in ONNX Runtime: operators of a case's float model, and of a quantized file.

Both run in one session each with one thread and all graph optimizations; of each node the median over the runs counts.
Convolutions on codes are told apart by their weight.

    python -m benchmarks.quantization --case mobilenet_200 --tool 'edgesmith int8 static'
    folder=build/bench/quantization/mobilenet_200
    python -m benchmarks.operator_profile mobilenet_200 $folder/edgesmith-int8-static.onnx
"""

import argparse
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks import models

SUFFIX = "_kernel_time"


def kernel_times_us(path: Path, feeds: Mapping[str, np.ndarray], runs: int) -> dict[tuple[str, str], float]:
    """Return the median time of each node in microseconds, by its name and operator."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            times[event["name"].removesuffix(SUFFIX), event["args"]["op_name"]].append(event["dur"])
    return {node: statistics.median(durations) for node, durations in times.items()}


def kinds_of_convolutions(path: Path) -> dict[str, str]:
    """Return depthwise, pointwise or other for every QLinearConv of a file, by name."""
    graph = onnx.load(path).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    kinds = {}
    for node in graph.node:
        if node.op_type == "QLinearConv":
            _, inputs, *kernel = shapes[node.input[3]]
            pointwise = all(size == 1 for size in kernel)
            kinds[node.name] = "pointwise" if pointwise else "depthwise" if inputs == 1 else "other"
    return kinds


def show(path: Path, feeds: Mapping[str, np.ndarray], runs: int) -> None:
    """Print one row per kind of operator."""
    kinds, counts = kinds_of_convolutions(path), Counter[str]()
    sums: dict[str, float] = defaultdict(float)
    for (name, operator), median in kernel_times_us(path, feeds, runs).items():
        kind = f"{operator}, {kinds[name]}" if name in kinds else operator
        sums[kind] += median
        counts[kind] += 1
    total = sum(sums.values())
    table = Table("operator", "nodes", "microseconds", "share", title=f"{path.name}: {total:.0f} microseconds")
    for kind, time_us in sorted(sums.items(), key=lambda each: -each[1]):
        table.add_row(kind, str(counts[kind]), f"{time_us:.0f}", f"{100 * time_us / total:.1f} %")
    Console().print(table)


def main() -> None:
    """Profile the float model of a case and a quantized file on the case's first evaluation sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("quantized", type=Path)
    parser.add_argument("--runs", type=int, default=60)
    chosen = parser.parse_args()
    case = getattr(models, chosen.case)()
    with np.load(case.evaluation) as arrays:
        feeds = {name: arrays[name][:1] for name in arrays.files}
    for path in (case.model, chosen.quantized):
        show(path, feeds, chosen.runs)


if __name__ == "__main__":
    main()
