"""Prunes one model in a fresh process: `python -m benchmarks.structure_child`, asked on standard input."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.measuring import answer_parent, peak_bytes


def child_prune(request: Mapping[str, Any]) -> dict[str, Any]:
    """Prune one model and write it; return times, peak memory and what is left of MACs and parameters."""
    from edgesmith.graph.cost import count_cost
    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.serialization import write_onnx
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import DIALECT
    from edgesmith_pruning.options.structure import PruneStructureOptions
    from edgesmith_pruning.prune_structure import PruneStructure

    model = Model(ir.load(request["model"]), Task(), Provenance("case", "onnx", "case"))
    generator = np.random.default_rng(request["seed"])
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    count = len(next(iter(arrays.values())))
    chosen = generator.permutation(count)[: request["samples"]]
    data = ArraySource({name: array[chosen] for name, array in arrays.items()})
    options = PruneStructureOptions(samples=request["samples"], **request["options"])
    with tempfile.TemporaryDirectory() as folder:
        started, busy = time.perf_counter(), time.process_time()
        context = Context(options, DIALECT, Path(folder), data, seed=request["seed"], threads=request["threads"])
        result = PruneStructure().apply(model, context)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    write_onnx(result.ir, Path(request["file"]))
    before, after = count_cost(model.ir), count_cost(result.ir)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "macs": after.macs / before.macs,
        "parameters": after.parameters / before.parameters,
        "remarks": context.notes.remarks,
    }


if __name__ == "__main__":
    answer_parent({"prune": child_prune})
