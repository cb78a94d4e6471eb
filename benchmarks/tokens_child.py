"""What `benchmarks.tokens` does in processes of their own: reduce a model by some steps, and time models in batches."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.measuring import THREADS, answer_parent, open_session, peak_bytes, timed_turns


def child_reduce(request: Mapping[str, Any]) -> dict[str, Any]:
    """Apply steps to one model and write it; return time, peak memory, MACs and what the steps reported.

    Calibration samples are drawn anew for each seed. Labels go along; steps use them only where their options say so.
    """
    from edgesmith.graph.cost import count_cost
    from edgesmith.host.context import Context
    from edgesmith.host.loader import load_registry
    from edgesmith.model import Model, Provenance
    from edgesmith.serialization import write_onnx
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import DIALECT

    registry = load_registry(plugins=False)
    source = model = Model(ir.load(request["model"]), Task(), Provenance("case", "onnx", "case"))
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    drawn = np.random.default_rng(request["seed"]).permutation(len(arrays["labels"]))[: request["samples"]]
    labels = arrays.pop("labels")[drawn]
    data = ArraySource({name: array[drawn] for name, array in arrays.items()}, labels=labels)
    remarks: list[str] = []
    started = time.perf_counter()
    for name, options in request["steps"]:
        record = registry.method(name)
        with tempfile.TemporaryDirectory() as folder:
            context = Context(
                registry.validate_options(record, options),
                DIALECT,
                Path(folder),
                calibration=data,
                seed=request["seed"],
                threads=THREADS,
                source=source,
            )
            method = registry.load(record)()
            verdict = method.check(model, context)
            if verdict.status != "ok":
                raise SystemExit(f"{name}: {verdict.reason}")
            model = method.apply(model, context)
        remarks += context.notes.remarks
    seconds = time.perf_counter() - started
    write_onnx(model.ir, Path(request["file"]))
    macs = count_cost(model.ir).macs
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "macs": macs, "remarks": remarks}


def child_throughput(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds of each model for one batch, taken in shuffled turns; CPU time if `cpu_time` is set."""
    found = timed_turns(request, request["batch"])
    return {"seconds": found, "medians": {name: statistics.median(each) for name, each in found.items()}}


def child_accuracy(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the share of evaluation samples that a model classifies as their labels say, in percent."""
    session = open_session(request["model"])
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name][: request["samples"]] for name in archive.files}
    labels, size = arrays.pop("labels"), request["batch"]
    right = 0
    for start in range(0, len(labels), size):
        feed = {name: array[start : start + size] for name, array in arrays.items()}
        right += int((session.run(None, feed)[0].argmax(-1) == labels[start : start + size]).sum())
    return {"accuracy_percent": 100 * right / len(labels), "samples": len(labels)}


if __name__ == "__main__":
    answer_parent({"reduce": child_reduce, "throughput": child_throughput, "accuracy": child_accuracy})
