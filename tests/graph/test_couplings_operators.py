"""Couplings operator by operator: layouts, statistics, quantization, and everything that holds channels."""

import numpy as np
import pytest
from coupling_checks import assert_removal_is_zeroing, only, places, run, samples, zeroed
from onnx import helper, numpy_helper

from edgesmith.errors import ModelError
from edgesmith.graph.couplings import Coupling, find_couplings, remove_channels, remove_many
from edgesmith.testing.builder import GraphBuilder

ROWS = samples((2, 6), (5, 6))
ROW = ("n", 6)
SEQUENCES = samples((1, 4, 6), (2, 3, 6))
SEQUENCE = ("n", "s", 6)


def hidden(couplings: tuple[Coupling, ...], name: str = "in.weight") -> Coupling:
    """Return the coupling of the channels that a weight makes on its last axis."""
    return only(couplings, lambda each: any(s.value == name and s.role == "produces" for s in each.slots))


def wrapped(operator: str, *inputs: str, opset: int = 20, **attributes: object):
    """Return a graph with one operator between two matrix products over channels."""
    builder = GraphBuilder(x=ROW, opset=opset)
    middle = builder.add(operator, builder.linear("x", "in", 6, 8), *inputs, **attributes)
    return builder.finish(builder.linear(middle, "out", 8, 3))


# -- layouts -------------------------------------------------------------------------------------------------------


def test_steps_and_reversals_of_a_slice_stay_what_they_were():
    builder = GraphBuilder(x=ROW)
    wide = builder.linear("x", "in", 6, 9)
    odd = builder.add("Slice", wide, *(builder.integers(number) for number in (1, 9, 1, 2)))
    back = builder.add("Slice", wide, *(builder.integers(number) for number in (-1, -100, 1, -1)))
    model = builder.finish(builder.add("Add", builder.linear(odd, "a", 4, 3), builder.linear(back, "b", 9, 3)))
    removable = assert_removal_is_zeroing(model, ROWS, seed=3)
    assert sorted(coupling.size for coupling in removable) == [4, 5], "every second channel has one reader more"


def test_gather_with_constant_indices_reorders_repeats_and_drops():
    builder = GraphBuilder(x=ROW)
    picked = builder.add("Gather", builder.linear("x", "in", 6, 5), builder.integers(3, 0, 3, -1), axis=1)
    model = builder.finish(builder.linear(picked, "out", 4, 3))
    couplings = [coupling for coupling in find_couplings(model) if coupling.removable]
    assert sorted(coupling.size for coupling in couplings) == [2, 3], "two channels end at the gather"
    coupling = only(couplings, lambda each: ("out.weight", 0) in places(each))
    out = next(slot for slot in coupling.slots if slot.value == "out.weight")
    assert out.indices == ((1,), (0, 2), (3,))
    smaller = remove_channels(model, coupling, [1])
    assert smaller.graph.initializers["out.weight"].shape == (2, 3)
    np.testing.assert_allclose(run(smaller, ROWS[0])[0], run(zeroed(model, coupling, [1]), ROWS[0])[0], atol=1e-5)


def test_a_channel_that_is_picked_by_its_number_stays():
    builder = GraphBuilder(x=ROW)
    wide = builder.linear("x", "in", 6, 5)
    first = builder.add("Gather", wide, builder.constant("zero", np.int64(2)), axis=1)
    model = builder.finish(builder.linear(wide, "out", 5, 3), builder.add("Sqrt", builder.add("Abs", first)))
    held, free = [coupling for coupling in find_couplings(model) if ("in.weight", 1) in places(coupling)][::-1]
    if held.removable:
        held, free = free, held
    assert held.size == 1 and "picked by its number" in held.reason
    assert free.size == 4
    for atom in range(4):
        smaller = remove_channels(model, free, [atom])
        np.testing.assert_allclose(run(smaller, ROWS[0])[1], run(model, ROWS[0])[1], atol=1e-6)


