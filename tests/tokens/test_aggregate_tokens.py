"""aggregate-tokens on small vision transformers: every form against NumPy, and what the graph promises."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_graphs import context, operators, run
from tests.tokens.aggregate_networks import (
    WIDTH,
    aggregate,
    aggregate_with_notes,
    half,
    images,
    older,
    verdict,
    vision,
)
from tests.tokens.attention_networks import fused

from edgesmith.errors import StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith.testing.models import tiny_bert, tiny_cnn
from edgesmith_tokens.aggregate_tokens import AggregateTokens
from edgesmith_tokens.aggregation.cells import Grid, cell_labels, coarser_grid
from edgesmith_tokens.aggregation.clusters import k_means, spread
from edgesmith_tokens.aggregation.matrices import averaging
from edgesmith_tokens.aggregation.reducers import LEARNED_BIAS, LEARNED_WEIGHT, SOFTNESS, FixedAverage
from edgesmith_tokens.finding.vision import find_vision_streams
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.aggregation import AggregateTokensOptions
from edgesmith_tokens.options.merging import MergeTokensOptions
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static_attention import StaticAttention
from edgesmith_tokens.tokens.reduction import Tokens
from edgesmith_tokens.tokens.sizes import logarithms, weigh_keys
from edgesmith_tokens.tokens.writer import Writer

FORMS = ("pool", "cluster", "attention-guided", "learned", "pca", "random")
SIZED = ("pool", "cluster", "attention-guided", "random")
QUICK = {"epochs": 1.0, "batch_size": 4}


def answer(model: Model, data: dict) -> np.ndarray:
    (output,) = run(model, data).values()
    return output


def tapped(model: Model, data: dict, *values: str) -> list[np.ndarray]:
    results = ReferenceSession(model.ir, taps=values, optimization="disabled").run(data)
    return [results[name] for name in values]


def block_inputs(model: Model) -> list[str]:
    return [block.input for block in find_structure(model.ir).blocks]


def behind(model: Model, value: str) -> str:
    """Return what a block reads in place of a value: what aggregation made of it."""
    (made,) = (
        block.input
        for block in find_structure(model.ir).blocks
        if str(_producer(model, block.input)).startswith("tokens")
    )
    return made


def _producer(model: Model, value: str) -> str | None:
    return next((node.name for node in model.graph for output in node.outputs if output.name == value), None)


def all_sizes(model: Model, data: dict) -> list[np.ndarray]:
    """Return the sizes of tokens at each place, [1 or batch, tokens]."""
    found = []
    for node in model.graph:
        if node.op_type == "Log" and node.outputs[0].uses()[0].node.op_type == "Reshape":
            constant = constant_value(node.inputs[0])
            array = constant if constant is not None else tapped(model, data, str(node.inputs[0].name))[0]
            found.append(array[..., 0])
    return sorted(found, key=lambda array: -array.shape[1])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_pyramid(form):
    model = vision(blocks=3)
    data = images(model, 8)
    smaller, remarks = aggregate_with_notes(model, data, form=form, **QUICK)
    assert remarks[0] == f"Tokens x blocks ({form}): 17 x 1, 9 x 1, 5 x 1."
    for count in (1, 3):
        batch = {"pixels": data["pixels"][:count]}
        wanted, found = answer(model, batch), answer(smaller, batch)
        assert found.shape == wanted.shape and np.isfinite(found).all() and not np.array_equal(found, wanted)
        # Each image has its own answer, whatever stands beside it in the batch; products may be blocked otherwise.
        np.testing.assert_allclose(found[0], answer(smaller, {"pixels": data["pixels"][:1]})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_gives_the_same_bytes_and_the_input_stays(form):
    model = vision(blocks=2)
    data, before = images(model, 8), model.digest()
    first, second = (aggregate(model, data, form=form, **QUICK) for _ in range(2))
    assert first.digest() == second.digest()
    assert model.digest() == before


def test_nothing_to_keep_back_is_nothing_to_do():
    model = vision(blocks=3)
    for options in ({"keep": 1.0}, {"at": ()}):
        assert verdict(model, **options).status == "skip"
        kept = AggregateTokens().apply(model, context(AggregateTokensOptions(**options)))
        assert kept.digest() == model.digest()


def test_groups_of_one_token_with_sizes_of_one_are_bit_identical():
    """Honest test 1 with P = I: the product, the concatenation and log 1 are all there, and change no bit."""
    model = vision(blocks=2)
    changed = model.clone()
    (stream,) = find_vision_streams(changed.ir, find_structure(changed.ir))
    editor = GraphEditor(changed.graph)
    values = ir.convenience.create_value_mapping(changed.graph)
    value = values[stream.blocks[1].input]
    readers = [(node, index) for node, index in value.uses()]
    writer = Writer(editor, value)
    same = FixedAverage(1, np.arange(16), np.eye(16), np.ones(16))(writer, Tokens(value, 17))
    for node, index in readers:
        node.replace_input_with(index, same.values)
    assert same.sizes is not None
    weigh_keys(editor, values[stream.blocks[1].attention.probability].producer(), logarithms(writer, same.sizes))
    data = images(model)
    assert operators(changed)["Log"] == 1
    np.testing.assert_array_equal(answer(changed, data), answer(model, data))


@pytest.mark.parametrize("form", SIZED)
def test_the_sum_of_sizes_is_the_number_of_tokens_and_the_class_token_has_size_one(form):
    """Honest test 1 at every place."""
    model = vision(blocks=3, front=2)
    data = images(model)
    found = all_sizes(aggregate(model, data, form=form), data)
    assert [array.shape[1] for array in found] == [10, 6]
    for array in found:
        # A group that is empty counts as 2^-14 of a token, since the logarithm of its size is taken.
        np.testing.assert_allclose(array.sum(axis=1), 18, rtol=1e-6, atol=array.shape[1] * 2.0**-14)
        np.testing.assert_array_equal(array[:, :2], 1)
        assert (array > 0).all()


def test_duplicate_tokens_leave_attention_as_it_was_with_sizes_and_only_with_them():
    """Honest test 2: what is averaged is equal, so nothing is lost, but attention must count it several times."""
    model = vision(blocks=3, alike=(2, 2))
    data = images(model, alike=(2, 2))
    wanted = answer(model, data)
    # Sums of 16 equal terms are taken in another order: a few roundings of float32 per block.
    np.testing.assert_allclose(answer(aggregate(model, form="pool"), data), wanted, rtol=1e-4, atol=1e-5)
    without = answer(aggregate(model, form="pool", proportional=False), data)
    assert np.abs(without - wanted).max() > 1e-3


@settings(max_examples=5)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2), st.floats(0.15, 0.95), st.integers(1, 3))
def test_pooling_gives_means_of_cells_on_any_grid(rows, columns, front, keep, batch):
    model = vision(rows, columns, blocks=3, front=front, head="class" if front else "mean")
    data = images(model, batch)
    grid = Grid(rows, columns)
    cells = coarser_grid(grid, max(round(keep * grid.count), 1), grid)
    if cells.count == grid.count:
        return
    pooled = aggregate(model, form="pool", at=(1,), keep=keep)
    place = block_inputs(model)[1]
    (tokens,) = tapped(model, data, place)
    labels = cell_labels(grid, cells)
    wanted = [tokens[:, front:][:, labels == cell].mean(axis=1) for cell in range(cells.count)]
    wanted = np.concatenate([tokens[:, :front], np.stack(wanted, axis=1)], axis=1)
    score = next(a for a in find_structure(pooled.ir).attentions[1:]).probability
    (probability,) = tapped(pooled, data, score)
    assert probability.shape[-2:] == (front + cells.count,) * 2
    (found,) = tapped(pooled, data, behind(pooled, place))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert answer(pooled, data).shape == (batch, 4)


def test_clusters_are_those_of_the_gram_matrix_of_places():
    model = vision(blocks=3)
    data = images(model, 10)
    place = block_inputs(model)[1]
    (tokens,) = tapped(model, data, place)
    patches = tokens[:, 1:].astype(np.float64)
    gram = sum(image @ image.T for image in patches) / len(patches)
    labels = k_means(gram, 6, 0).labels
    smaller = aggregate(model, data, form="cluster", at=(1,), keep=6 / 16)
    (found,) = tapped(smaller, data, behind(smaller, place))
    matrix, sizes = averaging(labels, np.ones(16))
    np.testing.assert_allclose(found[:, 1:], matrix @ patches, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_sizes(smaller, data)[0][0, 1:], sizes)


def soft_groups(keys: np.ndarray, centers: np.ndarray, variance: float) -> np.ndarray:
    """Return what each key gives to each group: softmax of -distance^2 / (2 variance)."""
    distances = np.square(keys[:, :, None] - centers).sum(-1) / (2 * variance)
    powers = np.exp(-distances + distances.min(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def guided(model: Model, data: dict, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return keys and patches before block 1, and the means and sizes there with six groups."""
    key, place = find_structure(model.ir).attentions[0].key, block_inputs(model)[1]
    tokens, keys = tapped(model, data, place, key.linear.output)
    smaller = aggregate(model, data, form="attention-guided", metric="keys", at=(1,), keep=6 / 16, **options)
    (found,) = tapped(smaller, data, behind(smaller, place))
    np.testing.assert_array_equal(found[:, :1], tokens[:, :1])
    return keys[:, 1:].astype(np.float64), tokens[:, 1:].astype(np.float64), found[:, 1:], all_sizes(smaller, data)[0]


