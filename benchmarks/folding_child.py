"""Folds one model in a fresh process: `python -m benchmarks.folding_child`, asked on standard input."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.measuring import answer_parent, peak_bytes


def child_fold(request: Mapping[str, Any]) -> dict[str, Any]:
    """Remove or share blocks of one model and write it; return time, peak memory and what the step reported."""
    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.serialization import weight_bytes
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_folding.options.removal import RemoveBlocksOptions
    from edgesmith_folding.options.sharing import ShareBlocksOptions
    from edgesmith_folding.remove_blocks import RemoveBlocks
    from edgesmith_folding.share_blocks import ShareBlocks
    from edgesmith_onnxruntime.cpu import DIALECT

    model = Model(ir.load(request["model"]), Task(), Provenance("case", "onnx", "case"))
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    count = len(next(iter(arrays.values())))
    chosen = np.random.default_rng(request["seed"]).permutation(count)[: request["samples"]]
    data = ArraySource({name: array[chosen, : request.get("tokens")] for name, array in arrays.items()})
    started, cpu_started = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"seed": request["seed"], "threads": request["threads"]}
        if request["method"] == "share-blocks":
            sharing = Context(ShareBlocksOptions(**request["options"]), DIALECT, Path(folder), data, **settings)
            result, notes = ShareBlocks().apply(model, sharing), sharing.notes
        else:
            removal = Context(RemoveBlocksOptions(**request["options"]), DIALECT, Path(folder), data, **settings)
            result, notes = RemoveBlocks().apply(model, removal), removal.notes
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    file = Path(request["file"])
    _write(result.ir, file)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "file_bytes": sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*")),
        "unique_bytes": weight_bytes(result.ir),
        "remarks": notes.remarks,
    }


def child_cure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train a folded model towards its source with `recover` and write it; return time, memory and remarks."""
    from benchmarks.models.smollm2 import novel_tokens
    from edgesmith.host.context import Context
    from edgesmith.model import Model, Provenance
    from edgesmith.task import Task
    from edgesmith_calibration.sources import ArraySource
    from edgesmith_onnxruntime.cpu import DIALECT
    from edgesmith_recovery.options.recover import RecoverOptions
    from edgesmith_recovery.recover import Recover

    source, model = (
        Model(ir.load(request[key]), Task(), Provenance("case", "onnx", key)) for key in ("source", "model")
    )
    tokens = novel_tokens(request["count"], tokens=request["tokens"], seed=request["seed"])
    data = ArraySource({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    started, cpu_started = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        options, settings = RecoverOptions(**request["options"]), {key: request[key] for key in ("seed", "threads")}
        context = Context(options, DIALECT, Path(folder), data, source=source, **settings)
        result = Recover().apply(model, context)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    _write(result.ir, Path(request["file"]))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "remarks": context.notes.remarks,
    }


def child_memory(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return by how much the resident memory grows when ONNX Runtime loads one model and runs one short sample."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not request["prepacked"]:
        options.add_session_config_entry("session.disable_prepacking", "1")
    with np.load(request["data"]) as archive:
        arrays = {name: archive[name][:1, : request["tokens"]] for name in archive.files}
    before = _resident_bytes()
    session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    session.run(None, {entry.name: arrays[entry.name] for entry in session.get_inputs()})
    return {"resident_bytes": _resident_bytes() - before}


def _write(model: ir.Model, file: Path) -> None:
    """Write a model in place of what was there."""
    from edgesmith.serialization import write_onnx

    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    write_onnx(model, file)


def _resident_bytes() -> int:
    """Return the resident memory of this process now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    answer_parent({"fold": child_fold, "cure": child_cure, "memory": child_memory})
