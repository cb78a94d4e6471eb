"""The validator in an artifact for TensorRT runs the graph as it is written, without faults of ONNX Runtime."""

import json
import subprocess
import sys

import numpy as np

import edgesmith
from edgesmith.api import Settings
from edgesmith_tensorrt import gate
from small_graphs import convolution_in_float16


def test_the_validator_keeps_biases_beside_scales_in_float16(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_is_installed", lambda module: False)
    artifact = edgesmith.compile(
        convolution_in_float16(),
        out=tmp_path / "artifact",
        target="jetson-orin-nano",
        recipe="float",
        settings=Settings(threads=1, store=tmp_path / "store"),
    )
    with np.load(artifact.directory / "samples.npz") as samples:
        recorded = samples["output/y"]
    assert np.allclose(recorded.mean(axis=(0, 2, 3)), [1, 2, 3, 4], atol=0.1)
    done = subprocess.run(
        [sys.executable, "-I", str(artifact.directory / "validate.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["passed"]
    # Its float16 is that of float32, so it must not pass for a check of the device's numbers.
    assert "without its rounding" in answer["not_checked"]