def test_attention_guided_groups_are_a_softmax_of_distances_of_keys_to_calibration_centroids():
    model = vision(blocks=3)
    keys, patches, found, sizes = guided(model, images(model, 10), rounds=0)
    rows = keys.reshape(-1, WIDTH)
    clusters = k_means(rows, 6, 0)
    shares = soft_groups(keys, clusters.centers, spread(rows, clusters))
    wanted = np.swapaxes(shares, 1, 2) @ patches / shares.sum(1)[..., None]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sizes[:, 1:], shares.sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rounds", "temperature"), [(1, 0.7), (3, 0.7), (3, None)])
def test_attention_guided_groups_are_soft_k_means_on_the_keys_of_the_image(rounds, temperature):
    model = vision(blocks=3)
    keys, patches, found, sizes = guided(model, images(model, 10), rounds=rounds, temperature=temperature)
    labels = cell_labels(Grid(4, 4), coarser_grid(Grid(4, 4), 6, Grid(4, 4)))
    for image in range(len(keys)):
        centers = np.stack([keys[image, labels == cell].mean(0) for cell in range(6)])
        variance = temperature or SOFTNESS * np.square(keys[image] - centers[labels]).sum(1).mean()
        for _ in range(rounds):
            (shares,) = soft_groups(keys[image : image + 1], centers, variance)
            centers = shares.T @ keys[image] / shares.sum(0)[:, None]
        wanted = shares.T @ patches[image] / shares.sum(0)[:, None]
        np.testing.assert_allclose(found[image], wanted, rtol=5e-3, atol=1e-3)
        np.testing.assert_allclose(sizes[image, 1:], shares.sum(0), rtol=5e-3, atol=1e-3)