def test_padding_and_tiling_of_channels():
    builder = GraphBuilder(x=ROW)
    padded = builder.add("Pad", builder.linear("x", "in", 6, 4), builder.integers(0, 2, 0, 1))
    tiled = builder.add("Tile", padded, builder.integers(1, 2))
    model = builder.finish(builder.linear(tiled, "out", 14, 3))
    coupling = assert_removal_is_zeroing(model, ROWS)[0]
    assert coupling.with_role("consumes")[0].indices == tuple((2 + atom, 9 + atom) for atom in range(4))


def test_halves_of_a_gated_layer_go_in_pairs():
    builder = GraphBuilder(x=SEQUENCE)
    halves = builder.add_many("Split", builder.linear("x", "in", 6, 10), outputs=2, axis=-1, num_outputs=2)
    gated = builder.add("Mul", builder.add("Sigmoid", halves[0]), halves[1])
    model = builder.finish(builder.linear(gated, "out", 5, 6))
    coupling = assert_removal_is_zeroing(model, SEQUENCES)[0]
    assert coupling.slots[0].indices == tuple((atom, atom + 5) for atom in range(5))


def test_einsum_letters_are_channels():
    builder = GraphBuilder(x=SEQUENCE)
    wide = builder.add("Einsum", "x", builder.weight("in.weight", 6, 3, 4), equation="nsc,chd->nhsd")
    model = builder.finish(builder.add("Einsum", wide, builder.weight("out.weight", 3, 4, 6), equation="nhsd,hdc->nsc"))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, SEQUENCES)] == [3, 4]


def test_squeezed_and_unsqueezed_axes():
    builder = GraphBuilder(x=("n", 6, 1))
    kernel = builder.weight("in.weight", 4, 6, 1)
    narrow = builder.add("Squeeze", builder.add("Conv", "x", kernel), builder.integers(2))
    wide = builder.add("Unsqueeze", builder.linear(narrow, "mid", 4, 5), builder.integers(0, -1))
    model = builder.finish(builder.add("Conv", builder.add("Squeeze", wide, builder.integers(0)), builder.weight("out.weight", 2, 5, 1)))  # fmt: skip  # noqa: E501
    removable = assert_removal_is_zeroing(model, samples((1, 6, 1), (3, 6, 1)))
    assert [coupling.size for coupling in removable] == [4, 5]


def test_squeeze_without_axes_keeps_an_axis_that_shrinks_to_one():
    builder = GraphBuilder(x=(2, 6, 1))
    narrow = builder.add("Squeeze", builder.add("Conv", "x", builder.weight("in.weight", 4, 6, 1)))
    model = builder.finish(builder.linear(narrow, "out", 4, 3))
    smaller = remove_channels(model, hidden(find_couplings(model)), [0, 1, 3])
    assert run(smaller, samples((2, 6, 1))[0])[0].shape == (2, 3)


def test_expanded_axes_and_constants_of_a_shape_follow():
    builder = GraphBuilder(x=SEQUENCE)
    wide = builder.linear("x", "in", 6, 8)
    shape = builder.add("Shape", wide)
    noise = builder.add("Expand", builder.constant("one", np.float32([0.5])), shape)
    zeros = builder.add("ConstantOfShape", shape)
    total = builder.add("Add", builder.add("Add", wide, noise), zeros)
    model = builder.finish(builder.linear(total, "out", 8, 3))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, SEQUENCES)] == [8]


def test_short_targets_and_sizes_of_some_axes_follow():
    builder = GraphBuilder(x=("n", 3, 4, 4))
    inner = builder.conv("x", "in", 3, 6)
    spread = builder.add("Expand", inner, builder.integers(6, 4, 4))
    larger = builder.add("Resize", spread, "", "", builder.integers(8, 8), axes=[2, 3], mode="nearest")
    whole = builder.add("Resize", larger, "", "", builder.integers(1, 6, 4, 4), mode="nearest")
    model = builder.finish(builder.conv(whole, "out", 6, 2))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, samples((1, 3, 4, 4)))] == [6]


def test_a_repetition_count_computed_from_channels_holds_them():
    builder = GraphBuilder(x=ROW)
    inner = builder.linear("x", "in", 6, 8)
    double = builder.add("Mul", builder.add("Shape", inner, start=1), builder.integers(2))
    copies = builder.add("Expand", builder.add("Unsqueeze", inner, builder.integers(0)), builder.add(
        "Concat", double, builder.integers(1, 1), axis=0
    ))  # fmt: skip
    model = builder.finish(builder.linear(builder.add("ReduceSum", copies, builder.integers(0)), "out", 8, 3))
    assert not hidden(find_couplings(model)).sliceable


