"""Operators with random attributes and shapes, and with the meaning of older opsets, against ONNX Runtime."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import assert_same_as_reference, parse

SETTINGS = settings(max_examples=40, deadline=None)


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@SETTINGS
@given(st.data())
def test_slice(data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    axes = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape)))]
    steps = [data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    # "To the end" is the largest number forwards and the smallest backwards.
    ends = [data.draw(st.integers(-8, 8) | st.just(2**31 - 1 if step > 0 else -(2**31))) for step in steps]
    weights = {
        "starts": np.array([data.draw(st.integers(-8, 8)) for _ in axes]),
        "ends": np.array(ends),
        "axes": np.array(axes),
        "steps": np.array(steps),
    }
    model = parse(f"g (float{shape} x) => (float[?] y) {{ y = Slice(x, starts, ends, axes, steps) }}", weights=weights)
    model.graph.outputs[0].shape = None
    assert_same_as_reference(model, {"x": floats(0, *shape)})


@SETTINGS
@given(
    mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    pads=st.lists(st.integers(-1, 3), min_size=4, max_size=4),
)
def test_pad(mode, pads):
    if mode != "constant":
        pads = [max(pad, 0) for pad in pads]
    model = parse(
        f'g (float[4, 5] x) => (float[a, b] y) {{ y = Pad<mode = "{mode}">(x, pads, value) }}',
        weights={"pads": np.array(pads), "value": np.float32(1.5)},
    )
    assert_same_as_reference(model, {"x": floats(1, 4, 5)})


@SETTINGS
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    group=st.sampled_from([1, 2, 4]),
    transposed=st.booleans(),
)
def test_convolution(kernel, strides, dilations, pads, group, transposed):
    operator = "ConvTranspose" if transposed else "Conv"
    shape = (4, 8 // group, *kernel) if transposed else (8, 4 // group, *kernel)
    model = parse(
        f"""g (float[2, 4, 7, 8] x) => (float[a, b, c, d] y) {{
            y = {operator}<strides = {list(strides)}, dilations = {list(dilations)}, pads = {pads}, group = {group}>
                (x, w, b) }}""",
        weights={"w": floats(2, *shape), "b": floats(3, 8)},
    )
    assert_same_as_reference(model, {"x": floats(4, 2, 4, 7, 8)})


@SETTINGS
@given(
    operator=st.sampled_from(["MaxPool", "AveragePool", "LpPool"]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    pads=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    ceil_mode=st.integers(0, 1),
    include=st.integers(0, 1),
)
def test_pooling(operator, kernel, stride, pads, ceil_mode, include):
    pads = [min(pad, kernel - 1) for pad in pads]
    extra = f", count_include_pad = {include}" if operator == "AveragePool" else ""
    model = parse(
        f"""g (float[2, 3, 7, 8] x) => (float[a, b, c, d] y) {{
            y = {operator}<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {pads},
                           ceil_mode = {ceil_mode}{extra}>(x) }}""",
        opset=20,
    )
    assert_same_as_reference(model, {"x": floats(5, 2, 3, 7, 8)})


@SETTINGS
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_resize(mode, coordinates, sizes):
    model = parse(
        f"""g (float[1, 2, 4, 5] x) => (float[a, b, c, d] y) {{
            y = Resize<mode = "{mode}", coordinate_transformation_mode = "{coordinates}">(x, , , sizes) }}""",
        weights={"sizes": np.array([1, 2, *sizes])},
    )
    assert_same_as_reference(model, {"x": floats(6, 1, 2, 4, 5)}, atol=1e-4)


@SETTINGS
@given(
    left=st.lists(st.sampled_from([1, 3]), min_size=0, max_size=3),
    right=st.lists(st.sampled_from([1, 3]), min_size=0, max_size=3),
    operator=st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min"]),
    kind=st.sampled_from(["float", "int32", "int64", "uint8"]),
)
def test_broadcasting(left, right, operator, kind):
    generator = np.random.default_rng(0)
    dtype = np.dtype("float32" if kind == "float" else kind)
    attribute = "<fmod = 1>" if operator == "Mod" and kind == "float" else ""
    if operator == "Pow" and kind == "uint8":
        operator = "Add"
    model = parse(f"g ({kind}{left} a, {kind}{right} b) => ({kind}[?] y) {{ y = {operator}{attribute}(a, b) }}")
    model.graph.outputs[0].shape = None
    inputs = {name: generator.integers(1, 5, shape).astype(dtype) for name, shape in (("a", left), ("b", right))}
    assert_same_as_reference(model, inputs)


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (11, "y = Softmax<axis = 1>(x)"),
        (11, "y = Softmax(x)"),
        (13, "y = Softmax(x)"),
        (11, "y = LogSoftmax<axis = 1>(x)"),
        (12, "y = Hardmax<axis = 1>(x)"),
        (11, "y = Squeeze<axes = [0]>(x)"),
        (11, "y = Unsqueeze<axes = [0, 3]>(x)"),
        (9, "y = Clip<min = -0.5, max = 0.5>(x)"),
        (9, "y = Slice<starts = [0, 1], ends = [1, 3], axes = [0, 2]>(x)"),
        (9, "y, i = TopK<k = 2>(x)"),
        (10, 'y = Pad<pads = [0, 1, 0, 0, 0, 2], mode = "reflect">(x)'),
        (12, "y = ReduceSum<axes = [1]>(x)"),
        (17, "y = ReduceMean<axes = [1], keepdims = 0>(x)"),
        (9, "y, mask = Dropout<ratio = 0.4>(x)"),
        (12, "y, z = Split<axis = 2, split = [1, 3]>(x)"),
        (9, "y = Flatten<axis = 2>(x)"),
    ],
)
def test_meanings_of_older_opsets(opset, body):
    outputs = "y, z" if "y, z" in body else "y"
    declared = ", ".join(f"float[?] {name}" for name in outputs.split(", "))
    model = parse(f"g (float[1, 3, 4] x) => ({declared}) {{ {body} }}", opset=opset)
    for value in model.graph.outputs:
        value.shape = None
    assert_same_as_reference(model, {"x": floats(8, 1, 3, 4)})


def test_resize_and_upsample_before_opset_eleven():
    for opset, body in ((9, "y = Upsample(x, scales)"), (10, 'y = Resize<mode = "linear">(x, scales)')):
        model = parse(
            f"g (float[1, 1, 3, 4] x) => (float[a, b, c, d] y) {{ {body} }}",
            opset=opset,
            weights={"scales": np.array([1, 1, 2, 3], np.float32)},
        )
        assert_same_as_reference(model, {"x": floats(9, 1, 1, 3, 4)})


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("with_zero_points", [True, False])
@pytest.mark.parametrize("block", [16, 32])
def test_matmul_of_packed_weights(bits, with_zero_points, block):
    generator = np.random.default_rng(bits)
    rows, columns = 6, 64
    blocks = columns // block
    packed = generator.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8)
    weights = {"packed": packed, "scales": generator.uniform(0.01, 0.1, (rows, blocks)).astype(np.float32)}
    if with_zero_points:
        width = -(-blocks * bits // 8)
        weights["zeros"] = generator.integers(0, 256, (rows, width)).astype(np.uint8)
    model = parse(
        f"""g (float[3, {columns}] x) => (float[3, {rows}] y) {{
            y = com.microsoft.MatMulNBits<K = {columns}, N = {rows}, bits = {bits}, block_size = {block}>
                (x, packed, scales{", zeros" if with_zero_points else ""}) }}""",
        weights=weights,
    )
    assert_same_as_reference(model, {"x": floats(10, 3, columns)}, atol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        "y = com.microsoft.Gelu(x)",
        "y = com.microsoft.FastGelu(x, b)",
        "y = com.microsoft.BiasGelu(x, b)",
        "y = com.microsoft.QuickGelu<alpha = 1.5>(x)",
        "y = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(x, s, b, c)",
        "y = com.microsoft.FusedMatMul<alpha = 0.5, transB = 1>(x, s)",
    ],
)
def test_operators_that_onnx_runtime_writes(body):
    weights = {name: floats(ord(name), *shape) for name, shape in {"b": (8,), "c": (8,), "s": (3, 8)}.items()}
    used = {name: value for name, value in weights.items() if f" {name})" in body or f" {name}," in body}
    model = parse(f"g (float[3, 8] x) => (float[a, b] y) {{ {body} }}", weights=used)
    assert_same_as_reference(model, {"x": floats(11, 3, 8)}, atol=1e-4)


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn, np.int8])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocked_weights(kind, axis):
    generator = np.random.default_rng(1)
    low = 0 if kind is ml_dtypes.uint4 else -8
    shape = (2, 16) if axis == 0 else (32, 1)
    weights = {
        "codes": generator.integers(low, 8, (32, 16)).astype(kind),
        "scale": generator.uniform(0.1, 1, shape).astype(np.float32),
    }
    model = parse(
        f"""g (float[3, 32] x) => (float[3, 16] y) {{
            w = DequantizeLinear<axis = {axis}, block_size = 16>(codes, scale)
            y = MatMul(x, w) }}""",
        weights=weights,
        opset=21,
    )
    assert_same_as_reference(model, {"x": floats(12, 3, 32)}, atol=1e-4)


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_with_lengths(operator, direction):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    count = 2 if direction == "bidirectional" else 1
    outputs = "y, h, c" if operator == "LSTM" else "y, h"
    declared = ", ".join(f"float[?] {name}" for name in outputs.split(", "))
    weights = {
        "w": floats(1, count, gates * 5, 4),
        "r": floats(2, count, gates * 5, 5),
        "b": floats(3, count, 2 * gates * 5),
        "lengths": np.array([6, 2, 4], np.int32),
    }
    model = parse(
        f"""g (float[6, 3, 4] x) => ({declared}) {{
            {outputs} = {operator}<hidden_size = 5, direction = "{direction}">(x, w, r, b, lengths) }}""",
        weights=weights,
    )
    for value in model.graph.outputs:
        value.shape = None
    assert_same_as_reference(model, {"x": floats(4, 6, 3, 4)})
