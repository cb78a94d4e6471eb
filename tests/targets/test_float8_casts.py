"""Graphs with eight-bit floats load in ONNX Runtime with its default options, and compute the same bits."""

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import ModelError, TargetError
from edgesmith.execution.reference import ReferenceSession
from edgesmith_onnxruntime.cpu import OnnxCpu
from small_graphs import graph, node, operators, run

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
INPUT = {"x": np.random.default_rng(0).normal(0, 1, (5, 16)).astype(np.float32)}


def shipped(model):
    """Return the graph of the file that a user would load."""
    with tempfile.TemporaryDirectory() as folder:
        build = OnnxCpu().build(model, Path(folder))
        return model.with_ir(ir.from_proto(onnx.load(Path(folder) / build.entry)))


def product(dtype=E4M3, *, per_channel=True, computed=np.float32, weight_only=False):
    """A MatMul of eight-bit floats; the input is converted to the type that the product computes in."""
    generator = np.random.default_rng(1)
    scale = generator.uniform(0.01, 0.1, 8 if per_channel else ()).astype(computed)
    weights = {"w": generator.normal(0, 20, (16, 8)).astype(dtype), "w_scale": scale}
    weights |= {"w_zero": np.zeros(scale.shape, dtype), "x_scale": computed(0.02), "x_zero": np.zeros((), dtype)}
    onnx_type = int(ir.DataType.from_numpy(np.dtype(computed)))
    nodes = [node("Cast", ["x"], "c", to=onnx_type)]
    nodes += [node("QuantizeLinear", ["c", "x_scale", "x_zero"], "q")]
    nodes += [node("DequantizeLinear", ["q", "x_scale", "x_zero"], "a")]
    nodes += [node("DequantizeLinear", ["w", "w_scale", "w_zero"], "d", **({"axis": 1} if per_channel else {}))]
    nodes += [node("MatMul", ["c" if weight_only else "a", "d"], "m"), node("Cast", ["m"], "y", to=1)]
    if weight_only:
        nodes = [each for each in nodes if each.output[0] not in "qa"]
        weights = {name: array for name, array in weights.items() if name.startswith("w")}
    return graph(nodes, weights, {"x": ["n", 16]}, opset=21)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_written_products_load_with_default_options_and_keep_every_bit(dtype, per_channel):
    model = product(dtype, per_channel=per_channel)
    written = shipped(model)
    assert operators(written)["DequantizeLinear"] == 0
    assert operators(written)["QuantizeLinear"] == 0
    assert written.graph.initializers["w"].const_value.dtype == ir.DataType.from_numpy(np.dtype(dtype))
    plain = onnxruntime.InferenceSession(ir.to_proto(written.ir).SerializeToString())
    np.testing.assert_array_equal(run(model, INPUT)["y"], run(written, INPUT)["y"])
    np.testing.assert_array_equal(plain.run(None, INPUT)[0], run(written, INPUT, "all")["y"])


def test_float16_products_load_as_they_are():
    model = product(computed=np.float16)
    assert operators(shipped(model)) == operators(model)
    ReferenceSession(model.ir, optimization="default")


def test_the_plain_form_is_the_one_that_the_runtime_refuses():
    """If this fails, ONNX Runtime was mended, and the lowering may go."""
    model = product()
    with pytest.raises(ModelError, match="MatMulIntegerToFloat"):
        ReferenceSession(model.ir, optimization="default")
    assert run(model, INPUT, "all")["y"].shape == (5, 8)


def test_pairs_on_both_sides_of_a_transpose_load_too():
    weights = {"s": np.float32(0.02), "z": np.zeros((), E4M3)}
    nodes = [node("Transpose", ["x"], "t", perm=[1, 0])]
    for name in "tx":
        nodes += [
            node("QuantizeLinear", [name, "s", "z"], f"{name}q"),
            node("DequantizeLinear", [f"{name}q", "s"], f"{name}d"),
        ]
    model = graph([*nodes, node("MatMul", ["xd", "td"], "y")], weights, {"x": ["n", 16]}, opset=19)
    with pytest.raises(ModelError):
        ReferenceSession(model.ir, optimization="default")
    written = shipped(model)
    np.testing.assert_array_equal(run(model, INPUT, "disabled")["y"], run(written, INPUT, "disabled")["y"])
    # The transpose is fused into the product there, which adds 16 terms in another order.
    np.testing.assert_allclose(run(written, INPUT, "default")["y"], run(model, INPUT)["y"], rtol=1e-5, atol=1e-5)


def test_the_build_says_what_it_rewrote_and_refuses_what_does_not_load(tmp_path):
    build = OnnxCpu().build(product(), tmp_path)
    assert build.recipe["float8_pairs_as_casts"] == 3
    onnxruntime.InferenceSession(str(tmp_path / build.entry))
    model = product()
    for each in model.graph:
        if each.op_type == "DequantizeLinear":
            # Scales that are computed have no constant form, so that the pair stays as the runtime refuses it.
            scale = ir.Node("", "Abs", [each.inputs[1]], name=f"{each.name}_scale")
            scale.outputs[0].type, scale.outputs[0].shape = each.inputs[1].type, each.inputs[1].shape
            model.graph.insert_before(each, scale)
            each.replace_input_with(1, scale.outputs[0])
    with pytest.raises(TargetError, match="does not load"):
        OnnxCpu().build(model, tmp_path)


def test_weights_alone_are_converted_while_the_graph_loads(tmp_path):
    model = product(weight_only=True)
    written = shipped(model)
    np.testing.assert_array_equal(run(model, INPUT)["y"], run(written, INPUT)["y"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(ir.to_proto(written.ir).SerializeToString(), options)
    executed = [each.op_type for each in ir.load(tmp_path / "optimized.onnx").graph]
    assert "MatMul" in executed
    assert not {"Mul", "DequantizeLinear"} & set(executed)


@given(st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_any_axis_and_shape_of_scales_gives_the_same_bits(rank, data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    axis = data.draw(st.none() | st.integers(-rank, rank - 1))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = generator.integers(0, 255, shape).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    scale = generator.uniform(1e-3, 1e3, () if axis is None else shape[axis]).astype(np.float32)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [node("DequantizeLinear", ["w", "s"], "d", **attributes), node("Add", ["d", "x"], "y")]
    model = graph(nodes, {"w": codes.view(E4M3), "s": scale}, {"x": shape}, opset=19)
    written = shipped(model)
    assert operators(written)["DequantizeLinear"] == 0
    inputs = {"x": np.zeros(shape, np.float32)}
    np.testing.assert_array_equal(run(model, inputs)["y"], run(written, inputs)["y"])


def test_scales_in_blocks_and_integers_stay_as_they_are():
    codes = np.zeros((32, 4), np.uint8).view(E4M3)
    nodes = [node("DequantizeLinear", ["w", "s"], "d", axis=0, block_size=16), node("Add", ["d", "x"], "y")]
    model = graph(nodes, {"w": codes, "s": np.ones((2, 4), np.float32)}, {"x": [32, 4]}, opset=21)
    assert operators(shipped(model)) == operators(model)
    nodes = [node("DequantizeLinear", ["w", "s"], "d"), node("Add", ["d", "x"], "y")]
    model = graph(nodes, {"w": np.zeros((32, 4), np.int8), "s": np.float32(1)}, {"x": [32, 4]})
    assert operators(shipped(model)) == operators(model)