# -- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "extra", "attributes"),
    [
        ("LayerNormalization", 2, {}),
        ("Softmax", 0, {"axis": -1}),
        ("LogSoftmax", 0, {"axis": 1}),
    ],
)
def test_normalised_channels_are_coupled_but_not_removable(operator, extra, attributes):
    builder = GraphBuilder(x=ROW)
    inner = builder.linear("x", "in", 6, 8)
    parameters = [builder.weight(f"norm.{index}", 8) for index in range(extra)]
    middle = builder.add(operator, inner, *parameters, **attributes)
    model = builder.finish(builder.linear(middle, "out", 8, 3))
    coupling = hidden(find_couplings(model))
    assert not coupling.removable and coupling.sliceable
    assert operator in coupling.reason
    assert {("in.weight", 1), ("out.weight", 0)} | {(name, 0) for name in parameters} <= places(coupling)
    with pytest.raises(ModelError, match=operator):
        remove_channels(model, coupling, [0])
    smaller = remove_channels(model, coupling, [0, 5], allow_inexact=True)
    assert run(smaller, ROWS[0])[0].shape == (2, 3)


def test_a_decomposed_root_mean_square_norm_is_not_removable():
    builder = GraphBuilder(x=ROW)
    inner = builder.linear("x", "in", 6, 8)
    mean = builder.add("ReduceMean", builder.add("Mul", inner, inner), builder.integers(-1))
    model = builder.finish(builder.linear(builder.add("Div", inner, builder.add("Sqrt", mean)), "out", 8, 3))
    coupling = hidden(find_couplings(model))
    assert not coupling.removable and "ReduceMean" in coupling.reason


@pytest.mark.parametrize("operator", ["ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"])
def test_sums_over_channels_do_not_notice_a_zero_channel(operator):
    builder = GraphBuilder(x=ROW)
    inner = builder.add("Relu", builder.linear("x", "in", 6, 8))
    model = builder.finish(builder.add(operator, inner, builder.integers(1)))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, ROWS)] == [8]


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMean", "ReduceProd"])
def test_other_reductions_over_channels_do(operator):
    builder = GraphBuilder(x=ROW)
    model = builder.finish(builder.add(operator, builder.linear("x", "in", 6, 8), builder.integers(1)))
    coupling = hidden(find_couplings(model))
    assert not coupling.removable and operator in coupling.reason


def test_unit_length_vectors_and_a_mean_over_tokens_pass_channels_on():
    builder = GraphBuilder(x=SEQUENCE)
    pooled = builder.add("ReduceMean", builder.linear("x", "in", 6, 8), builder.integers(1), keepdims=0)
    model = builder.finish(builder.linear(builder.add("LpNormalization", pooled, axis=1), "out", 8, 3))
    assert [coupling.size for coupling in assert_removal_is_zeroing(model, SEQUENCES, consumers=False)] == [8]


def test_group_and_instance_normalization():
    builder = GraphBuilder(x=("n", 3, 5, 5), opset=21)
    grouped = builder.add("GroupNormalization", builder.conv("x", "a", 3, 12), builder.weight("g.scale", 12), builder.weight("g.bias", 12), num_groups=3)  # fmt: skip  # noqa: E501
    inner = builder.conv(grouped, "b", 12, 6)
    each = builder.add("InstanceNormalization", inner, builder.weight("i.scale", 6), builder.weight("i.bias", 6))
    model = builder.finish(builder.conv(each, "c", 6, 2))
    removable = assert_removal_is_zeroing(model, samples((1, 3, 5, 5)))
    assert [(coupling.size, len(coupling.slots[0].indices[0])) for coupling in removable] == [(3, 4), (6, 1)]
    inexact = only(find_couplings(model), lambda coupling: coupling.sliceable and not coupling.removable)
    assert inexact.size == 4 and "GroupNormalization" in inexact.reason


