"""Attention is found in every way of writing it, also between Q/DQ pairs and in fused operators."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_builder import HEAD_DIM, HEADS, HIDDEN, WIDTH, Style, build
from hypothesis import given, settings
from hypothesis import strategies as st
from scramble import restore, scramble

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.structure import Structure, find_structure

STYLES = st.builds(
    Style,
    projections=st.sampled_from(["separate", "split", "stacked", "interleaved"]),
    linear=st.sampled_from(["matmul", "transposed", "gemm"]),
    scale=st.sampled_from(["query", "key", "both", "scores", "divide", "none"]),
    mask=st.sampled_from(["none", "add", "where", "constant", "causal"]),
    product=st.sampled_from(["four", "three", "einsum"]),
    guard=st.booleans(),
    kv_heads=st.sampled_from([1, 2, 4]),
    dynamic=st.booleans(),
    quantized=st.booleans(),
    norm=st.sampled_from(["pre", "post"]),
).filter(lambda style: style.kv_heads == HEADS or style.projections in ("separate", "split"))

# Features of queries, keys and values on the output of their projection.
LAYOUTS = {
    "separate": lambda kv: (((0, WIDTH),), ((0, kv),), ((0, kv),)),
    "split": lambda kv: (((0, WIDTH),), ((WIDTH, WIDTH + kv),), ((WIDTH + kv, WIDTH + 2 * kv),)),
    "stacked": lambda kv: tuple(((WIDTH * i, WIDTH * (i + 1)),) for i in range(3)),
    "interleaved": lambda kv: tuple(
        tuple((HEAD_DIM * (3 * head + i), HEAD_DIM * (3 * head + i + 1)) for head in range(HEADS)) for i in range(3)
    ),
}


def check(structure: Structure, style: Style) -> None:
    assert len(structure.blocks) == 2
    layout = LAYOUTS[style.projections](style.kv_heads * HEAD_DIM)
    for block in structure.blocks:
        assert block.norm == style.norm
        (attention,), (mlp,) = block.attentions, block.mlps
        assert (attention.heads, attention.kv_heads, attention.head_dim) == (HEADS, style.kv_heads, HEAD_DIM)
        found = (attention.query, attention.key, attention.value)
        assert tuple(projection.features for projection in found if projection) == layout
        assert attention.output is not None
        assert attention.output.features == ((0, WIDTH),)
        assert attention.causal is (style.mask in ("constant", "causal"))
        assert attention.padding_mask is (style.mask in ("add", "where"))
        assert not attention.rotary
        assert (mlp.width, mlp.activation, mlp.gated) == (HIDDEN, "relu", False)
        for projection in (*found, attention.output):
            assert projection is not None
            assert projection.linear.bias is not None
            assert projection.linear.weight_axis == (1 if style.linear == "matmul" else 0)
    assert bool(structure.quantized) is style.quantized


@given(style=STYLES)
@settings(max_examples=150, deadline=None)
def test_any_style(style: Style) -> None:
    check(find_structure(build(style)), style)


@given(style=STYLES, seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_style_without_names(style: Style, seed: int) -> None:
    model = build(style)
    scrambled, names = scramble(model, seed)
    assert restore(find_structure(scrambled).to_json(), names) == find_structure(model).to_json()


@given(style=STYLES)
@settings(max_examples=15, deadline=None)
def test_the_styles_are_real_graphs(style: Style) -> None:
    """ONNX Runtime runs what the builder writes, and a causal style indeed hides what comes later."""
    model = build(style)
    session = ReferenceSession(model)
    x = np.random.default_rng(0).standard_normal((2, 7, WIDTH)).astype(np.float32)
    inputs = {"x": x, "mask": np.ones((2, 7), np.int64)}
    before = session.run(inputs)["y"]
    assert np.isfinite(before).all()
    inputs["x"] = x.copy()
    inputs["x"][:, -1] *= -2
    after = session.run(inputs)["y"]
    causal = style.mask in ("constant", "causal")
    assert np.array_equal(before[:, :-1], after[:, :-1]) or not causal
    assert causal or not np.array_equal(before[:, :-1], after[:, :-1])


def test_an_inner_product_without_projections_is_no_grouped_attention() -> None:
    """Attention on raw values: heads are read from the shape, and no layer is invented."""
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 20]>
        g (float[n, 3, s, 8] q, float[n, 3, 8, t] k, float[n, 3, t, 8] v) => (float[n, 3, s, 8] y) {
            a = MatMul(q, k) p = Softmax <axis = -1> (a) y = MatMul(p, v) }""")
    (attention,) = find_structure(model).attentions
    assert (attention.heads, attention.head_dim) == (3, 8)
    assert attention.query is attention.key is attention.value is attention.output is None


def test_a_softmax_over_classes_is_no_attention() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[n, 8] x, float[8, 8] m) => (float[n, 8] y) <float[8, 8] w = {1}> {
            a = MatMul(x, w) p = Softmax <axis = -1> (a) y = MatMul(p, w) }""".replace("{1}", "{" + "1," * 63 + "1}")
    )
    assert find_structure(model).attentions == ()


FUSED = {
    "opset 23": (
        "y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v)",
        (4, 2, 6, True, "Attention"),
    ),
    "multi-head": (
        "y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, kk, vv)",
        (4, 4, 6, False, "MultiHeadAttention"),
    ),
    "grouped": (
        "y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , lens, total)",
        (4, 2, 6, True, "GroupQueryAttention"),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators(name: str) -> None:
    body, expected = FUSED[name]
    ones = {shape: "{" + ",".join(["1"] * shape) + "}" for shape in (24 * 24, 24 * 12)}
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        g (float[n, 7, 24] x, int32[n] lens, int32 total) => (float[n, 7, 24] z)
        <float[24, 24] wq = {ones[576]}, float[24, 12] wk = {ones[288]}, float[24, 12] wv = {ones[288]},
         float[24, 24] wo = {ones[576]}> {{
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kk = MatMul(x, wq) vv = MatMul(x, wo)
            {body} o = MatMul(y, wo) z = Add(x, o) }}""")
    structure = find_structure(model)
    (attention,) = structure.attentions
    found = (attention.heads, attention.kv_heads, attention.head_dim, attention.causal, attention.fused)
    assert found == expected
    assert attention.query is not None
    assert attention.query.features == ((0, 24),)
    assert attention.output is not None
    assert attention.output.linear.weight == "wo"
    assert len(structure.blocks) == 1
