"""Random chains of products: what quantization promises holds on all of them."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith_onnxruntime.cpu import OnnxCpu
from small_graphs import context, executed_operators, graph, node, operators, quantize, run, strip_quantization

# Normal data of a few hundred values reaches 4 standard deviations. Rounding it to 255 steps leaves 1e-4 of its power
# as noise, about 40 dB. Each product adds at most three roundings (input, weight, output), and chains here have at
# most 4 products, so noise is at most 12e-4 of the signal, 29 dB. Relu halves the signal but not the range: 3 dB.
DECIBELS = 26


@st.composite
def dense_chains(draw):
    """MatMul and Gemm in a row, with biases, activations, residuals and shared weights."""
    width, seed = draw(st.sampled_from([8, 16])), draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for index in range(draw(st.integers(1, 4))):
        kind, name = draw(st.sampled_from(["MatMul", "Gemm", "transposed"])), f"h{index}"
        fresh = f"w{index}"
        weight = draw(st.sampled_from([fresh, *sorted(key for key in weights if key.startswith("w"))]))
        if weight not in weights:
            weights[weight] = generator.normal(0, width**-0.5, (width, width)).astype(np.float32)
        biased = draw(st.booleans())
        if biased:
            weights[f"b{index}"] = generator.normal(0, 0.1, width).astype(np.float32)
        if kind == "MatMul":
            nodes.append(node("MatMul", [value, weight], f"m{index}" if biased else name))
            if biased:
                nodes.append(node("Add", [f"m{index}", f"b{index}"], name))
        else:
            inputs = [value, weight, *([f"b{index}"] if biased else [])]
            nodes.append(node("Gemm", inputs, name, transB=int(kind == "transposed")))
        value = _follow(draw, nodes, name, value)
    return _finished(nodes, weights, value, ["batch", width], generator.normal(0, 1, (24, width)))


@st.composite
def convolution_chains(draw):
    """Conv in a row: plain, grouped and depthwise, strided, with Relu, Clip and residuals."""
    channels, seed = draw(st.sampled_from([4, 8])), draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    nodes, weights, value = [], {"zero": np.float32(0), "six": np.float32(6)}, "x"
    for index in range(draw(st.integers(1, 3))):
        group, kernel, name = draw(st.sampled_from([1, 2, channels])), draw(st.sampled_from([1, 3])), f"h{index}"
        shape = (channels, channels // group, kernel, kernel)
        deviation = float(np.prod(shape[1:])) ** -0.5
        weights[f"w{index}"] = generator.normal(0, deviation, shape).astype(np.float32)
        inputs = [value, f"w{index}"]
        if draw(st.booleans()):
            weights[f"b{index}"] = generator.normal(0, 0.1, channels).astype(np.float32)
            inputs.append(f"b{index}")
        nodes.append(node("Conv", inputs, name, group=group, pads=[kernel // 2] * 4))
        value = _follow(draw, nodes, name, value)
    if not any("six" in each.input for each in nodes):
        del weights["zero"], weights["six"]
    data = generator.normal(0, 1, (4, channels, 6, 6))
    return _finished(nodes, weights, value, ["batch", channels, 6, 6], data)


def _follow(draw, nodes, name, source):
    """Append what may stand behind a product and return the value that goes on."""
    kind = draw(st.sampled_from(["none", "Relu", "residual", *(["Clip"] if nodes[-1].op_type == "Conv" else [])]))
    if kind == "none":
        return name
    inputs = {"Relu": [name], "Clip": [name, "zero", "six"], "residual": [name, source]}[kind]
    nodes.append(node("Add" if kind == "residual" else kind, inputs, f"{name}_next"))
    return f"{name}_next"


def _finished(nodes, weights, value, shape, data):
    nodes[-1].output[0] = "y"
    for each in nodes:
        each.input[:] = ["y" if name == value else name for name in each.input]
    return graph(nodes, weights, {"x": shape}), {"x": data.astype(np.float32)}


def noise_db(model, result, data):
    """Return by how many decibels the output's noise lies below the strongest value inside the original graph.

    Noise is in proportion to the values that were rounded. A residual that cancels, or a Relu that cuts nearly
    everything off, makes the output smaller than them, but not its noise.
    """
    taps = [each.outputs[0].name for each in model.graph]
    values = ReferenceSession(model.ir, taps=taps).run(data)
    strongest = max(float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) for value in values.values())
    error = (run(result, data)["y"] - values["y"]).astype(np.float64)
    noise = float(np.sqrt(np.mean(np.square(error))))
    return 200.0 if noise == 0 else 20 * np.log10(strongest / noise)


CHAINS = st.one_of(dense_chains(), convolution_chains())


@given(CHAINS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_static_output_is_close_and_runs_in_integers(chain, per_channel):
    model, data = chain
    result = quantize(model, data, range_estimator="min-max", per_channel=per_channel)
    assert [v.name for v in (*result.graph.inputs, *result.graph.outputs)] == ["x", "y"]
    assert noise_db(model, result, data) > DECIBELS
    working = context(None, data)
    lowered = OnnxCpu().lower(result, working)
    # On a graph this small, one code that float noise flips can exceed the tolerance of the proof. Lowering then leaves
    # a rewrite out and says so; what runs in integers is promised for the rewrites that are kept.
    assume(not any("outputs changed" in remark for remark in working.notes.remarks))
    executed = executed_operators(lowered)
    products = [each for each in result.graph if each.op_type in ("MatMul", "Gemm", "Conv")]
    quantized = sum(each.inputs[1].producer() is not None for each in products)
    # Only a convolution of the input that nothing but floats follow may be left alone.
    assert len(products) - quantized <= sum(each.op_type == "Conv" and each.inputs[0].name == "x" for each in products)
    assert executed["MatMulIntegerToFloat"] + executed["QGemm"] + executed["QLinearConv"] == quantized


@given(CHAINS)
@settings(max_examples=30, deadline=None)
def test_static_without_its_pairs_is_the_original(chain):
    model, data = chain
    stripped = strip_quantization(quantize(model, data, smoothing=False, bias_correction=False), model)
    np.testing.assert_allclose(run(stripped, data)["y"], run(model, data)["y"], rtol=1e-5, atol=1e-6)


@given(CHAINS)
@settings(max_examples=40, deadline=None)
def test_dynamic_output_is_close(chain):
    model, data = chain
    result = quantize(model, None, mode="dynamic")
    assert noise_db(model, result, data) > DECIBELS
    assert sum(operators(result)[each] for each in ("MatMul", "Gemm")) == 0


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@given(chain=CHAINS)
@settings(max_examples=15, deadline=None)
def test_same_input_gives_the_same_bytes(mode, chain):
    model, data = chain
    first, second = (quantize(model, data, mode=mode) for _ in range(2))
    assert ir.to_proto(first.ir).SerializeToString() == ir.to_proto(second.ir).SerializeToString()


@given(chain=CHAINS)
@settings(max_examples=20, deadline=None)
def test_names_decide_nothing(chain):
    model, data = chain
    renamed = model.clone()
    for index, each in enumerate(renamed.graph):
        each.name = f"n{index}"
        for value in each.outputs:
            if not value.is_graph_output():
                value.name = f"v{index}"
    for index, value in enumerate(list(renamed.graph.initializers.values())):
        value.name = f"c{index}"
    for mode in ("static", "dynamic"):
        expected, actual = (run(quantize(each, data, mode=mode), data)["y"] for each in (model, renamed))
        np.testing.assert_array_equal(expected, actual)
