"""A fake trtexec: it takes the words that the real one takes, and computes with ONNX Runtime on this machine.

Values in float16 are rounded to it, as TensorRT does. Times are made up: equal for all engines, or by their size and
halved by a CUDA graph (FAKE_TRTEXEC_BY_SIZE). Engines from a size on take no graph (FAKE_TRTEXEC_NO_GRAPH).
It proves that words, files and formats fit
together, and nothing about TensorRT. Each run is a process of its own, so only a build imports Edgesmith.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

ENGINE = b"fake engine of "
MADE_UP_TIMES_MS = [3.0, 1.0, 2.0]
HALF = [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}]
MADE_UP_LAYERS = [
    {"Name": "made-up product", "LayerType": "gemm", "Inputs": HALF, "Outputs": HALF},
    {"Name": "made-up pair", "LayerType": "Reformat", "Inputs": HALF, "Outputs": HALF, "Origin": "QDQ"},
]


def main() -> int:
    words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
    sys.stdout.write("&&&& RUNNING TensorRT.trtexec [TensorRT v00000-fake] # made up\n")
    if "help" in words:
        return 0
    if "onnx" in words:
        with Path(os.environ.get("FAKE_TRTEXEC_BUILT", os.devnull)).open("a") as built:
            built.write(hashlib.sha256(Path(words["onnx"]).read_bytes()).hexdigest() + "\n")
        Path(words["saveEngine"]).write_bytes(ENGINE + rounded(words["onnx"]))
        return 0
    engine = Path(words["loadEngine"]).read_bytes()
    if not engine.startswith(ENGINE):
        sys.stderr.write("[01/01/2001] [E] made-up error: this is no fake engine\n")
        return 1
    takes_graph = len(engine) < int(os.environ.get("FAKE_TRTEXEC_NO_GRAPH", sys.maxsize))
    if "useCudaGraph" in words and not takes_graph:
        sys.stdout.write("[01/01/2001] [W] made up: the flag has been ignored\n")
    if "exportLayerInfo" in words:
        Path(words["exportLayerInfo"]).write_text(json.dumps({"Layers": MADE_UP_LAYERS, "Bindings": []}))
        times = [{"name": layer["Name"], "averageMs": 1.0} for layer in MADE_UP_LAYERS]
        Path(words["exportProfile"]).write_text(json.dumps([{"count": 1}, *times]))
    if "exportTimes" in words:
        factor = len(engine) / 1e3 if os.environ.get("FAKE_TRTEXEC_BY_SIZE") else 1.0
        # A graph makes a run faster, so that times show whether there was one.
        made_up = [time * factor / (2 if factor != 1 and "useCudaGraph" in words else 1) for time in MADE_UP_TIMES_MS]
        times = [{"h2dMs": 9.0, "computeMs": time, "d2hMs": 9.0, "latencyMs": 18.0 + time} for time in made_up]
        Path(words["exportTimes"]).write_text(json.dumps(times))
    if "exportOutput" in words:
        Path(words["exportOutput"]).write_text(json.dumps(outputs(words)))
    return 0


def rounded(file: str) -> bytes:
    import onnx_ir as ir

    from edgesmith.execution.half_rounding import with_half_rounding

    return ir.to_proto(with_half_rounding(ir.load(file))).SerializeToString()


def outputs(words: dict[str, str]) -> list[dict]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    graph = Path(words["loadEngine"]).read_bytes().removeprefix(ENGINE)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    shapes = dict(part.split(":") for part in words["shapes"].split(","))
    feed = {
        name: np.fromfile(file, np.float32).reshape([int(size) for size in shapes[name].split("x")])
        for name, file in (part.split(":") for part in words["loadInputs"].split(","))
    }
    values = zip(session.get_outputs(), session.run(None, feed), strict=True)
    return [
        {
            "name": output.name,
            "dimensions": "x".join(map(str, array.shape)),
            "values": [float(f"{value:.6g}") for value in array.ravel()],
        }
        for output, array in values
    ]


if __name__ == "__main__":
    sys.exit(main())