def test_group_normalization_with_a_scale_per_group_is_held():
    builder = GraphBuilder(x=("n", 3, 5, 5), opset=18)
    inner = builder.conv("x", "a", 3, 12)
    grouped = builder.add(
        "GroupNormalization", inner, builder.weight("scale", 3), builder.weight("bias", 3), num_groups=3
    )
    model = builder.finish(builder.conv(grouped, "b", 12, 6))
    assert all("scale for each group" in coupling.reason for coupling in find_couplings(model)[:-1])


# -- quantization --------------------------------------------------------------------------------------------------


def test_scales_and_zero_points_go_with_their_channel():
    builder = GraphBuilder(x=ROW)
    generator = np.random.default_rng(0)

    def quantized(name: str, inner: int, outer: int, zero: int) -> str:
        weight = builder.constant(name, generator.integers(-99, 99, (inner, outer)).astype(np.int8))
        scale = builder.constant(f"{name}.scale", generator.uniform(0.002, 0.02, outer).astype(np.float32))
        return builder.add(
            "DequantizeLinear", weight, scale, builder.constant(f"{name}.zero", np.full(outer, zero, np.int8)), axis=1
        )

    inner = builder.add("MatMul", "x", quantized("in", 6, 8, 5))
    scale, zero = builder.constant("scale", np.float32(0.02)), builder.constant("zero", np.int8(3))
    rounded = builder.add("DequantizeLinear", builder.add("QuantizeLinear", inner, scale, zero), scale, zero)
    model = builder.finish(builder.add("MatMul", rounded, quantized("out", 8, 3, 0)))
    coupling = hidden(find_couplings(model), "in")
    assert places(coupling) == {("in", 1), ("in.scale", 0), ("in.zero", 0), ("out", 0)}
    assert [slot.role for slot in coupling.slots] == ["produces", "passes", "passes", "consumes"]
    assert len(assert_removal_is_zeroing(model, ROWS)) == 1


def test_only_whole_blocks_of_one_scale_can_go():
    builder = GraphBuilder(x=ROW, opset=21)
    inner = builder.linear("x", "in", 6, 8)
    weight = builder.constant("out", np.arange(24, dtype=np.int8).reshape(8, 3))
    scale = builder.constant("out.scale", np.random.default_rng(0).uniform(0.1, 1, (4, 3)).astype(np.float32))
    blocked = builder.add("DequantizeLinear", weight, scale, axis=0, block_size=2)
    model = builder.finish(builder.add("MatMul", inner, blocked))
    coupling = only(find_couplings(model), lambda each: each.removable)
    assert coupling.size == 4 and ("out.scale", 0) in places(coupling)
    assert len(assert_removal_is_zeroing(model, ROWS)) == 1


# -- what holds channels -------------------------------------------------------------------------------------------


def test_an_operator_without_a_rule_holds_its_channels_and_is_named():
    builder = GraphBuilder(x=ROW)
    odd = builder.add("Twist", builder.linear("x", "in", 6, 8), domain="custom")
    model = builder.finish(builder.linear(odd, "out", 8, 3))
    coupling = hidden(find_couplings(model))
    assert not coupling.sliceable and "custom.Twist" in coupling.reason and "Twist_2" in coupling.reason


def test_a_length_that_is_used_as_a_number_holds_its_channels():
    builder = GraphBuilder(x=ROW)
    inner = builder.linear("x", "in", 6, 8)
    width = builder.add("Cast", builder.add("Shape", inner, start=1), to=1)
    model = builder.finish(builder.linear(builder.add("Div", inner, builder.add("Sqrt", width)), "out", 8, 3))
    coupling = hidden(find_couplings(model))
    assert not coupling.sliceable and "computes with the length" in coupling.reason


def test_channels_that_meet_a_dynamic_axis_are_held():
    builder = GraphBuilder(x=ROW, y=("n", "m"))
    model = builder.finish(builder.linear(builder.add("Add", builder.linear("x", "in", 6, 8), "y"), "out", 8, 3))
    assert not hidden(find_couplings(model)).sliceable


