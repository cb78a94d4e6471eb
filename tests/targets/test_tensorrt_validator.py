"""The validator in an artifact for TensorRT runs the graph as it is written, without faults of ONNX Runtime."""

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir

import edgesmith
from edgesmith.api import Settings
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_tensorrt import gate

SMALLEST = 2.0**-24
"""The smallest number in float16. Times another scale below one, it is zero there."""


def convolution_with_bias() -> Model:
    """A quantized convolution whose bias ONNX Runtime loses in float16 from its level "basic" on."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (float16[1, 3, 2, 2] x) => (float16[1, 4, 2, 2] y)
    <int8 zero = {0}, int8[4, 3, 1, 1] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
        scale = Constant<value = float16 {11264}>()
        small = Constant<value = float16 {1}>()
        bias = Constant<value = float16[4] {15360, 16384, 16896, 17408}>()
        code = QuantizeLinear(x, scale, zero)
        activation = DequantizeLinear(code, scale)
        weight = DequantizeLinear(w, small)
        product = Conv(activation, weight, bias)
        rounded = QuantizeLinear(product, scale, zero)
        y = DequantizeLinear(rounded, scale)
    }""")
    return Model(model, Task(), Provenance("made here", "test", ""))


def test_the_validator_keeps_biases_beside_scales_in_float16(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_is_installed", lambda module: False)
    artifact = edgesmith.compile(
        convolution_with_bias(),
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
    assert done.returncode == 0 and json.loads(done.stdout)["passed"], done.stdout + done.stderr