def test_the_default_needs_neither_data_nor_a_grid(monkeypatch):
    model = vision(3, 5, blocks=3)
    assert not AggregateTokensOptions().needs.data
    data = images(model)
    known = answer(aggregate(model), data)
    for module in ("aggregate_tokens", "aggregation.pyramid"):
        monkeypatch.setattr(f"edgesmith_tokens.{module}.grid_of", lambda *_: None)
    unknown = answer(aggregate(model), data)
    assert known.shape == unknown.shape == (6, 4) and np.isfinite(unknown).all()
    refused = verdict(model, form="pool")
    assert refused.status == "refuse" and "option grid" in refused.reason


def test_without_keys_before_tokens_are_compared_by_themselves():
    model = vision(blocks=2)
    data = images(model)
    smaller = aggregate(model, data, form="attention-guided", metric="keys", at=(0,), keep=0.5)
    assert answer(smaller, data).shape == (6, 4)
    plain = {"pixels": np.ones_like(data["pixels"])}  # keys do not differ but by their positions
    assert np.isfinite(answer(smaller, plain)).all()


def test_training_lowers_the_error_of_features_on_samples_it_never_saw():
    model = vision(blocks=4)
    data, unseen = images(model, 64, seed=1), images(model, 64, seed=2)
    wanted = answer(model, unseen)

    def error(**options):
        found = answer(aggregate(model, data, form="learned", at=(1,), keep=0.25, batch_size=16, **options), unseen)
        return np.square(found - wanted).sum() / np.square(wanted).sum()

    start = error(epochs=0.1, learning_rate=1e-9)
    assert error(epochs=12) < 0.8 * start


