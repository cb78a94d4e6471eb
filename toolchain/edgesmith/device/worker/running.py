"""Times a model and runs it on every batch."""

import importlib
import time
from contextlib import nullcontext
from pathlib import Path

from .archive import ArrayArchive, Facts, read_batch
from .loadgen import run_scenario
from .machine import cool_down, cuda_library, locked_clocks, power_log, read_text, state, waited_seconds
from .model import WorkerModel
from .onnx_runtime import OnnxRuntimeModel
from .tensor_rt import Cuda, TensorRTModel


def open_model(request: Facts, folder: Path) -> WorkerModel:
    """Return the model that a request names, ready to run."""
    path = folder / request["model"]
    if request["runtime"] == "onnxruntime":
        return OnnxRuntimeModel(
            path, request["threads"], as_written=request["as_written"], alone="models" not in request
        )
    library = cuda_library()
    if library is None:
        raise RuntimeError("CUDA's runtime library (libcudart) is not found, so no buffers can be made on the GPU")
    return TensorRTModel(path, importlib.import_module(request["runtime"]), Cuda(library))


def run(request: Facts, folder: Path) -> Facts:
    """Time the model on the first batch, run it on all batches, and return what was seen."""
    import numpy

    model = open_model(request, folder)
    waited = cool_down(request["cool_below_celsius"]) if request["cool_below_celsius"] else 0.0
    log, names = folder / "tegrastats.txt", request["inputs"]
    clocks = locked_clocks(folder) if request["lock_clocks"] else nullcontext("")
    with numpy.load(folder / "inputs.npz", allow_pickle=False) as archive:
        model.set_inputs(read_batch(archive, 0, names))
        with clocks as clock_problem:
            before = state()
            with power_log(log):
                waiting, started = waited_seconds(), time.perf_counter()
                times = model.times(request)
                waiting = (waited_seconds() - waiting) / (time.perf_counter() - started)
            after = state()
            loadgen = run_scenario(model, archive, request, folder, times) if request["loadgen"] else ""
        with ArrayArchive(folder / "outputs.npz") as written:
            for index in range(request["batches"]):
                model.set_inputs(read_batch(archive, index, names))
                written.add(index, model.outputs())
        layers, layer_times = model.describe()
        taps = _read_taps(request, archive, folder) if request["tapped_model"] else []
    return {
        "outputs": model.names,
        "times_ms": times,
        "before": before,
        "after": after,
        "tegrastats": read_text(log)[-200_000:],
        "waiting_share": min(waiting, 1.0),
        "cooling_seconds": waited,
        "clock_problem": clock_problem,
        "engine_layers": layers,
        "engine_times": layer_times,
        "taps": taps,
        "loadgen": loadgen,
        **model.facts,
    }


def _read_taps(request: Facts, inputs: object, folder: Path) -> list[str]:
    """Run the graph whose inner values are outputs on the first batches, and keep them all; return their names."""
    path = folder / request["tapped_model"]
    tapped = OnnxRuntimeModel(path, request["threads"], as_written=request["as_written"])
    with ArrayArchive(folder / "taps.npz") as written:
        for index in range(request["tapped_batches"]):
            tapped.set_inputs(read_batch(inputs, index, request["inputs"]))
            written.add(index, tapped.outputs())
    return tapped.names