def test_weights_in_constant_nodes_and_values_read_by_subgraphs_are_held():
    builder = GraphBuilder(x=ROW)
    tensor = numpy_helper.from_array(np.ones((8, 3), np.float32))
    inner = builder.linear("x", "in", 6, 8)
    model = builder.finish(builder.add("MatMul", inner, builder.add("Constant", value=tensor)))
    assert "Constant node" in hidden(find_couplings(model)).reason

    builder = GraphBuilder(x=ROW)
    inner = builder.linear("x", "in", 6, 8)
    branches = [
        helper.make_graph(
            [helper.make_node(operator, [inner], [operator])],
            operator,
            [],
            [helper.make_tensor_value_info(operator, 1, ["n", 8])],
        )
        for operator in ("Relu", "Tanh")
    ]
    either = builder.add("If", builder.constant("which", True), then_branch=branches[0], else_branch=branches[1])
    model = builder.finish(builder.add("Add", builder.linear(inner, "out", 8, 3), builder.linear(either, "o", 8, 3)))
    assert "read inside a subgraph" in hidden(find_couplings(model)).reason


def test_readers_of_one_initializer_do_not_hold_each_other():
    builder = GraphBuilder(x=ROW)
    shift = builder.constant("shift", np.linspace(-1, 1, 8).astype(np.float32))
    first = builder.add("Add", builder.add("MatMul", "x", builder.weight("a", 6, 8)), shift)
    second = builder.add("Add", builder.add("MatMul", first, builder.weight("b", 8, 8)), shift)
    model = builder.finish(builder.linear(second, "out", 8, 3))
    couplings = [coupling for coupling in find_couplings(model) if coupling.removable]
    assert [coupling.size for coupling in couplings] == [8, 8]
    smaller = remove_channels(model, couplings[0], [0, 1, 2])
    shapes = sorted(tuple(v.shape) for name, v in smaller.graph.initializers.items() if name.startswith("shift"))
    assert shapes == [(5,), (8,)]
    assert_removal_is_zeroing(model, ROWS)
    both = remove_many(model, [(couplings[0], [0, 1, 2]), (couplings[1], [0, 1, 2])])
    assert [tuple(v.shape) for name, v in both.graph.initializers.items() if name.startswith("shift")] == [(5,)]


def test_atoms_of_several_couplings_go_in_one_call():
    builder = GraphBuilder(x=ROW)
    model = builder.finish(builder.linear(builder.linear(builder.linear("x", "a", 6, 8), "b", 8, 7), "c", 7, 3))
    first, second = [coupling for coupling in find_couplings(model) if coupling.removable]
    at_once = remove_many(model, [(first, [1, 2]), (second, [0, 6])])
    smaller = remove_channels(model, first, [1, 2])
    stepwise = remove_channels(smaller, find_couplings(smaller)[1], [0, 6])
    np.testing.assert_array_equal(run(at_once, ROWS[0])[0], run(stepwise, ROWS[0])[0])
    assert at_once.graph.initializers["b.weight"].shape == (6, 5)


def test_bad_requests_are_refused():
    builder = GraphBuilder(x=ROW)
    model = builder.finish(builder.linear(builder.linear("x", "in", 6, 8), "out", 8, 3))
    coupling, last = find_couplings(model)
    for request, words in [([8], "no atom 8"), ([-1], "no atom -1"), (range(8), "nothing would be left")]:
        with pytest.raises(ModelError, match=words):
            remove_channels(model, coupling, request)
    with pytest.raises(ModelError, match="output of the graph"):
        remove_channels(model, last, [0], allow_inexact=True)
    smaller = remove_channels(model, coupling, [0])
    with pytest.raises(ModelError, match="has length 7, the coupling says 8"):
        remove_channels(smaller, coupling, [0])
    other = GraphBuilder(y=ROW)
    with pytest.raises(ModelError, match="has length None"):
        remove_channels(other.finish(other.add("Relu", "y")), coupling, [0])


def test_old_opsets_and_nameless_values_are_refused():
    model = GraphBuilder(x=ROW, opset=11)
    with pytest.raises(ModelError, match="opset 11"):
        find_couplings(model.finish(model.add("Relu", "x")))
    unnamed = wrapped("Relu")
    unnamed.graph[0].outputs[0].name = None
    with pytest.raises(ModelError, match="no name"):
        find_couplings(unnamed)