def test_training_starts_from_means_of_cells_and_never_ends_worse_on_samples_held_out():
    model = vision(blocks=3)
    data = images(model, 16)
    start = aggregate(model, data, form="learned", at=(1,), epochs=0.1, learning_rate=1e-9)
    pooled = aggregate(model, form="pool", at=(1,), proportional=False)
    # Tokens outside of a cell weigh e^-10 each at the start.
    np.testing.assert_allclose(answer(start, data), answer(pooled, data), atol=2e-3)
    wild, remarks = aggregate_with_notes(model, data, form="learned", at=(1,), learning_rate=100.0)
    before, after = (float(part.strip("%.")) for part in remarks[1].split() if part.endswith(("%", "%.")))
    assert after <= before
    assert np.isfinite(answer(wild, data)).all()


@pytest.mark.parametrize("form", FORMS)
def test_outputs_for_every_token_keep_their_number(form):
    model = vision(blocks=3, head="tokens")
    data = images(model, 8)
    smaller = aggregate(model, data, form=form, **QUICK)
    wanted, found = answer(model, data), answer(smaller, data)
    assert found.shape == wanted.shape == (8, 17, WIDTH)
    if form in ("pool", "cluster", "random"):  # members of a group are given the same
        assert len(np.unique(found[0].round(5), axis=0)) == 1 + 4


@pytest.mark.parametrize("form", ["pool", "attention-guided", "learned"])
def test_a_graph_in_float16_is_aggregated_as_in_float32(form):
    model = vision(blocks=3)
    narrow, data = half(model), images(model)
    rounding = np.abs(answer(narrow, data) - answer(model, data)).max()
    smaller = aggregate(narrow, data, form=form, **QUICK)
    found, wanted = answer(smaller, data), answer(aggregate(model, data, form=form, **QUICK), data)
    # Half precision moves the smaller network about as much as the whole one; borders of groups add to it.
    assert np.abs(found - wanted).max() < 4 * rounding < np.abs(found - answer(narrow, data)).max()


@pytest.mark.parametrize("form", ["attention-guided", "learned"])
def test_an_older_opset_is_raised_to_one_that_has_what_is_written(form):
    model = older(vision(blocks=3, front=0), 12)
    data = images(model, 8)
    smaller = aggregate(model, data, form=form, **QUICK)
    onnx.checker.check_model(ir.to_proto(smaller.ir), full_check=True)
    assert model.graph.opset_imports[""] == 12
    newer = model.clone()
    newer.graph.opset_imports[""] = 18
    np.testing.assert_array_equal(answer(smaller, data), answer(aggregate(newer, data, form=form, **QUICK), data))


def test_static_attention_comes_after_and_what_merges_or_is_static_before_is_left_alone_with_the_reason():
    model = vision(blocks=3)
    data = images(model)
    maps = context(StaticAttentionOptions(blocks=(0,)), data)
    both = StaticAttention().apply(aggregate(model), maps)
    assert answer(both, data).shape == (6, 4)
    assert len(find_structure(both.ir).attentions) == 2
    merged = MergeTokens().apply(model, context(MergeTokensOptions(r=2)))
    for before in (merged, StaticAttention().apply(model, maps)):
        left = verdict(before)
        assert left.status == "refuse" and "put this step before that one" in left.reason


def test_merge_tokens_comes_after_and_merges_in_each_part():
    model = vision(blocks=6)
    data, settings_ = images(model), context(MergeTokensOptions(r=2))
    both = MergeTokens().apply(aggregate(model, form="pool"), settings_)
    counts = [tapped(both, data, each.probability)[0].shape[-1] for each in find_structure(both.ir).attentions]
    assert counts == [17, 15, 9, 7, 5, 3]
    assert len(settings_.notes.remarks) == 3 and not settings_.notes.skipped


def test_each_pyramid_trains_its_own_weights_alone():
    model = vision(blocks=4)
    data = images(model, 64)
    first = aggregate(model, data, form="learned", at=(2,), **QUICK)
    both = aggregate(first, data, form="learned", at=(1,), keep=0.25, epochs=12.0, batch_size=16)
    trained = [name for name in first.graph.initializers if name.startswith((LEARNED_WEIGHT, LEARNED_BIAS))]
    assert len(trained) == 2
    for name in trained:
        before, after = (each.graph.initializers[name].const_value.numpy() for each in (first, both))
        np.testing.assert_array_equal(before, after)
    weights = [name for name in both.graph.initializers if name.startswith(LEARNED_WEIGHT) and name not in trained]
    assert len(weights) == 1 and both.graph.initializers[weights[0]].const_value.numpy().any()  # they start from 0


