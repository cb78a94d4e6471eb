"""ReferenceSession runs what is written, whatever the number format, and names the node when it cannot."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from small_graphs import convolution_in_float16


def model_of(text: str, opset: int = 21) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}, "strange" : 1]>\n{text}')


def add_initializer(model: ir.Model, name: str, array: np.ndarray) -> None:
    """Give the free name used in the text a value."""
    value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == name)
    value.const_value = ir.tensor(array, name=name)
    value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
    model.graph.register_initializer(value)


def quantized_weight_model(kind: str, floats: type) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """A matrix product with a quantized weight; returns it with an input and the exact product."""
    generator = np.random.default_rng(3)
    name = {np.float32: "float", np.float16: "float16"}[floats]
    x = (generator.integers(-8, 8, (1, 64)) / 8).astype(floats)
    codes = generator.integers(-8, 8, (64, 64))
    body = {
        "int4": """weight = DequantizeLinear<axis = 0, block_size = 32>(w, scale)
                   y = MatMul(x, weight)""",
        "float8": """code = QuantizeLinear(x, scale, zero)
                     activation = DequantizeLinear(code, scale)
                     weight = DequantizeLinear(w, scale)
                     y = MatMul(activation, weight)""",
    }[kind]
    model = model_of(f"g ({name}[1, 64] x) => ({name}[1, 64] y) {{ {body} }}")
    narrow = {"int4": ml_dtypes.int4, "float8": ml_dtypes.float8_e4m3fn}[kind]
    add_initializer(model, "w", codes.astype(narrow))
    add_initializer(model, "scale", np.full((2, 64) if kind == "int4" else (), 0.125, floats))
    if kind == "float8":
        add_initializer(model, "zero", np.zeros((), narrow))
    return model, x, x.astype(np.float64) @ (codes * 0.125)


@pytest.mark.parametrize("optimization", ["disabled", "basic", "extended", "all"])
@pytest.mark.parametrize("floats", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["int4", "float8"])
def test_quantized_forms_are_right_at_every_level(kind, floats, optimization):
    model, x, expected = quantized_weight_model(kind, floats)
    (y,) = ReferenceSession(model, optimization=optimization).run({"x": x}).values()
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3 if floats is np.float32 else 2e-2)


def with_float16_scales_in_initializers() -> Model:
    """The network of `convolution_in_float16`, in which types and values are stated."""
    body = """code = QuantizeLinear(x, scale, zero)
              activation = DequantizeLinear(code, scale)
              weight = DequantizeLinear(w, small)
              product = Conv(activation, weight, bias)
              rounded = QuantizeLinear(product, scale, zero)
              y = DequantizeLinear(rounded, scale)"""
    model = model_of(f"g (float16[1, 3, 2, 2] x) => (float16[1, 4, 2, 2] y) {{ {body} }}")
    # float16 has steps of 6e-8 below 6e-5; the product of these scales is 4e-9.
    add_initializer(model, "scale", np.float16(2**-4))
    add_initializer(model, "zero", np.int8(0))
    add_initializer(model, "small", np.float16(2**-24))
    add_initializer(model, "w", np.ones((4, 3, 1, 1), np.int8))
    add_initializer(model, "bias", np.float16([1, 2, 3, 4]))
    return Model(model, Task(), Provenance("made here", "test", ""))


@pytest.mark.parametrize("optimization", ["disabled", "basic", "extended", "all"])
@pytest.mark.parametrize("make", [with_float16_scales_in_initializers, convolution_in_float16])
def test_a_bias_beside_scales_in_float16_is_kept(make, optimization, tmp_path):
    """ONNX Runtime would write it as codes with the scale of input times weight, which float16 cannot hold."""
    model = make().ir
    ir.save(model, tmp_path / "model.onnx")
    inputs = {"x": np.zeros((1, 3, 2, 2), np.float16)}
    for source in (model, tmp_path / "model.onnx"):
        found = ReferenceSession(source, optimization=optimization).run(inputs)["y"]
        assert np.array_equal(found, np.broadcast_to(np.float16([1, 2, 3, 4])[:, None, None], found.shape))


def test_taps_of_any_type_come_back_and_the_model_is_left_alone():
    model = model_of("""g (float[2, 3] x) => (float[2, 3] y) {
        half = Cast<to = 16>(x)
        eighth = Cast<to = 17>(x)
        nibble = Cast<to = 22>(x)
        y = Relu(x) }""")
    x = np.array([[1, -2, 3], [4, -5, 6]], np.float32)
    found = ReferenceSession(model, taps=["half", "eighth", "nibble", "x", "y"]).run({"x": x})
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert found["half"].dtype == ml_dtypes.bfloat16
    assert found["eighth"].dtype == ml_dtypes.float8_e4m3fn
    for name in ("half", "eighth", "nibble", "x"):
        np.testing.assert_array_equal(found[name].astype(np.float32), x)
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))


def test_a_large_model_goes_through_a_file_and_gives_the_same(tmp_path, monkeypatch):
    model = model_of("g (float[1, 64] x) => (float[1, 64] y) { y = MatMul(x, w) }")
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    add_initializer(model, "w", weight)
    x = np.ones((1, 64), np.float32)
    small = ReferenceSession(model).run({"x": x})["y"]
    monkeypatch.setattr("edgesmith.execution.reference.INLINE_BYTES", 16)
    large = ReferenceSession(model).run({"x": x})["y"]
    np.testing.assert_array_equal(small, large)
    assert isinstance(model.graph.initializers["w"].const_value, ir.Tensor)
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    for source in (tmp_path / "model.onnx", ir.load(tmp_path / "model.onnx")):
        np.testing.assert_array_equal(ReferenceSession(source).run({"x": x})["y"], small)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("[bad] y = Foo(x)", ["Foo", "bad"]),
        ("[bad] y = strange.Foo(x)", ["Foo", "bad"]),
        ("[bad] y = MatMul(x, x)", ["MatMul", "bad"]),
        ("y = Relu(nowhere)", ["nowhere"]),
    ],
)
def test_a_graph_that_does_not_load_names_its_node(body, names):
    with pytest.raises(ModelError) as caught:
        ReferenceSession(model_of(f"g (float[2, 3] x) => (float[2, 3] y) {{ {body} }}"))
    assert all(name in caught.value.what for name in names)


def test_a_node_that_fails_while_running_is_named():
    model = model_of("g (float[2, 3] x, int64[1] shape) => (float[n] y) { [bad] y = Reshape(x, shape) }")
    with pytest.raises(ModelError, match="Reshape 'bad'"):
        ReferenceSession(model).run({"x": np.zeros((2, 3), np.float32), "shape": np.array([5])})


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x08\x0a\x3a\xff\xff"])
@pytest.mark.parametrize("optimization", ["basic", "all"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content, optimization):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        ReferenceSession(path, optimization=optimization)


def test_a_missing_file_and_an_unknown_tap_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not a file"):
        ReferenceSession(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="ghost"):
        ReferenceSession(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), taps=["ghost"])


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"z": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((2, 3), np.float32), "z": np.zeros(1)},
        {"x": np.zeros((2, 3))},
        {"x": np.zeros((2, 4), np.float32)},
        {"x": np.zeros(3, np.float32)},
    ],
)
def test_data_that_does_not_fit_is_refused(inputs):
    session = ReferenceSession(model_of("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }"))
    with pytest.raises(DataError):
        session.run(inputs)
