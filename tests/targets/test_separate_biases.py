"""Biases beside scales in float16: reference, artifact and a user of ONNX Runtime see the same outputs."""

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import edgesmith
from edgesmith.api import Settings
from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_onnxruntime.separate_biases import separate_biases
from small_graphs import convolution_in_float16

BIASES = np.array([1, 2, 3, 4], np.float16)
# 2**-24, the smallest number of float16, whose product with the scale of the inputs, 2**-4, is zero.
PRODUCTS = {
    "Conv": ("1, 3, 2, 2", "int8[4, 3, 1, 1]", "product = Conv(activation, weight, bias)"),
    "ConvTranspose": ("1, 3, 2, 2", "int8[3, 4, 1, 1]", "product = ConvTranspose(activation, weight, bias)"),
    "convolution of sounds": ("1, 3, 5", "int8[4, 3, 1]", "product = Conv(activation, weight, bias)"),
    "Gemm": ("2, 3", "int8[3, 4]", "product = Gemm(activation, weight, bias)"),
    "Gemm with a factor": ("2, 3", "int8[3, 4]", "product = Gemm<beta = 0.5>(activation, weight, bias)"),
    "MatMul": ("2, 3", "int8[3, 4]", "sums = MatMul(activation, weight) product = Add(sums, bias)"),
    "MatMul, bias first": ("2, 3", "int8[3, 4]", "sums = MatMul(activation, weight) product = Add(bias, sums)"),
}


def quantized(shape, weight, nodes, scale_type="float16"):
    ones = ", ".join("1" * 12)
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 20]>
    g ({scale_type}[{shape}] x) => ({scale_type} y)
    <int8 zero = {{0}}, {weight} w = {{{ones}}}, {scale_type} scale = {{1}}, {scale_type} small = {{1}},
     {scale_type}[4] bias = {{1, 2, 3, 4}}> {{
        code = QuantizeLinear(x, scale, zero)
        activation = DequantizeLinear(code, scale)
        weight = DequantizeLinear(w, small)
        {nodes}
        rounded = QuantizeLinear(product, scale, zero)
        y = DequantizeLinear(rounded, scale)
    }}""")
    dtype = np.float16 if scale_type == "float16" else np.float32
    for name, values in {"scale": 2.0**-4, "small": 2.0**-24, "bias": BIASES}.items():
        model.graph.initializers[name].const_value = ir.tensor(np.asarray(values, dtype), name=name)
    return Model(model, Task(), Provenance("made here", "test", ""))


def as_users_run_it(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("form", PRODUCTS)
def test_biases_that_onnx_runtime_loses_are_kept(form, tmp_path):
    model = quantized(*PRODUCTS[form])
    inputs = {"x": np.ones([int(size) for size in PRODUCTS[form][0].split(",")], np.float16)}
    expected = ReferenceSession(model.ir).run(inputs)["y"]
    channels = np.moveaxis(expected, 1, -1).reshape(-1, 4)
    np.testing.assert_array_equal(channels[0], BIASES * (0.5 if "factor" in form else 1))
    _, target = find_target(load_registry(), "onnx-cpu")
    before = ir.to_proto(model.ir).SerializeToString()
    build = target.build(model, tmp_path)
    assert build.recipe["separate_biases"] == 1
    assert ir.to_proto(model.ir).SerializeToString() == before
    np.testing.assert_array_equal(as_users_run_it(tmp_path / build.entry, inputs), expected)


def test_qualcomms_phones_get_biases_apart_too(tmp_path):
    _, target = find_target(load_registry(), "android-qnn")
    build = target.build(quantized(*PRODUCTS["Conv"]), tmp_path)
    found = as_users_run_it(tmp_path / build.entry, {"x": np.ones((1, 3, 2, 2), np.float16)})
    np.testing.assert_array_equal(found[0, :, 0, 0], BIASES)


@pytest.mark.parametrize("form", PRODUCTS)
def test_biases_beside_other_scales_stay_where_they_are(form):
    assert separate_biases(quantized(*PRODUCTS[form], scale_type="float").ir.graph) == 0


def test_a_computed_bias_and_a_missing_one_stay():
    shape, weight, _ = PRODUCTS["Gemm"]
    computed = "fed = ReduceMean(x) product = Gemm(activation, weight, fed)"
    assert separate_biases(quantized(shape, weight, computed).ir.graph) == 0
    assert separate_biases(quantized(shape, weight, "product = Gemm(activation, weight)").ir.graph) == 0


@pytest.mark.parametrize("target", ["onnx-cpu", "android-cpu", "ios-coreml"])
def test_ledger_artifact_and_user_agree(target, tmp_path):
    artifact = edgesmith.compile(
        convolution_in_float16(),
        out=tmp_path / "artifact",
        target=target,
        recipe="float",
        settings=Settings(threads=1, store=tmp_path / "store"),
    )
    with np.load(artifact.directory / "samples.npz") as samples:
        recorded, x = samples["output/y"], samples["input/x"]
    assert np.allclose(recorded.mean(axis=(0, 2, 3)), BIASES, atol=0.1)
    entry = json.loads((artifact.directory / "manifest.json").read_text())["entry"]
    np.testing.assert_array_equal(as_users_run_it(artifact.directory / entry, {"x": x}), recorded)
    done = subprocess.run(
        [sys.executable, "-I", str(artifact.directory / "validate.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and json.loads(done.stdout)["passed"], done.stdout + done.stderr