@pytest.mark.parametrize("form", ["pool", "attention-guided"])
def test_patches_may_be_protected(form):
    model = vision(3, 5, blocks=3)
    smaller = aggregate(model, form=form, protected=6, **({"grid": (2, 5)} if form == "pool" else {}))
    assert answer(smaller, images(model)).shape == (6, 4)


def test_shares_of_their_own_for_each_place():
    model = vision(blocks=4)
    assert "17 x 1, 13 x 2, 3 x 1" in aggregate_with_notes(model, form="pool", at=(1, 3), keep=(0.75, 0.2))[1][0]
    assert "17 x 1, 13 x 2, 3 x 1" in aggregate_with_notes(model, form="pool", at=(3, 1), keep=(0.2, 0.75))[1][0]


def test_nothing_is_refused_where_nothing_is_asked():
    model = vision(blocks=3)
    data = images(model)
    static = StaticAttention().apply(model, context(StaticAttentionOptions(blocks=(0,), form="mean"), data))
    for each in (model, static):
        for options in ({"at": (1,), "keep": 1.0}, {"at": ()}, {"keep": (1.0, 1.0)}):
            left = verdict(each, form="pool", **options)
            assert left.status == "skip" and "no token is to go" in left.reason, left.reason
            same = AggregateTokens().apply(each, context(AggregateTokensOptions(form="pool", **options)))
            assert np.array_equal(answer(same, data), answer(each, data)) and same.ir is not each.ir


def test_the_obstacle_is_named_and_not_the_blocks_that_it_hides():
    model = vision(blocks=3)
    data = images(model)
    static = StaticAttention().apply(model, context(StaticAttentionOptions(blocks=(0,), form="mean"), data))
    for options in ({"at": (1,)}, {"at": (1, 2), "keep": (0.5, 0.5)}, {}, {"keep": (0.5, 0.5)}):
        left = verdict(static, form="pool", **options)
        assert left.status == "refuse" and "block 0 is not one attention layer" in left.reason
        assert "put this step before that one" in left.reason and "no block of" not in left.reason
        with pytest.raises(StepError, match="block 0 is not one attention layer"):
            AggregateTokens().apply(static, context(AggregateTokensOptions(form="pool", **options)))
    assert "block 3 is no block" in verdict(static, at=(3,)).reason


def test_no_advice_is_given_that_cannot_help():
    causal = fused(vision(blocks=3))
    for node in causal.graph:
        if node.op_type == "Attention":
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    for options in ({}, {"at": (1,)}):
        left = verdict(causal, **options)
        assert left.status == "refuse" and "attention of block 0 is causal" in left.reason
        assert "put this step" not in left.reason and "correct the option at" not in left.reason
    left = verdict(vision(blocks=3), protected=17)
    assert left.status == "refuse" and left.reason.endswith("correct the option protected")


def test_what_cannot_be_done_is_refused_with_what_would_work():
    model = vision(3, 5, blocks=3)
    data = images(model)
    reasons = {
        "set form to cluster": verdict(model, grid=(4, 4)),
        "pass it with --data": verdict(model, form="cluster"),
        "2 calibration samples": verdict(model, images(model, 1), form="learned"),
        "block 7 is no block": verdict(model, at=(7,)),
    }
    for words, found in reasons.items():
        assert found.status == "refuse" and words in found.reason, (words, found)
    assert verdict(model, data, form="cluster").status == "ok"
    with pytest.raises(StepError, match="set form to cluster"):
        AggregateTokens().apply(model, context(AggregateTokensOptions(grid=(4, 4))))
    for other in (tiny_bert(), tiny_cnn()):
        assert verdict(other).status == "skip"


def test_options_that_contradict_each_other_are_refused():
    for wrong in (
        {"at": (1, 1)},
        {"keep": (0.5,)},
        {"form": "pca", "proportional": True},
        {"keep": 0.0},
        {"grid": (-4, -4)},
    ):
        with pytest.raises(ValueError, match=r"must|greater"):
            AggregateTokensOptions(**wrong)
    assert not AggregateTokensOptions().needs.data
    assert AggregateTokensOptions(form="learned").needs.gradients
