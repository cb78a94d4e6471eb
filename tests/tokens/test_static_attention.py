"""Graphs with static attention: the same as if the map stood in them, and nothing left of queries and keys."""

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tests.small_graphs import context, operators, run
from tests.tokens.static_networks import (
    LAYOUTS,
    images,
    make_static,
    make_static_with_notes,
    network,
    sites_of,
    table,
    with_classes,
    wrap,
)

from edgesmith.errors import StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.testing import models, transformer
from edgesmith.testing.builder import GraphBuilder
from edgesmith_calibration.sources import ArraySource
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.merging import MergeTokensOptions
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static.measure import judging_samples, with_gates
from edgesmith_tokens.static.rewrite import replace_attention
from edgesmith_tokens.static_attention import StaticAttention


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def with_map(model, site, map_, bias):
    """Return the graph with the map in place of the probabilities and all else as it was, by its gates."""
    gated = with_gates(model.ir, [site])
    stem = f"static/{site.attention.context}"
    for name, array in (("map", map_[None]), ("bias", bias[None]), ("gate", np.array(1))):
        gated.graph.initializers[f"{stem}/{name}"].const_value = ir.tensor(array.astype(np.float32))
    return wrap(gated)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_list_changes_no_bit(layout):
    model = network(layout)
    data = images(model)
    for options in (StaticAttentionOptions(blocks=()), StaticAttentionOptions(count=0)):
        settings_ = context(options, data)
        assert StaticAttention().check(model, settings_).status == "skip"
        same = StaticAttention().apply(model, settings_)
        assert same.ir is not model.ir and len(same.graph) == len(model.graph)
        assert weights(same).keys() == weights(model).keys()
        assert all(np.array_equal(array, weights(model)[name]) for name, array in weights(same).items())
        assert all(np.array_equal(array, run(model, data)[name]) for name, array in run(same, data).items())


