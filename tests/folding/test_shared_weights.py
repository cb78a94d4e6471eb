"""Shared blocks: one initializer with many readers, nothing lost where weights were equal, and closed forms by hand."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.folding.folding_models import BLOCKS, MODELS, PRE_NORM, arrays_of, deep, inputs_of, remove
from tests.small_graphs import context, operators, quantize, run

from edgesmith.errors import StepError
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith_folding.options.sharing import ShareBlocksOptions
from edgesmith_folding.share_blocks import ShareBlocks
from edgesmith_folding.sharing.formulas import correction, fitting_bias, mean_layer, metric, weighted_layer

WEIGHTS = ("weighted", "mean", "first")


def shared(model: Model, data: Any = None, **options: Any) -> Model:
    settings_ = context(ShareBlocksOptions(**options), data)
    assert ShareBlocks().check(model, settings_).status == "ok"
    return ShareBlocks().apply(model, settings_)


def with_equal_blocks(model: Model, group: tuple[int, ...]) -> Model:
    """Return a copy whose blocks have the layers of the group's first block, as copies; norms stay their own."""
    copy = model.clone()
    weights = copy.graph.initializers
    for number in group[1:]:
        for name, value in weights.items():
            if name.startswith(f"block{number}.") and ".norm" not in name:
                value.const_value = weights[name.replace(f"block{number}.", f"block{group[0]}.")].const_value
    return copy


