"""Merging behind a pyramid: means of patches come with their sizes, and merging goes on from them."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_graphs import context, quantize, run
from tests.tokens.aggregate_networks import aggregate, half, images, verdict, vision
from tests.tokens.merge_models import accepted, before_softmax, merge, merged_value, refusal, taps
from tests.tokens.merge_models import images as vit_images

from edgesmith.frontends.normalize import normalize
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.testing.models import tiny_vit
from edgesmith_tokens.finding.vision import find_vision_streams
from edgesmith_tokens.merging.formula import match
from edgesmith_tokens.merging.formula import merge as merge_formula
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static_attention import StaticAttention

# The same sums in float32, in another order, of values below 10.
ROUNDING = 2e-5
FORMS = ["pool", "cluster", "attention-guided"]


def streams(model):
    return find_vision_streams(model.ir, find_structure(model.ir))


def logarithm(model, block):
    """The name of what is added to the scores of a block."""
    softmax = next(node for node in model.graph if node.name == block.attention.softmax)
    return softmax.inputs[0].producer().inputs[1].name


@pytest.mark.parametrize(
    ("form", "front"), [("pool", 0), ("pool", 3), ("cluster", 1), ("attention-guided", 0), ("pca", 1)]
)
def test_each_part_of_a_pyramid_is_a_stream_that_knows_its_protected_tokens(form, front):
    model = vision(blocks=3, front=front)
    pyramid = aggregate(model, images(model), form=form)
    found = streams(pyramid)
    assert [stream.tokens for stream in found] == [16 + front, 8 + front, 4 + front]
    assert [stream.protected for stream in found] == [front] * 3
    assert [stream.first for stream in found] == [0, 1, 2] and not any(stream.obstacle for stream in found)
    assert [stream.logarithm is not None for stream in found] == [False, *[form in FORMS] * 2]


@settings(max_examples=4, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(lambda drawn: any(drawn[1:])),
    combine=st.sampled_from(["one-hot", "scatter"]),
    metric=st.sampled_from(["keys", "input"]),
    rows=st.sampled_from([4, 5]),
    batch=st.integers(1, 3),
)
def test_each_merge_goes_on_from_the_sizes_of_the_means(form, counts, combine, metric, rows, batch):
    model = vision(rows=rows, blocks=3)
    data, patches = images(model, 6), 4 * rows
    pyramid = aggregate(model, data, form=form, at=(1,))
    feeds = {"pixels": data["pixels"][:batch]}
    merged = merge(pyramid, counts=tuple(counts), form=combine, metric=metric)
    for stream in streams(pyramid)[1:]:
        names = [name for block in stream.blocks for name in (block.attended, block.input, block.attention.key.value)]
        names += [merged_value(merged, stream, number) for number in range(len(stream.blocks))]
        added = [logarithm(merged, block) for block in stream.blocks]
        values = taps(merged, feeds, list(dict.fromkeys((*names, *added))))
        sizes = sizes_of(values[added[0]], batch)
        for number, block in enumerate(stream.blocks):
            np.testing.assert_allclose(sizes_of(values[added[number]], batch), sizes, rtol=1e-5)
            assert sizes.sum(axis=1) == pytest.approx(patches + 1, rel=1e-5) and (sizes[:, 0] == 1).all()
            held = values[block.attended]
            r = min(counts[stream.first + number], (held.shape[1] - 1) // 2)
            keys = values[block.attention.key.value].swapaxes(-1, -2).mean(axis=1)
            if r:
                matching = match(keys if metric == "keys" else values[block.input], r, 1)
                held, sizes = merge_formula(held, sizes, matching, 1)
            np.testing.assert_allclose(values[merged_value(merged, stream, number)], held, rtol=0, atol=ROUNDING)


def sizes_of(logarithms, batch):
    sizes = np.exp(logarithms).reshape(len(logarithms), -1, 1)
    return np.broadcast_to(sizes, (batch, *sizes.shape[1:])).astype(np.float32)


def two_kinds_of_patches():
    """A network that knows no positions, and an image whose halves hold one kind of patch each."""
    model = vision(rows=5, blocks=3)
    positions = model.graph.initializers["positions"]
    array = positions.const_value.numpy().copy()
    array[:, 1:] = array[:, 1:2]
    positions.const_value = ir.tensor(array, name="positions")
    kinds = np.random.default_rng(5).normal(0, 1, (2, 3, 2, 2))
    chosen = np.repeat([0, 0, 0, 1, 1], 4).reshape(5, 4)
    image = kinds[chosen].transpose(2, 0, 3, 1, 4).reshape(1, 3, 10, 8)
    return model, {"pixels": image.astype(np.float32)}


def test_merging_means_that_are_alike_changes_nothing():
    model, feeds = two_kinds_of_patches()
    # Cells of four and of two patches, none of them of both kinds.
    pyramid = aggregate(model, form="pool", at=(1,), keep=0.4)
    (whole,), (merged,) = (run(each, feeds).values() for each in (pyramid, merge(pyramid, counts=(0, 4, 2))))
    np.testing.assert_allclose(merged, whole, rtol=0, atol=ROUNDING)
    # The sizes are what does it: with others in the pyramid itself the outputs move.
    other = aggregate(model, form="pool", at=(1,), keep=0.4, proportional=False)
    (unweighed,) = run(other, feeds).values()
    assert np.abs(unweighed - whole).max() > 1e-3


def test_counts_run_through_all_parts_of_a_pyramid():
    pyramid = aggregate(vision(), form="pool")
    merged = merge(pyramid, counts=(0, 0, 2, 0, 0, 1))
    tokens = [node.outputs[0].shape[-1] for node in merged.graph if node.op_type == "Softmax"]
    assert tokens == [17, 17, 9, 7, 5, 5]
    assert "7 numbers for 6 blocks" in refusal(pyramid, counts=(1,) * 7)


@pytest.mark.parametrize("form", ["pool", "attention-guided"])
def test_a_pyramid_that_was_saved_and_cleaned_merges_the_same(form):
    model = vision(blocks=3)
    data = images(model)
    pyramid = aggregate(model, data, form=form)
    cleaned = pyramid.with_ir(normalize(pyramid.ir))
    (first,), (second,) = (run(merge(each, r=1), data).values() for each in (pyramid, cleaned))
    np.testing.assert_allclose(second, first, rtol=0, atol=ROUNDING)


def test_it_merges_in_float16():
    whole = vision(blocks=3)
    data = images(whole)
    pyramid = aggregate(half(whole), form="pool")
    wide = aggregate(whole, form="pool")
    drawn = {"r": 1, "score": "random"}
    (rounded,), (exact,) = (run(each, data).values() for each in (pyramid, wide))
    (found,), (wanted,) = (run(merge(each, **drawn), data).values() for each in (pyramid, wide))
    # The smaller network rounds about as much as the whole one.
    assert np.abs(found - wanted).max() < 4 * np.abs(rounded - exact).max()


@pytest.mark.parametrize("form", ["pool", "attention-guided"])
def test_a_pyramid_that_was_turned_to_float16_is_merged(form):
    model = vision(blocks=3)
    data = images(model)
    wide = aggregate(model, data, form=form)
    narrow, drawn = half(wide), {"r": 1, "score": "random"}
    (rounded,), (exact,) = (run(each, data).values() for each in (narrow, wide))
    (found,), (wanted,) = (run(merge(each, **drawn), data).values() for each in (narrow, wide))
    # The smaller network rounds about as much as the whole one.
    assert np.abs(found - wanted).max() < 4 * np.abs(rounded - exact).max()


def test_pyramid_merges_static_maps_and_integers_in_one_recipe():
    model = vision(blocks=3)
    data = images(model, 16)
    assert accepted(aggregate(model, form="pool"), r=1)
    merged = merge(aggregate(model, form="pool"), r=1)
    settings_ = context(StaticAttentionOptions(blocks=(0,), form="mean"), data)
    static = StaticAttention().apply(merged, settings_)
    assert sum(node.op_type == "Softmax" for node in static.graph) == 2
    (wanted,), (found,) = (run(each, data).values() for each in (static, quantize(static, data, mode="static")))
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)


def test_a_second_pyramid_is_refused_behind_the_first():
    pyramid = aggregate(vision(blocks=3), form="pool", at=(1,))
    again = verdict(pyramid, form="pool", at=(2,))
    assert again.status == "refuse" and "one step" in again.reason


def test_new_tokens_behind_the_means_are_not_taken_for_patches():
    model = aggregate(vision(blocks=3, front=0, head="mean"), form="pool", at=(1,))
    model.graph.inputs[0].shape = ir.Shape([6, *model.graph.inputs[0].shape[1:]])
    assert streams(model)[1].protected == 0 and not streams(model)[1].obstacle
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    entry, editor = values[streams(model)[1].input], GraphEditor(model.graph)
    fresh = editor.add_initializer("fresh", np.zeros((6, 1, 16), np.float32))
    bounds = [editor.add_initializer("bound", np.array([number])) for number in (1, 9, 1)]
    cut = editor.insert_after(entry, "Slice", (entry, *bounds))
    joined = editor.insert_after(cut.outputs[0], "Concat", (fresh, cut.outputs[0]), {"axis": 1})
    for node, count in ((cut, 7), (joined, 8)):
        node.outputs[0].shape, node.outputs[0].type = ir.Shape([6, count, 16]), entry.type
    editor.replace_uses(entry, joined.outputs[0], keep=(cut,))
    found = streams(model)[1]
    assert "set the option protected" in found.obstacle


def weighed(table):
    """A network whose two blocks add the same initializer [1, 1, 1, 17] to their scores."""
    both = before_softmax(before_softmax(tiny_vit(blocks=2), table, block=0), table, block=1)
    tables = [value for name, value in both.graph.initializers.items() if name.startswith("table")]
    GraphEditor(both.graph).replace_uses(tables[1], tables[0])
    return both


@pytest.mark.parametrize("number", [-1e4, float(np.finfo(np.float32).min), -np.inf, 90.0, np.log(0.4), np.nan])
def test_a_constant_that_hides_keys_or_is_no_size_is_refused(number):
    table = np.zeros((1, 1, 1, 17))
    table[..., -4:] = number
    assert streams(weighed(table))[0].logarithm is None
    assert "table holds something else for each token" in refusal(weighed(table))


@settings(max_examples=6, deadline=None)
@given(
    numbers=st.lists(st.floats(-0.69, 13.8), min_size=17, max_size=17),
    other=st.none() | st.floats(-1e5, -0.7) | st.floats(13.9, 1e5),
    r=st.integers(1, 8),
)
def test_constants_are_taken_where_each_is_the_logarithm_of_a_size(numbers, other, r):
    model = weighed(np.reshape([other or numbers[0], *numbers[1:]], (1, 1, 1, -1)))
    assert accepted(model, r=r) == (other is None)
    if other is None:
        assert all(np.isfinite(value).all() for value in run(merge(model, r=r), vit_images(2)).values())


def test_sizes_that_cleaning_computed_are_taken():
    pyramid = aggregate(vision(blocks=3), form="pool")
    cleaned = pyramid.with_ir(normalize(pyramid.ir))
    values = ir.convenience.create_value_mapping(cleaned.graph, include_subgraphs=False)
    for stream in streams(cleaned)[1:]:
        assert values[stream.logarithm].is_initializer()
        assert np.exp(values[stream.logarithm].const_value.numpy()).sum() == pytest.approx(17)


def mask_of_an_input(*shape):
    """A network that adds the logarithms of an input [batch, *shape] to the scores of both blocks."""
    model = weighed(np.zeros((1, 1, 1, 17)))
    mask = ir.Value(name="mask", shape=ir.Shape(["batch", *shape]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(mask)
    editor = GraphEditor(model.graph)
    logarithm = editor.insert_before(model.graph[0], "Log", (mask,)).outputs[0]
    sizes = editor.add_initializer("sizes", np.array([0, 1, 1, 17]))
    row = editor.insert_after(logarithm, "Reshape", (logarithm, sizes)).outputs[0]
    logarithm.shape, row.shape = mask.shape, ir.Shape(["batch", 1, 1, 17])
    logarithm.type = row.type = mask.type
    editor.replace_uses(next(value for name, value in model.graph.initializers.items() if name == "table"), row)
    return model


@pytest.mark.parametrize("shape", [(17, 1), (17,), (1, 17)])
def test_an_input_is_a_mask_whatever_its_shape(shape):
    model = mask_of_an_input(*shape)
    assert streams(model)[0].logarithm is None
    assert "attention of block 0 has a mask that depends on an input" in refusal(model)


@pytest.mark.parametrize("combine", ["one-hot", "scatter"])
def test_means_of_size_zero_hide_their_keys_and_stay_numbers(combine):
    model = vision(blocks=3)
    data = images(model)
    pyramid = aggregate(model, data, form="attention-guided", at=(1,))
    log = next(node for node in pyramid.graph if node.op_type == "Log")
    editor, sizes = GraphEditor(pyramid.graph), log.inputs[0]
    shown = np.ones((1, 9, 1), np.float32)
    shown[:, 3:] = 0
    some = editor.insert_before(log, "Mul", (sizes, editor.add_initializer("shown", shown))).outputs[0]
    some.shape, some.type = sizes.shape, sizes.type
    log.replace_input_with(0, some)
    merged = merge(pyramid, r=3, form=combine)
    last = logarithm(merged, streams(pyramid)[1].blocks[-1])
    values = taps(merged, data, [last, some.name])
    np.testing.assert_allclose(np.exp(values[last]).sum(axis=3)[:, 0], values[some.name].sum(axis=1), rtol=1e-5)
    assert all(np.isfinite(value).all() for value in run(merged, data).values())


def test_blocks_that_weigh_keys_differently_are_refused():
    one, other = np.log(np.arange(1, 18)).reshape(1, 1, 1, -1), np.log(np.arange(2, 19)).reshape(1, 1, 1, -1)
    mixed = before_softmax(before_softmax(tiny_vit(blocks=2), one, block=0), other, block=1)
    assert "something else for each token" in refusal(mixed)
    assert not accepted(before_softmax(tiny_vit(blocks=2), one, block=1), r=2)


@settings(max_examples=5, deadline=None)
@given(
    front=st.sampled_from([1, 2, 5]),
    sides=st.sampled_from([(4, 4), (3, 5), (1, 7)]),
    head=st.sampled_from(["class", "mean", "tokens"]),
    form=st.sampled_from([*FORMS, "random"]),
    keep=st.sampled_from([0.3, 0.5, 0.8]),
    r=st.integers(1, 5),
    combine=st.sampled_from(["one-hot", "scatter"]),
    batch=st.integers(1, 3),
)
def test_an_image_of_one_colour_gives_what_it_gave_whatever_goes(front, sides, head, form, keep, r, combine, batch):
    """All patches are alike then, so any mean of them is one of them, and sizes alone tell how many there were."""
    model = vision(*sides, blocks=3, front=front, head=head)
    positions = model.graph.initializers["positions"]
    array = positions.const_value.numpy().copy()
    array[:, front:] = array[:, front : front + 1]
    positions.const_value = ir.tensor(array, name="positions")
    pixels = np.broadcast_to(np.random.default_rng(r).normal(size=(batch, 3, 1, 1)), (batch, 3, *np.multiply(sides, 2)))
    feeds = {"pixels": pixels.astype(np.float32)}
    small = merge(aggregate(model, feeds, form=form, at=(1,), keep=keep), r=r, form=combine)
    (wanted,), (found,) = (run(each, feeds).values() for each in (model, small))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING * max(1.0, float(np.abs(wanted).max())))
