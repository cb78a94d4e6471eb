"""What `benchmarks.sparsity` does in processes of their own: prune a model, and compare its layers."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import THREADS, answer_parent, peak_bytes
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.unpadded import used_length
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import OnnxCpu
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.prune_weights import PruneWeights

COMPARED = 8
"""Evaluation samples on which all layers are compared."""


def child_prune(request: Mapping[str, Any]) -> dict[str, Any]:
    """Prune one model and write it; return the errors that the method reports, and what it took."""
    with np.load(request["calibration"]) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    count = len(next(iter(arrays.values())))
    chosen = np.sort(np.random.default_rng(request["seed"]).permutation(count)[: count * 3 // 4])
    source = ArraySource({name: array[chosen] for name, array in arrays.items()})
    options = PruneWeightsOptions.model_validate(request["options"])
    model = Model.load(request["model"])
    with tempfile.TemporaryDirectory() as folder:
        dialect = OnnxCpu().dialect
        context = Context(options, dialect, Path(folder), calibration=source, seed=request["seed"], threads=THREADS)
        started = time.perf_counter()
        result = PruneWeights().apply(model, context)
        seconds = time.perf_counter() - started
    result.save(request["out"])
    return {"seconds": seconds, "bytes": peak_bytes(), "remarks": context.notes.remarks}


def child_error(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean and largest relative squared error of the layers whose weights differ, without padding."""
    models = [Model.load(request[key]).ir for key in ("dense", "pruned")]
    weights = [{name: value.const_value for name, value in each.graph.initializers.items()} for each in models]
    changed = {name for name in weights[0] if not np.array_equal(weights[0][name].numpy(), weights[1][name].numpy())}
    layers = [node for node in models[0].graph if len(node.inputs) > 1 and node.inputs[1].name in changed]
    taps = [node.outputs[0].name for node in layers if node.op_type in ("MatMul", "Gemm", "Conv")]
    sessions = [ReferenceSession(each, taps=taps, threads=THREADS) for each in models]
    errors, powers = np.zeros(len(taps)), np.zeros(len(taps))
    with np.load(request["evaluation"]) as archive:
        arrays = {name: archive[name][:COMPARED] for name in sessions[0].input_names}
    for index in range(COMPARED):
        shown = used_length(arrays["attention_mask"][index : index + 1]) if "attention_mask" in arrays else None
        feed = {name: array[index : index + 1, :shown] for name, array in arrays.items()}
        dense, pruned = (each.run(feed) for each in sessions)
        for at, tap in enumerate(taps):
            errors[at] += np.square(dense[tap] - pruned[tap], dtype=np.float64).sum()
            powers[at] += np.square(dense[tap], dtype=np.float64).sum()
    relative = errors / powers * 100
    return {"error_percent": float(relative.mean()), "worst_percent": float(relative.max())}


if __name__ == "__main__":
    answer_parent({"prune": child_prune, "error": child_error})
