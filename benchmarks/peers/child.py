"""Runs one tool in a fresh process: `python -m benchmarks.peers.child`, asked on standard input."""

import importlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import THREADS, answer_parent, peak_bytes
from benchmarks.peers import Job


def child_quantize(request: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize `calls` times; return seconds of the last call, peak memory in bytes, and the packages that did it."""
    logging.disable(logging.WARNING)
    if request["tool"] != "edgesmith":  # ours has an option for it
        _limit_threads()
    tool = importlib.import_module(f"benchmarks.peers.{request['tool']}")
    with np.load(request["data"]) as archive:
        names = [name for name in archive.files if name != "labels"]
        data = {name: archive[name][: request["samples"]] for name in names}
    model, out = Path(request["model"]).resolve(), Path(request["out"]).resolve()
    # Some tools leave files of their own where they run.
    os.chdir(out.parent)
    seconds = 0.0
    for _ in range(request["calls"]):
        started = time.perf_counter()
        tool.quantize(Job(model, data, out, request["settings"]))
        seconds = time.perf_counter() - started
    versions = {name: _version(name) for name in tool.PACKAGES}
    return {"call_seconds": seconds, "peak_bytes": peak_bytes(), "versions": versions}


def _limit_threads() -> None:
    """Let every session of ONNX Runtime in this process use `THREADS` threads: peers have no option for it."""
    import onnxruntime

    original = onnxruntime.InferenceSession

    class InferenceSession(original):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, **options: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = THREADS
            super().__init__(model, sess_options, **options)

    onnxruntime.InferenceSession = InferenceSession


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    answer_parent({"quantize": child_quantize})
