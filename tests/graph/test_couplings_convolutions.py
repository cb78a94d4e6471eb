"""Couplings of convolutional networks: what belongs together is found, and removing it equals zeroing it."""

import numpy as np
import pytest
from coupling_checks import assert_removal_is_zeroing, only, places, run, samples

from edgesmith.graph.couplings import find_couplings, remove_channels
from edgesmith.testing.builder import GraphBuilder

IMAGES = samples((1, 3, 6, 6), (2, 3, 6, 6))
IMAGE = ("n", 3, 6, 6)


def classify(builder: GraphBuilder, source: str, channels: int) -> str:
    pooled = builder.add("Flatten", builder.add("GlobalAveragePool", source))
    return builder.add("Gemm", pooled, builder.weight("head.weight", 5, channels), transB=1)


def test_a_chain_couples_each_convolution_with_the_next():
    builder = GraphBuilder(x=IMAGE)
    inner = builder.add("Relu", builder.norm(builder.conv("x", "a", 3, 8, kernel=3), "bn", 8))
    model = builder.finish(classify(builder, builder.conv(inner, "b", 8, 6), 6))
    first, second, last = find_couplings(model)
    assert places(first) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)} | {
        (f"bn.{part}", 0) for part in ("scale", "bias", "mean", "var")
    }
    assert [slot.role for slot in first.slots] == ["produces"] * 2 + ["passes"] * 4 + ["consumes"]
    assert places(second) == {("b.weight", 0), ("b.bias", 0), ("head.weight", 1)}
    assert places(last) == {("head.weight", 0)}
    assert not last.removable and "output of the graph" in last.reason
    assert len(assert_removal_is_zeroing(model, IMAGES, consumers=False)) == 2


def test_a_residual_stream_is_one_coupling():
    builder = GraphBuilder(x=IMAGE)
    stream = builder.conv("x", "stem", 3, 8)
    for block in range(2):
        inner = builder.add("Relu", builder.conv(stream, f"in{block}", 8, 5, kernel=1))
        stream = builder.add("Add", stream, builder.norm(builder.conv(inner, f"out{block}", 5, 8), f"bn{block}", 8))
    model = builder.finish(classify(builder, stream, 8))
    residual = only(find_couplings(model), lambda coupling: ("stem.weight", 0) in places(coupling))
    assert {("out0.weight", 0), ("out1.weight", 0), ("in1.weight", 1), ("head.weight", 1)} <= places(residual)
    assert len(assert_removal_is_zeroing(model, IMAGES, consumers=False)) == 3


def test_dense_concatenation_couples_each_part_on_its_own():
    builder = GraphBuilder(x=IMAGE)
    dense = builder.conv("x", "stem", 3, 4)
    for layer, width in enumerate((4, 7)):
        grown = builder.add("Relu", builder.conv(builder.norm(dense, f"bn{layer}", width), f"grow{layer}", width, 3))
        dense = builder.add("Concat", dense, grown, axis=1)
    model = builder.finish(classify(builder, dense, 10))
    parts = [coupling for coupling in find_couplings(model) if coupling.removable]
    assert [coupling.size for coupling in parts] == [4, 3, 3]
    for coupling, start in zip(parts, (0, 4, 7), strict=True):
        head = next(slot for slot in coupling.slots if slot.value == "head.weight")
        assert head.indices == tuple((start + atom,) for atom in range(coupling.size))
    assert_removal_is_zeroing(model, IMAGES)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolution_follows_its_producer(multiplier):
    builder = GraphBuilder(x=IMAGE)
    wide = builder.add("Clip", builder.norm(builder.conv("x", "expand", 3, 6), "bn", 6))
    deep = builder.conv(wide, "depth", 6, 6 * multiplier, kernel=3, group=6)
    model = builder.finish(classify(builder, builder.conv(builder.add("Relu", deep), "project", 6 * multiplier, 4), 4))
    coupling = only(find_couplings(model), lambda coupling: ("expand.weight", 0) in places(coupling))
    assert {("depth.weight", 0), ("depth.bias", 0), ("project.weight", 1)} <= places(coupling)
    assert coupling.size == 6 and all(len(atom) == multiplier for atom in coupling.slots[-1].indices)
    assert_removal_is_zeroing(model, IMAGES, consumers=False)
    smaller = remove_channels(model, coupling, [1, 4])
    groups = [node.attributes["group"].as_int() for node in smaller.graph if "group" in node.attributes]
    assert groups == [4]


def test_grouped_convolution_loses_groups_or_the_same_place_of_each_group():
    builder = GraphBuilder(x=IMAGE)
    grouped = builder.conv(builder.conv("x", "in", 3, 12), "grouped", 12, 8, group=4, kernel=3)
    model = builder.finish(classify(builder, builder.add("Relu", grouped), 8))
    by_places = {frozenset(places(coupling)): coupling for coupling in find_couplings(model) if coupling.removable}
    made, out = {("in.weight", 0), ("in.bias", 0)}, {("grouped.weight", 0), ("grouped.bias", 0), ("head.weight", 1)}
    assert by_places[frozenset(made | out)].size == 4
    assert by_places[frozenset(made | {("grouped.weight", 1)})].size == 3
    assert by_places[frozenset(out)].size == 2
    assert len(assert_removal_is_zeroing(model, IMAGES)) == 3


