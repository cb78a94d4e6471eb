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
    from edgesmith.serialization import write_onnx
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
    data = ArraySource({name: array[chosen] for name, array in arrays.items()})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"seed": request["seed"], "threads": request["threads"]}
        if request["method"] == "share-blocks":
            sharing = Context(ShareBlocksOptions(**request["options"]), DIALECT, Path(folder), data, **settings)
            result, notes = ShareBlocks().apply(model, sharing), sharing.notes
        else:
            removal = Context(RemoveBlocksOptions(**request["options"]), DIALECT, Path(folder), data, **settings)
            result, notes = RemoveBlocks().apply(model, removal), removal.notes
    seconds = time.perf_counter() - started
    file = Path(request["file"])
    write_onnx(result.ir, file)
    return {
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "file_bytes": sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*")),
        "remarks": notes.remarks,
    }


if __name__ == "__main__":
    answer_parent({"fold": child_fold})