def without_biases_of_down(model: Model) -> Model:
    """Return a copy whose second MLP projections have no bias, as in the networks this one is named after."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    for block in find_structure(copy.ir).blocks:
        down = block.mlps[0].down
        GraphEditor(copy.graph).bypass(values[down.output].producer())
        copy.graph.initializers.pop(down.bias)
    return copy


def stored_bytes(model: Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def layer_bytes(model: Model, block: int) -> int:
    weights = model.graph.initializers.items()
    return sum(v.const_value.nbytes for name, v in weights if name.startswith(f"block{block}.") and ".norm" not in name)


@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from((*PRE_NORM, "bert")),
    weights=st.sampled_from(WEIGHTS),
    group=st.sampled_from([(0, 1), (1, 2, 3), (0, 3), (4, 2)]),
    rank=st.integers(0, 2),
)
def test_blocks_of_equal_weights_change_no_bit(name, weights, group, rank):
    model = with_equal_blocks(deep(name), group)
    data = inputs_of(model, 2)
    before = arrays_of(model)
    result = shared(model, data, groups=(group,), weights=weights, correction_rank=rank)
    expected = run(model, data)
    assert all(np.array_equal(array, expected[key]) for key, array in run(result, data).items())
    assert stored_bytes(result) == stored_bytes(model) - (len(group) - 1) * layer_bytes(model, group[0])
    assert len(result.graph) == len(model.graph)
    assert arrays_of(model) == before


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_each_shared_initializer_is_one_with_a_reader_in_each_block(name, weights):
    model = deep(name)
    data = inputs_of(model, 4)
    result = shared(model, data, groups=((1, 2, 3),), weights=weights)
    blocks = find_structure(result.ir).blocks
    assert len(blocks) == BLOCKS
    assert len({block.mlps[0].down.weight for block in blocks[1:4]}) == 1
    names = {block.attentions[0].key.linear.weight for block in blocks[1:4]}
    assert len(names) == 1 and len(result.graph.initializers[names.pop()].uses()) == 3
    assert stored_bytes(result) == stored_bytes(model) - 2 * layer_bytes(model, 1)
    assert all(value.uses() for value in result.graph.initializers.values())
    assert {name for name in arrays_of(model) if ".norm" in name} <= set(arrays_of(result))
    assert all(np.isfinite(array).all() for array in run(result, data).values())


def test_groups_are_neighbours_in_the_middle():
    model = deep("gpt")
    for size, keep, expected in ((2, 0, 2), (2, 1, 1), (3, 1, 1), (5, 0, 1)):
        options = {"group_size": size, "keep_first": keep, "keep_last": keep, "weights": "first"}
        down = [block.mlps[0].down.weight for block in find_structure(shared(model, **options).ir).blocks]
        assert len(set(down)) == BLOCKS - expected * (size - 1)
        assert len(set(down[:keep] + down[BLOCKS - keep :])) == 2 * keep
    by_default = ShareBlocks().check(model, context(ShareBlocksOptions(weights="first")))
    assert by_default.status == "skip" and "keep_first" in by_default.reason


def test_a_group_of_one_changes_nothing():
    model = deep("llama")
    for options in (ShareBlocksOptions(group_size=1), ShareBlocksOptions(groups=((2,),))):
        settings_ = context(options)
        assert ShareBlocks().check(model, settings_).status == "skip"
        same = ShareBlocks().apply(model, settings_)
        assert arrays_of(same) == arrays_of(model) and same.ir is not model.ir


def test_blocks_that_compute_something_else_do_not_share():
    model = deep("llama").clone()
    block = find_structure(model.ir).blocks[2]
    # A block with another mask: what is hidden is an output of its own node.
    values = ir.convenience.create_value_mapping(model.graph)
    where = values[block.attentions[0].probability].producer().inputs[0].producer()
    other = ir.node("Identity", [where.inputs[0]], name="window")
    other.outputs[0].name = "window_mask"
    model.graph.insert_before(where, other)
    where.replace_input_with(0, other.outputs[0])
    settings_ = context(ShareBlocksOptions(groups=((1, 2),), weights="first"))
    verdict = ShareBlocks().check(model, settings_)
    assert verdict.status == "refuse"
    assert "something else than block 1: they differ in masks or position tables" in verdict.reason
    assert "as it reaches this step" in verdict.reason
    with pytest.raises(StepError, match="block 2 cannot share"):
        ShareBlocks().apply(model, settings_)
    result = shared(model, groups=((0, 1),), weights="first")
    assert stored_bytes(result) < stored_bytes(model)
    by_turns = context(ShareBlocksOptions(weights="first", keep_first=1, keep_last=0))
    ShareBlocks().apply(model, by_turns)
    remark = by_turns.notes.remarks[-1]
    assert "block 1: it differs from block 2 in masks" in remark and "block 2: it differs from block 3" in remark
    skipped = context(ShareBlocksOptions(weights="first", keep_first=1, keep_last=2))
    assert "block 2: it differs from block 1" in ShareBlocks().check(model, skipped).reason


@pytest.mark.parametrize(
    ("group", "weights", "rank"), [((1, 2), "weighted", 0), ((0, 1), "weighted", 2), ((0, 1), "mean", 0)]
)
def test_a_bias_that_makes_up_for_a_block_stays_private(group, weights, rank):
    model = without_biases_of_down(deep("llama"))
    data = inputs_of(model, 16)
    removed = remove(model, data, blocks=(2,), compensation="folded")
    layers = [block.mlps[0].down for block in find_structure(removed.ir).blocks]
    assert [layer.bias is not None for layer in layers] == [False, True, False, False]
    result = shared(removed, data, groups=(group,), weights=weights, correction_rank=rank)
    once = [value for name, value in result.graph.initializers.items() if name.startswith("shared.")]
    assert sum(len(value.uses()) == 2 and len(value.shape) == 2 for value in once) == 7
    assert operators(result)["Add"] == operators(removed)["Add"] + 2 * 7 * (rank > 0)
    outputs = run(result, data)["logits"]
    assert np.isfinite(outputs).all() and not np.array_equal(outputs, run(removed, data)["logits"])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equal_weights_change_no_bit_where_one_block_alone_has_a_bias(weights):
    model = without_biases_of_down(deep("llama"))
    data = inputs_of(model, 16)
    removed = remove(with_equal_blocks(model, (0, 1)), data, blocks=(2,), compensation="folded")
    initializers, down = removed.graph.initializers, [b.mlps[0].down for b in find_structure(removed.ir).blocks]
    initializers[down[0].weight].const_value = initializers[down[1].weight].const_value
    expected = run(removed, data)["logits"]
    assert np.array_equal(run(shared(removed, data, groups=((0, 1),), weights=weights), data)["logits"], expected)


def test_blocks_that_hand_out_their_keys_share_weights_and_keep_their_own_outputs():
    model = deep("llama").clone()
    values = ir.convenience.create_value_mapping(model.graph)
    keys = [block.attentions[0].key.linear.output for block in find_structure(model.ir).blocks]
    model.graph.outputs.extend(values[name] for name in keys)
    result = shared(model, groups=((1, 2),), weights="first")
    assert [value.name for value in result.graph.outputs] == ["logits", *keys]
    data = inputs_of(model, 2)
    outputs, before = run(result, data), run(model, data)
    # Nothing before the second block of the group is touched, and its keys come from other weights.
    assert all(np.array_equal(outputs[name], before[name]) for name in keys[:2])
    assert not np.array_equal(outputs[keys[2]], before[keys[2]])


def test_quantized_shared_weights_are_stored_once():
    model = deep("llama")
    data = inputs_of(model, 4)
    apart = quantize(model, data)
    once = quantize(shared(model, groups=((1, 2, 3),), weights="first"), data)
    codes = [
        sum(value.const_value.nbytes for value in each.graph.initializers.values() if value.dtype == ir.DataType.INT8)
        for each in (apart, once)
    ]
    weights = sum(
        value.const_value.size
        for name, value in model.graph.initializers.items()
        if name.startswith("block1.") and len(value.shape) == 2
    )
    # Zero points are int8 too, so the saving is at least that of the matrices.
    assert codes[0] - codes[1] >= 2 * weights


def test_the_weighted_layer_is_the_least_squares_one():
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(40, 5)) @ generator.normal(size=(5, 5)) for _ in range(3)]
    layers = [generator.normal(size=(5, 2)) for _ in range(3)]
    found = weighted_layer(layers, [x.T @ x for x in inputs])
    stacked = np.vstack(inputs)
    wanted = np.vstack([x @ layer for x, layer in zip(inputs, layers, strict=True)])
    np.testing.assert_allclose(found, np.linalg.lstsq(stacked, wanted, rcond=None)[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean_layer(layers), sum(layers) / 3)


def test_directions_that_nobody_reads_are_those_of_the_mean():
    gram = np.diag([1.0, 0.0])
    layers = [np.array([[1.0], [1.0]]), np.array([[3.0], [5.0]])]
    np.testing.assert_allclose(weighted_layer(layers, [gram, 3 * gram]), [[2.5], [3.0]], atol=1e-5)
    np.testing.assert_allclose(weighted_layer(layers, [0 * gram, 0 * gram]), [[2.0], [3.0]])


def test_a_correction_is_the_nearest_matrix_of_its_rank():
    generator = np.random.default_rng(1)
    difference = generator.normal(size=(6, 2)) @ generator.normal(size=(2, 9))
    left, right = correction(difference, 4)
    assert left.shape == (6, 2)
    np.testing.assert_allclose(left @ right, difference, atol=1e-12)
    left, right = correction(difference, 1)
    values = np.linalg.svd(difference, compute_uv=False)
    assert np.linalg.norm(difference - left @ right) == pytest.approx(values[1])
    assert correction(np.zeros((3, 3)), 2)[0].shape == (3, 0)


def test_no_matrix_of_its_rank_errs_less_on_what_is_read_than_a_correction():
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(60, 6)) * np.logspace(0, -2, 6)
    # Large where little is read, as the difference from a weighted mean is.
    difference = generator.normal(size=(6, 5)) * np.logspace(-2, 0, 6)[:, None]

    def error(product):
        return float(np.square(inputs @ (difference - product)).sum())

    left, right = correction(difference, 2, inputs.T @ inputs)
    best = error(left @ right)
    # Eckart and Young: what is left are the smaller singular values of the outputs.
    assert best == pytest.approx(np.square(np.linalg.svd(inputs @ difference, compute_uv=False)[2:]).sum(), rel=1e-3)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(100):
            one = left + scale * np.abs(left).max() * generator.normal(size=left.shape)
            # The best right factor for this left one, so that all of the rivals are strong.
            other = np.linalg.lstsq(inputs @ one, inputs @ difference, rcond=None)[0]
            assert error(one @ other) >= best * (1 - 1e-3)
    plain = np.matmul(*correction(difference, 2))
    assert best < 0.5 * error(plain)
    np.testing.assert_allclose(np.matmul(*correction(difference, 2, np.zeros((6, 6)))), plain, atol=1e-12)


def test_a_bias_makes_up_for_the_mean_of_what_a_correction_leaves():
    generator = np.random.default_rng(3)
    inputs = np.hstack([generator.normal(3, 1, (50, 4)), np.ones((50, 1))])
    own, shared_weights = generator.normal(size=(5, 3)), generator.normal(size=(4, 3))
    gram = inputs.T @ inputs
    left, right = correction(own[:-1] - shared_weights, 1, metric(gram, has_bias=True))
    bias = fitting_bias(own, shared_weights + left @ right, gram)
    left_over = inputs @ own - inputs[:, :-1] @ (shared_weights + left @ right) - bias
    np.testing.assert_allclose(left_over.mean(0), 0, atol=1e-12)
    # With the best bias, what is left of inputs without their mean is all of the error.
    centred = (inputs - inputs.mean(0))[:, :-1] @ (own[:-1] - shared_weights)
    expected = np.square(np.linalg.svd(centred, compute_uv=False)[1:]).sum()
    assert np.square(left_over).sum() == pytest.approx(expected, rel=1e-4)
    assert np.array_equal(fitting_bias(own, shared_weights), own[-1])


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_error_of_weighted_weights_falls_with_the_rank_on_fresh_samples(name):
    model = deep(name)
    data, fresh = inputs_of(model, 128), inputs_of(model, 32, seed=5)
    (expected,) = run(model, fresh).values()
    errors = []
    for rank in (0, 1, 2, 8):  # a plain SVD gives errors that rise
        (found,) = run(shared(model, data, groups=((1, 2),), correction_rank=rank), fresh).values()
        errors.append(float(np.square(found - expected).sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_corrections_of_full_rank_give_each_block_its_weights_back():
    model = deep("llama")
    data = inputs_of(model, 2)
    plain = shared(model, data, groups=((1, 2),), weights="mean")
    corrected = shared(model, data, groups=((1, 2),), weights="mean", correction_rank=64)
    expected = run(model, data)["logits"]
    errors = [np.abs(run(each, data)["logits"] - expected).max() for each in (plain, corrected)]
    # The shared matrix and the factors are rounded to float32, twice as many roundings as before.
    assert errors[1] < 1e-3 * np.abs(expected).max() < errors[0]
    assert operators(corrected)["MatMul"] == operators(plain)["MatMul"] + 2 * 2 * 7


def test_weighted_weights_lose_less_than_the_first_on_the_stream():
    model = deep("llama")
    data, fresh = inputs_of(model, 48), inputs_of(model, 8, seed=7)
    expected = run(model, fresh)["logits"]
    errors = {
        weights: np.square(
            run(shared(model, data, groups=((1, 2, 3),), weights=weights), fresh)["logits"] - expected
        ).sum()
        for weights in WEIGHTS
    }
    assert errors["weighted"] < errors["first"]


def test_graphs_of_any_depth_are_read():
    deepest = MODELS["vit"](seed=0, blocks=48)
    assert ShareBlocks().check(deepest, context(ShareBlocksOptions(weights="mean"))).status == "ok"


def test_it_says_what_it_needs():
    model = deep("gpt")
    verdict = ShareBlocks().check(model, context(ShareBlocksOptions()))
    assert verdict.status == "refuse" and "--data" in verdict.reason
    assert not ShareBlocksOptions(weights="mean").needs.data and ShareBlocksOptions().needs.data
    with pytest.raises(ValueError, match="twice"):
        ShareBlocksOptions(groups=((1, 2), (2, 3)))