@pytest.mark.parametrize("form", ["mean", "least-squares"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_that_is_constant_is_reproduced_by_both_forms(layout, form):
    model = network(layout, constant=True, blocks=2)
    static, notes = make_static_with_notes(model, images(model, 40), form=form, ridge=1e-9, blocks=(0, 1))
    assert operators(static)["Softmax"] == 0
    for count in (1, 3):
        data = images(model, count, seed=9)
        before, after = run(model, data), run(static, data)
        for name, array in before.items():
            assert np.linalg.norm(array - after[name]) <= 1e-5 * np.linalg.norm(array)
    assert "similarity 1.000" in notes.remarks[-1]


@settings(max_examples=20, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    heads=st.integers(1, 3),
    channels=st.integers(1, 5),
    tokens=st.integers(2, 7),
    block=st.integers(0, 1),
    count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_graph_computes_what_it_would_with_the_map_in_place(layout, heads, channels, tokens, block, count, seed):
    model = network(layout, heads=heads, channels=channels, tokens=tokens, seed=seed)
    site = sites_of(model)[block]
    assert (site.heads, site.tokens, site.channels, site.obstacle) == (heads, tokens, channels, "")
    generator = np.random.default_rng(seed)
    map_ = generator.normal(0, 0.3, (heads, tokens, tokens))
    bias = generator.normal(0, 1, (heads, tokens, channels))
    static = model.clone()
    replace_attention(GraphEditor(static.graph), site, map_, bias)
    data = images(model, count, seed)
    expected = run(with_map(model, site, map_, bias), data)
    for name, array in run(static, data).items():
        # The same sums of at most 15 products in another order, through two blocks.
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)
    kinds, before = operators(static), operators(model)
    assert kinds["Softmax"] == before["Softmax"] - 1
    width = heads * channels
    gone = sum(w.size for w in weights(model).values()) - sum(w.size for w in weights(static).values())
    shapes = 200  # targets of Reshape and the like
    assert abs(gone - (2 * width * (width + 1) - map_.size - bias.size)) < shapes
    assert not [name for name in weights(static) if name.startswith(f"block{block}.attention.qkv")]
    assert not [name for name in weights(static) if name.startswith(f"block{block}.attention.query")]
    ReferenceSession(static.ir, optimization="all").run(data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gates_that_are_closed_change_no_bit_of_the_maps(layout):
    model = network(layout)
    gated = wrap(with_gates(model.ir, sites_of(model)))
    data = images(model)
    for name, array in run(gated, data).items():
        assert np.array_equal(array, run(model, data)[name])


def test_later_maps_are_measured_behind_earlier_static_ones():
    model, data = network(blocks=3), images(network(), 12)
    static = make_static(model, data, blocks=(0, 1), form="mean", batch_size=5)
    # All but every fourth sample fit the maps.
    fitted = {"x": data["x"][np.arange(12) % 4 != 3]}
    maps = [site.maps for site in sites_of(model)]
    found = {name: array for name, array in weights(static).items() if name.endswith(".static_map")}
    first = ReferenceSession(model.ir, taps=maps).run(fitted)[maps[0]].mean(0)
    np.testing.assert_allclose(found["block0.attention.context.static_map"][0], first, atol=1e-6)
    alone = make_static(model, data, blocks=(0,), form="mean")
    second = ReferenceSession(alone.ir, taps=maps[1:]).run(fitted)[maps[1]].mean(0)
    np.testing.assert_allclose(found["block1.attention.context.static_map"][0], second, atol=1e-6)
    untouched = ReferenceSession(model.ir, taps=maps).run(fitted)[maps[1]].mean(0)
    assert np.abs(untouched - second).max() > 1e-3


def test_the_input_graph_stays_and_runs_repeat_bit_for_bit():
    model, data = network("gathered"), images(network("gathered"))
    before = weights(model)
    first, second = (make_static(model, data, choose="greedy", count=1, max_error=None) for _ in range(2))
    assert all(np.array_equal(array, weights(model)[name]) for name, array in before.items())
    assert weights(first).keys() == weights(second).keys()
    assert all(np.array_equal(array, weights(second)[name]) for name, array in weights(first).items())


def test_streaming_in_batches_of_any_size_gives_the_same_maps():
    model, data = network(), images(network(), 13)
    one, many = (weights(make_static(model, data, blocks=(1,), batch_size=size)) for size in (1, 13))
    np.testing.assert_allclose(
        one["block1.attention.context.static_map"], many["block1.attention.context.static_map"], atol=1e-6
    )


def test_similarity_chooses_the_layer_that_does_not_look_at_its_input():
    model, other = network(blocks=3), network(blocks=3, constant=True)
    mixed = model.clone()
    # Only the middle layer has scores of zero: its map is the same for all samples.
    values = ir.convenience.create_value_mapping(mixed.graph)
    attention = find_structure(mixed.ir).attentions[1]
    (scale,) = (node for node, _ in values[f"{attention.score}_0"].uses())
    scale.inputs[1].const_value = ir.tensor(np.zeros((), np.float32), name=scale.inputs[1].name)
    static, notes = make_static_with_notes(mixed, images(mixed), threshold=0.99)
    assert [name for name in weights(static) if "static_map" in name] == ["block1.attention.context.static_map"]
    assert "block 1 1.000" in notes.remarks[0]
    none, notes = make_static_with_notes(model, images(model), threshold=0.999)
    assert len(none.graph) == len(model.graph) and notes.remarks[-1] == "No block got a static map."
    all_, _ = make_static_with_notes(other, images(other), threshold=0.99, count=2)
    assert sum("static_map" in name for name in weights(all_)) == 2


def test_maps_that_are_alike_and_do_not_fit_are_left_and_named():
    model = network(blocks=3)
    data = images(model, 16)
    settings_ = {"threshold": 0.1, "count": 3}
    fitting, notes = make_static_with_notes(model, data, **settings_)
    assert "block0.attention.context.static_map" not in weights(fitting)
    assert sum("static_map" in name for name in weights(fitting)) == 2
    assert "max_layer_error (0.3): block 0 0.3" in notes.remarks[1] and "block 1" not in notes.remarks[1]
    all_, notes = make_static_with_notes(model, data, **settings_, max_layer_error=None)
    assert sum("static_map" in name for name in weights(all_)) == 3
    assert not any("max_layer_error" in remark for remark in notes.remarks)
    none, notes = make_static_with_notes(model, data, **settings_, max_layer_error=1e-6)
    assert len(none.graph) == len(model.graph) and notes.remarks[-1] == "No block got a static map."


def test_first_takes_the_first_and_greedy_reports_the_outputs():
    model, data = network(blocks=4), images(network())
    first = make_static(model, data, choose="first", count=2)
    assert [name for name in weights(first) if "static_map" in name] == [
        f"block{number}.attention.context.static_map" for number in (0, 1)
    ]
    greedy, notes = make_static_with_notes(model, data, choose="greedy", count=2, max_error=None)
    assert "Error of the outputs behind each choice" in notes.remarks[0]
    assert sum("static_map" in name for name in weights(greedy)) == 2


def test_the_report_has_both_errors_and_what_it_costs_in_weights():
    _, notes = make_static_with_notes(network(), images(network()), blocks=(0,), bias=True)
    (remark,) = notes.remarks
    assert "error mean 0." in remark and "least-squares 0." in remark
    # Two heads of 5 x 5, and a bias of 2 x 5 x 4; two matrices of 8 x 8 with biases, and three shapes of 4.
    assert "add 90 numbers" in remark and "went" in remark


def test_keys_that_something_else_reads_keep_the_fused_projection():
    model = network("gathered", blocks=1)
    editor = GraphEditor(model.graph)
    key = find_structure(model.ir).attentions[0].key.value
    value = ir.convenience.create_value_mapping(model.graph)[key]
    last = model.graph[-1]
    model.graph.outputs.append(editor.insert_before(last, "ReduceMax", (value,), {"keepdims": 0}).outputs[0])
    model.graph.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs[1].shape = ir.Shape([])
    data = images(model)
    static = make_static(model, data, blocks=(0,))
    assert "block0.attention.qkv.weight" in weights(static)
    assert not [name for name in weights(static) if ".values." in name]
    kept = str(model.graph.outputs[1].name)
    assert np.array_equal(run(static, data)[kept], run(model, data)[kept])


def test_what_was_static_stays_and_the_rest_can_follow():
    model, data = network(blocks=3), images(network())
    once = make_static(model, data, blocks=(0,))
    twice = make_static(once, data, choose="first", count=1)
    assert operators(twice)["Softmax"] == 1
    assert np.array_equal(
        weights(once)["block0.attention.context.static_map"], weights(twice)["block0.attention.context.static_map"]
    )


def test_a_fixed_batch_stays():
    model = network(batch=2)
    static = make_static(model, images(model, 8), blocks=(0,))
    run(static, images(model, 2))
    assert list(static.graph.inputs[0].shape) == [2, 5, 8]


def _windowed():
    builder = GraphBuilder(x=("batch", 8, 8))
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    normal = transformer.layer_norm(builder, "x", "norm", 8)
    windows = builder.add("Reshape", normal, builder.integers(-1, 4, 8))
    attended = transformer.attention(builder, windows, "block0.attention", sizes)
    joined = builder.add("Reshape", attended, builder.integers(-1, 8, 8))
    hidden = builder.add("Add", joined, "x")
    mlp = transformer.mlp(builder, transformer.layer_norm(builder, hidden, "norm2", 8), "mlp", sizes)
    return wrap(builder.finish(builder.add("Add", mlp, hidden)))


def _with_sizes():
    """Attention with log s of merged tokens on its keys, which here come from the data."""
    builder = GraphBuilder(x=("batch", 5, 8))
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    energy = builder.add("ReduceSum", builder.add("Abs", "x"), builder.integers(2), keepdims=0)
    added = builder.add("Unsqueeze", builder.add("Log", energy), builder.integers(1, 2))
    normal = transformer.layer_norm(builder, "x", "norm", 8)
    hidden = builder.add("Add", transformer.attention(builder, normal, "a", sizes, added=added), "x")
    mlp = transformer.mlp(builder, transformer.layer_norm(builder, hidden, "norm2", 8), "mlp", sizes)
    return wrap(builder.finish(builder.add("Add", mlp, hidden)))


def _with_computed_bias(layout):
    """A fused projection whose bias is a Concat of those of queries, keys and values."""
    model = network(layout, blocks=1)
    editor = GraphEditor(model.graph)
    whole = model.graph.initializers["block0.attention.qkv.bias"]
    parts = [editor.add_initializer(f"part{i}", part) for i, part in enumerate(np.split(whole.const_value.numpy(), 3))]
    (reader,) = {node for node, _ in whole.uses()}
    joined = editor.insert_before(reader, "Concat", parts, {"axis": 0}).outputs[0]
    joined.type, joined.shape = whole.type, whole.shape
    editor.replace_uses(whole, joined)
    return model


def _with_a_bias_for_each_token():
    model = network("gemm", blocks=1, batch=2)
    whole = model.graph.initializers["block0.attention.qkv.bias"]
    array = np.random.default_rng(0).normal(0, 1, (10, 24)).astype(np.float32)
    whole.const_value, whole.shape = ir.tensor(array, name=whole.name), ir.Shape(array.shape)
    return model


def _probabilities_out():
    model = network(blocks=1)
    value = ir.convenience.create_value_mapping(model.graph)[sites_of(model)[0].maps]
    model.graph.outputs.append(value)
    return model


def _quantized():
    model = network(blocks=1)
    site = sites_of(model)[0]
    value = ir.convenience.create_value_mapping(model.graph)[site.maps]
    editor = GraphEditor(model.graph)
    scale = editor.add_initializer("scale", np.float32(1 / 255))
    zero = editor.add_initializer("zero", np.uint8(0))
    codes = editor.insert_on_uses(value, "QuantizeLinear", (scale, zero))
    codes.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    editor.insert_on_uses(codes.outputs[0], "DequantizeLinear", (scale, zero))
    return model


def _fused_operator():
    builder = GraphBuilder(opset=23, x=("batch", 5, 8))
    parts = [builder.linear("x", name, 8, 8) for name in ("query", "key", "value")]
    attended = builder.add("Attention", *parts, q_num_heads=2, kv_num_heads=2)
    hidden = builder.add("Add", builder.linear(attended, "output", 8, 8), "x")
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    # One of a runtime: that of ONNX would be written in the operators that define it.
    for node in model.graph:
        if node.op_type == "Attention":
            node.op_type, node.domain = "MultiHeadAttention", "com.microsoft"
    return model


REFUSED = {
    "causal": (models.tiny_gpt, "it is causal"),
    "padding": (models.tiny_bert, "depends on the data"),
    "sizes of merged tokens": (_with_sizes, "the sizes of merged tokens"),
    "windows": (_windowed, "attention in windows"),
    "probabilities as an output": (_probabilities_out, "an output of the graph"),
    "quantized": (_quantized, "quantized already"),
    "computed bias behind a MatMul": (lambda: _with_computed_bias("split"), "the bias of its fused projection"),
    "computed bias of a Gemm": (lambda: _with_computed_bias("gemm"), "the bias of its fused projection"),
    "a bias for each token": (_with_a_bias_for_each_token, "the bias of its fused projection"),
    "one operator": (_fused_operator, "one operator (MultiHeadAttention) does all of it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_static_is_refused_with_the_reason(name):
    build, reason = REFUSED[name]
    model = build()
    data = _any_data(model)
    verdict = StaticAttention().check(model, context(StaticAttentionOptions(), data))
    assert verdict.status == "refuse" and reason in verdict.reason
    settings_ = context(StaticAttentionOptions(), data)
    same = StaticAttention().apply(model, settings_)
    assert len(same.graph) == len(model.graph) and reason in "".join(settings_.notes.skipped.values())
    with pytest.raises(StepError, match="cannot be static"):
        StaticAttention().apply(model, context(StaticAttentionOptions(blocks=(0,)), data))


def _any_data(model):
    arrays = {}
    for value in model.graph.inputs:
        shape = [2, *(size if isinstance(size, int) else 6 for size in list(value.shape)[1:])]
        arrays[value.name] = np.ones(shape, value.dtype.numpy())
    return arrays


def test_an_open_number_of_tokens_is_refused():
    builder = GraphBuilder(x=("batch", "tokens", 8))
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    hidden = builder.add("Add", transformer.attention(builder, "x", "a", sizes), "x")
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    verdict = StaticAttention().check(model, context(StaticAttentionOptions(), {"x": np.ones((2, 5, 8), np.float32)}))
    assert verdict.status == "refuse" and "number of tokens is not fixed (tokens is open)" in verdict.reason


def test_without_data_without_attention_and_with_unknown_blocks():
    model = network()
    assert "--data" in StaticAttention().check(model, context(StaticAttentionOptions())).reason
    plain = models.tiny_cnn()
    data = _any_data(plain)
    assert StaticAttention().check(plain, context(StaticAttentionOptions(), data)).status == "skip"
    verdict = StaticAttention().check(model, context(StaticAttentionOptions(blocks=(7,)), images(model)))
    assert verdict.status == "refuse" and "block 7" in verdict.reason


def test_a_table_that_is_added_to_scores_goes_with_them():
    builder = GraphBuilder(x=("batch", 5, 8))
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    added = table(builder, "positions", 2, 5, 0)
    hidden = builder.add("Add", transformer.attention(builder, "x", "a", sizes, added=added), "x")
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    static = make_static(model, images(model), blocks=(0,))
    assert "positions" in weights(model) and "positions" not in weights(static)


def test_norms_and_rotary_positions_of_queries_and_keys_go_with_them():
    builder = GraphBuilder(x=("batch", 5, 8))
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    angles = np.outer(np.arange(5), [1.0, 0.1, 1.0, 0.1]).astype(np.float32)
    rotary = builder.constant("cosines", np.cos(angles)), builder.constant("sines", np.sin(angles))
    hidden = builder.add("Add", transformer.attention(builder, "x", "a", sizes, rotary=rotary), "x")
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    editor = GraphEditor(model.graph)
    values = ir.convenience.create_value_mapping(model.graph)
    scale = editor.add_initializer("norm.scale", np.linspace(0.5, 2, 4).astype(np.float32))
    attention = find_structure(model.ir).attentions[0]
    # The keys arrive transposed; before that their channels are last, as those of the queries are.
    for value in (values[attention.query.value], values[attention.key.value].producer().inputs[0]):
        editor.insert_on_uses(value, "LayerNormalization", (scale,), {"axis": -1})
    data = images(model)
    static = make_static(model, data, blocks=(0,))
    left = weights(static)
    assert not {"cosines", "sines", "norm.scale", "a.query.weight", "a.key.weight"} & set(left)
    site = sites_of(model)[0]
    expected = run(with_map(model, site, left["a.context.static_map"][0], np.zeros((2, 5, 4))), data)
    for name, array in run(static, data).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_keeps_its_open_batch():
    model = models.tiny_vit(blocks=3)
    data = {"pixel_values": np.random.default_rng(0).normal(0, 1, (9, 3, 32, 32)).astype(np.float32)}
    static = make_static(model, data, choose="first", count=2, bias=True)
    for count in (1, 4):
        assert run(static, {"pixel_values": data["pixel_values"][:count]})["logits"].shape == (count, 4)
    assert static.graph.outputs[0].shape[0] == model.graph.outputs[0].shape[0]
    assert find_structure(static.ir).attentions[0].context == find_structure(model.ir).attentions[2].context


def test_blocks_before_merged_tokens_can_be_static_and_those_behind_cannot():
    model = models.tiny_vit(blocks=4)
    data = {"pixel_values": np.random.default_rng(0).normal(0, 1, (9, 3, 32, 32)).astype(np.float32)}
    merged = MergeTokens().apply(model, context(MergeTokensOptions(counts=(0, 3, 3)), data))
    static, notes = make_static_with_notes(merged, data, choose="first", count=4)
    names = [name for name in weights(static) if "static_map" in name]
    assert names == ["block0.attention.context.static_map", "block1.attention.context.static_map"]
    assert all("sizes of merged tokens" in reason for reason in notes.skipped.values()) and len(notes.skipped) == 2
    assert run(static, data)["logits"].shape == (9, 4)


def test_tokens_that_were_merged_by_content_stay_dynamic_without_sizes_too():
    model = models.tiny_vit(blocks=4)
    data = {"pixel_values": np.random.default_rng(0).normal(0, 1, (9, 3, 32, 32)).astype(np.float32)}
    options = MergeTokensOptions(counts=(0, 3, 3), proportional=False)
    merged = MergeTokens().apply(model, context(options, data))
    static, notes = make_static_with_notes(merged, data, choose="first", count=4)
    names = [name for name in weights(static) if "static_map" in name]
    assert names == ["block0.attention.context.static_map", "block1.attention.context.static_map"]
    assert len(notes.skipped) == 2
    assert all("ordered by their content" in reason for reason in notes.skipped.values())


def test_tokens_in_an_order_that_is_always_the_same_can_be_static():
    builder = GraphBuilder(x=("batch", 5, 8))
    places = builder.constant("places", np.array([0.5, 0.1, 0.9, 0.3, 0.7], np.float32))
    _, order = builder.add_many("TopK", places, builder.integers(4), outputs=2)
    hidden = builder.add("Gather", "x", order, axis=1)
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    hidden = builder.add("Add", transformer.attention(builder, hidden, "a", sizes), hidden)
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    assert [site.obstacle for site in sites_of(model)] == [""]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nodes_without_names_give_the_same(layout):
    model, data = network(layout), images(network(layout))
    nameless = model.clone()
    for node in nameless.graph:
        node.name = None
    expected = run(make_static(model, data, blocks=(0,)), data)
    for name, array in run(make_static(nameless, data, blocks=(0,)), data).items():
        assert np.array_equal(array, expected[name])


def output_error(model, static, data):
    (before,), (after,) = run(model, data).values(), run(static, data).values()
    return np.linalg.norm(before - after) / np.linalg.norm(before)


def test_greedy_judges_by_samples_that_no_map_is_made_from():
    model, data = network(), images(network(), 22)
    static, notes = make_static_with_notes(
        model, data, choose="greedy", count=1, max_error=None, verify_samples=4, form="mean"
    )
    judged = {"x": data["x"][[3, 7, 11, 15]]}
    assert notes.remarks[0].endswith(f"{output_error(model, static, judged):.3f}.")
    # So max_error is kept on them, however well the others do.
    moved = {"x": data["x"].copy()}
    moved["x"][3::4] *= np.linspace(-3, 3, 8, dtype=np.float32)
    error = output_error(model, make_static(model, moved, blocks=(1,), form="mean"), {"x": moved["x"][3::4]})
    seen = output_error(model, make_static(model, moved, blocks=(1,), form="mean"), {"x": moved["x"][:3]})
    assert seen < 0.9 * error
    _, notes = make_static_with_notes(model, moved, choose="greedy", count=1, max_error=(seen + error) / 2, form="mean")
    assert "block 1" not in notes.remarks[0]


@pytest.mark.parametrize(
    ("count", "limit", "batch", "expected"),
    [
        (22, 16, 1, [3, 7, 11, 15, 19]),
        (22, 3, 1, [3, 7, 11]),
        (22, 16, 2, [3, 7, 11, 15]),
        (22, 3, 2, [3, 7]),
        (22, 1, 2, [3, 7]),
        (3, 16, 1, [0, 1, 2]),
        (8, 16, 4, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_samples_held_out_come_in_whole_batches_and_all_count_where_they_are_too_few(count, limit, batch, expected):
    source = ArraySource({"x": np.arange(count, dtype=np.float32)})
    found = [batch.inputs["x"] for batch in judging_samples(source, limit, batch).batches(batch)]
    assert np.concatenate(found).tolist() == expected


def test_the_report_says_where_no_sample_was_held_out():
    model = network()
    remarks = {}
    for count in (3, 4):
        remarks[count] = make_static_with_notes(model, images(model, count), blocks=(0,))[1].remarks[-1]
    assert "on samples that the maps are made from, since they are too few to hold out." in remarks[3]
    assert "on samples held out." in remarks[4]


def test_the_report_says_so_where_parts_of_shared_weights_add_numbers():
    model = network("split")
    for kind in ("weight", "bias"):
        first, second = (model.graph.initializers[f"block{number}.attention.qkv.{kind}"] for number in (0, 1))
        GraphEditor(model.graph).replace_uses(second, first)
    before = sum(array.size for array in weights(model).values())
    static, notes = make_static_with_notes(model, images(model), blocks=(0,))
    more = sum(array.size for array in weights(static).values()) - before - 50
    assert more > 0 and f"parts of weights that others share add {more}." in notes.remarks[-1]


def test_class_numbers_among_the_outputs_do_not_count_as_distance():
    model, data = network(), images(network())
    options = {"choose": "greedy", "count": 1, "max_error": None}
    _, expected = make_static_with_notes(model, data, **options)
    _, found = make_static_with_notes(with_classes(model), data, **options)
    assert found.remarks == expected.remarks


def test_greedy_is_refused_where_all_outputs_are_class_numbers_and_other_choices_are_not():
    model = with_classes(network())
    model.graph.outputs.pop()
    data = images(model)
    settings_ = context(StaticAttentionOptions(choose="greedy"), data)
    verdict = StaticAttention().check(model, settings_)
    assert verdict.status == "refuse" and "none is of floats" in verdict.reason and "threshold" in verdict.reason
    with pytest.raises(StepError, match="no outputs to compare"):
        StaticAttention().apply(model, settings_)
    make_static(model, data, choose="first", count=1)


def test_threshold_holds_the_maps_of_one_layer_whatever_the_depth():
    def peak(blocks):
        model = network(blocks=blocks, tokens=128, heads=4, channels=2)
        data = images(model, 6)
        tracemalloc.start()
        try:
            make_static(model, data, threshold=1.0, count=1, batch_size=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    layers, map_bytes = 4, 4 * 128 * 128 * 8
    # Two maps kept for each further layer would be eight; what graphs themselves take is less than one for each.
    assert peak(2 + layers) - peak(2) < layers * map_bytes


def test_half_precision_keeps_its_type():
    builder = GraphBuilder()
    builder.input("x", ("batch", 5, 8), TensorProto.FLOAT16)
    sizes = transformer.Sizes(width=8, heads=2, kv_heads=2)
    wide = builder.add("Cast", "x", to=TensorProto.FLOAT)
    hidden = builder.add("Add", transformer.attention(builder, wide, "a", sizes), wide)
    model = wrap(builder.finish(builder.add("Add", transformer.mlp(builder, hidden, "mlp", sizes), hidden)))
    halved = _halved(model)
    data = {"x": np.random.default_rng(0).normal(0, 1, (9, 5, 8)).astype(np.float16)}
    static = make_static(halved, data, blocks=(0,), bias=True)
    assert weights(static)["a.context.static_map"].dtype == np.float16
    run(static, data)


def _halved(model):
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in copy.graph:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", TensorProto.FLOAT16)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    return copy