def test_squeeze_and_excite_gates_the_channels_it_scales():
    builder = GraphBuilder(x=IMAGE)
    wide = builder.add("Relu", builder.conv("x", "in", 3, 8))
    squeezed = builder.add("Relu", builder.conv(builder.add("GlobalAveragePool", wide), "squeeze", 8, 3))
    gate = builder.add("HardSigmoid", builder.conv(squeezed, "excite", 3, 8))
    model = builder.finish(classify(builder, builder.add("Mul", wide, gate), 8))
    coupling = only(find_couplings(model), lambda coupling: ("in.weight", 0) in places(coupling))
    assert {("squeeze.weight", 1), ("excite.weight", 0), ("excite.bias", 0), ("head.weight", 1)} <= places(coupling)
    assert len(assert_removal_is_zeroing(model, IMAGES, consumers=False)) == 2


@pytest.mark.parametrize("operator", ["Flatten", "Reshape"])
def test_flattened_channels_are_blocks_of_the_next_weight(operator):
    builder = GraphBuilder(x=IMAGE)
    inner = builder.add("MaxPool", builder.conv("x", "a", 3, 4), kernel_shape=[2, 2], strides=[2, 2])
    flat = builder.add("Flatten", inner) if operator == "Flatten" else builder.add(
        "Reshape", inner, builder.integers(-1, 36)
    )  # fmt: skip
    model = builder.finish(builder.add("Gemm", flat, builder.weight("head.weight", 36, 5)))
    coupling = only(find_couplings(model), lambda coupling: coupling.removable)
    head = coupling.with_role("consumes")[0]
    assert head.indices == tuple(tuple(range(9 * atom, 9 * atom + 9)) for atom in range(4))
    assert_removal_is_zeroing(model, IMAGES, consumers=False)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution(groups):
    builder = GraphBuilder(x=IMAGE)
    inner = builder.conv("x", "a", 3, 4)
    up = builder.add("ConvTranspose", inner, builder.weight("up.weight", 4, 3, 2, 2), builder.weight("up.bias", 3 * groups), strides=[2, 2], group=groups)  # fmt: skip  # noqa: E501
    model = builder.finish(classify(builder, builder.add("Tanh", up), 3 * groups))
    assert len(assert_removal_is_zeroing(model, IMAGES)) == {1: 2, 2: 3, 4: 2}[groups]


def test_channel_shuffle_keeps_track_of_every_channel():
    builder = GraphBuilder(x=IMAGE)
    wide = builder.conv("x", "in", 3, 8)
    kept, changed = builder.add_many("Split", wide, outputs=2, axis=1, num_outputs=2)
    joined = builder.add("Concat", kept, builder.add("Relu", builder.conv(changed, "branch", 4, 4)), axis=1)
    grid = builder.add("Reshape", joined, builder.integers(0, 2, 4, 6, 6))
    mixed = builder.add("Reshape", builder.add("Transpose", grid, perm=[0, 2, 1, 3, 4]), builder.integers(0, 8, 6, 6))
    model = builder.finish(classify(builder, mixed, 8))
    removable = assert_removal_is_zeroing(model, IMAGES)
    shuffled = only(removable, lambda coupling: ("branch.weight", 0) in places(coupling))
    assert shuffled.size == 4, "the kept half and the branch are shuffled pair by pair"
    assert next(slot for slot in shuffled.slots if slot.value == "head.weight").indices == (
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
    )


def test_parts_of_a_split_can_go_on_their_own_but_none_may_vanish():
    builder = GraphBuilder(x=IMAGE)
    left, right = builder.add_many("Split", builder.conv("x", "in", 3, 8), builder.integers(3, 5), outputs=2, axis=1)
    joined = builder.add("Add", builder.conv(left, "left", 3, 4), builder.conv(right, "right", 5, 4))
    model = builder.finish(classify(builder, joined, 4))
    sizes = [coupling.size for coupling in assert_removal_is_zeroing(model, IMAGES)]
    assert sizes == [3, 5, 4]


def test_upsampling_and_skip_connection():
    builder = GraphBuilder(x=IMAGE)
    fine = builder.add("Relu", builder.conv("x", "fine", 3, 4))
    coarse = builder.conv(builder.add("AveragePool", fine, kernel_shape=[2, 2], strides=[2, 2]), "coarse", 4, 5)
    up = builder.add("Resize", coarse, "", builder.constant("scales", np.float32([1, 1, 2, 2])), mode="nearest")
    model = builder.finish(classify(builder, builder.add("Concat", up, fine, axis=1), 9))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, IMAGES)] == [4, 5]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_takes_all_blocks_of_a_channel(mode):
    builder = GraphBuilder(x=IMAGE)
    deep = builder.add("DepthToSpace", builder.conv("x", "in", 3, 12), blocksize=2, mode=mode)
    packed = builder.add("SpaceToDepth", builder.conv(deep, "middle", 3, 5), blocksize=2)
    model = builder.finish(classify(builder, packed, 20))
    removable = assert_removal_is_zeroing(model, IMAGES)
    assert [(coupling.size, len(coupling.slots[0].indices[0])) for coupling in removable] == [(3, 4), (5, 1)]


def test_removal_changes_neither_the_model_nor_its_interface():
    builder = GraphBuilder(x=IMAGE)
    model = builder.finish(classify(builder, builder.conv("x", "a", 3, 8), 8))
    before = run(model, IMAGES[0])
    smaller = remove_channels(model, find_couplings(model)[0], range(7))
    np.testing.assert_array_equal(run(model, IMAGES[0])[0], before[0])
    assert [value.name for value in smaller.graph.inputs] == ["x"]
    assert smaller.graph.outputs[0].name == model.graph.outputs[0].name
    assert smaller.graph.initializers["a.weight"].shape == (1, 3, 1, 1)
    assert [tuple(node.outputs[0].shape)[1:] for node in smaller.graph][:2] == [(1, 6, 6), (1, 1, 1)]
