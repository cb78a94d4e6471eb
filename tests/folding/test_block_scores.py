"""Scores against what they should be by hand, and on networks where one block does nothing."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from tests.folding.cached_models import cached_decoder, data_for
from tests.folding.folding_models import BLOCKS, deep, inputs_of, remove, remove_with_notes, without_effect
from tests.small_graphs import context, run

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.structure import find_structure
from edgesmith_calibration.sources import ArraySource
from edgesmith_folding.finding.places import find_places
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks
from edgesmith_folding.running.chain import BlockChain
from edgesmith_folding.running.judge import Judge, language_model_of
from edgesmith_folding.running.streams import Streams
from edgesmith_folding.scores.directions import angular_distance, block_influence, cosines, last_shown
from edgesmith_folding.scores.greedy import best_runs, greedy, lowest
from edgesmith_folding.scores.losses import next_token_loss, squared_error


def test_directions_by_hand():
    a, b = (
        np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]]),
        np.array([[0.0, 3.0], [2.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]),
    )
    np.testing.assert_allclose(block_influence(a, b), [1, 0, 2, 0], atol=1e-15)
    np.testing.assert_allclose(angular_distance(a, b), [0.5, 0, 1, 0], atol=1e-7)
    assert cosines(np.zeros((1, 2)), np.ones((1, 2))) == 0


def test_the_last_token_is_the_last_that_is_not_padding():
    vectors = np.arange(24).reshape(4, 3, 2)
    # Two positions of a cache stand in front; the third sample is padded at the left, of the fourth nothing is shown.
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(last_shown(vectors, mask), vectors[range(4), [1, 0, 2, 2]])
    np.testing.assert_array_equal(last_shown(vectors, None), vectors[:, 2])


def test_equal_vectors_have_no_angle_although_their_cosine_rounds_above_one():
    vectors = np.random.default_rng(0).normal(size=(2000, 7)).astype(np.float32)
    assert np.isfinite(angular_distance(vectors, vectors * np.float32(3))).all()


def test_next_token_loss_by_hand():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]], np.float32))
    loss, count = next_token_loss(logits, np.array([[2, 0, 1]]))
    assert count == 2 and math.isclose(loss, -math.log(0.5) - math.log(0.8), rel_tol=1e-6)


def test_squared_error_counts_each_output_in_its_own_units():
    reference = {"a": np.full(4, 100.0, np.float32), "b": np.full(4, 0.01, np.float32), "n": np.arange(4)}
    outputs = {name: array * (1 if name == "n" else 2) for name, array in reference.items()}
    error, size = squared_error(outputs, reference)
    assert error == pytest.approx(8) and size == 8


def test_greedy_measures_anew_after_each_removal():
    alone = {1: 0.1, 2: 0.2, 3: 0.3}

    def losses(removed):
        # Blocks 1 and 2 stand in for each other: when one is gone the other is dear.
        return {
            b: value + (10 if {1, 2} & set(removed) and b in (1, 2) else 0)
            for b, value in alone.items()
            if b not in removed
        }

    assert [block for block, _ in greedy(2, losses)] == [1, 3]
    assert len(greedy(9, losses)) == 3
    assert lowest({4: float("nan"), 5: 2.0, 6: 2.0}, 2) == (5, 6)


def test_as_few_runs_as_can_be_go_and_of_those_the_nearest():
    assert best_runs({(1, 2): 0.5, (2, 3): 0.1, (3, 4): 0.1}, 2) == ((2, 3),)
    # Two streams of three blocks each. The whole of one is dear, and single blocks would be cheap.
    runs = {(0,): 0.1, (1,): 0.1, (2,): 0.1, (3,): 0.1, (4,): 0.2, (5,): 0.3}
    runs |= {(0, 1): 0.3, (1, 2): 0.2, (3, 4): 0.3, (4, 5): 0.2, (0, 1, 2): 0.9, (3, 4, 5): 0.8}
    assert best_runs(runs, 4) == ((1, 2), (4, 5))
    assert best_runs(runs, 5) == ((1, 2), (3, 4, 5))
    assert best_runs(runs, 6) == ((0, 1, 2), (3, 4, 5))


# Tokens here are random, so the loss of a language model may fall without a block that works: scores by loss are tried
# on the vision transformer, whose loss is the distance from its own outputs.
@pytest.mark.parametrize(
    ("name", "score", "idle"),
    [
        ("vit", "sleb", 2),
        ("vit", "perplexity", 0),
        ("llama", "block-influence", 2),
        ("llama", "angular", BLOCKS - 1),
        ("gpt", "angular", 0),
        ("gpt", "block-influence", BLOCKS - 1),
    ],
)
def test_a_block_that_does_nothing_goes_first(name, score, idle):
    model = without_effect(deep(name), (idle,))
    data = inputs_of(model)
    removed = remove(model, data, score=score, count=1)
    assert not [weight for weight in removed.graph.initializers if weight.startswith(f"block{idle}.")]
    expected = run(model, data)
    assert all(np.array_equal(array, expected[key]) for key, array in run(removed, data).items())


def test_angular_takes_several_runs_where_none_is_long_enough():
    """Block 2 stays, so no run has three blocks: two and one go, all of them idle."""
    model = without_effect(deep("llama"), (0, 1, 4))
    removed, notes = remove_with_notes(model, inputs_of(model), score="angular", count=3, protect_blocks=(2,))
    assert gone(removed) == [0, 1, 4]
    assert "Angular distance: blocks 0 to 1 0.0000, blocks 4 to 4 0.0000." in notes.remarks


@pytest.mark.parametrize("cached", [False, True])
def test_the_angle_of_a_causal_model_is_that_of_the_last_token(cached, tmp_path):
    """Of all tokens, of the first, and of what is padded it would be another."""
    model = cached_decoder(padded=True) if cached else deep("llama")
    data = data_for(model, 3, 6) if cached else inputs_of(model, 3, length=6)
    last = np.array([5, 3, 5] if cached else [5, 5, 5])
    if cached:
        data["attention_mask"][np.arange(6) > last[:, None]] = 0
    structure = find_structure(model.ir)
    places = {place.number: place for place in find_places(model.ir, structure)}
    streams = Streams(model.ir, ArraySource(data), tmp_path, 2, causal=True, mask="attention_mask" if cached else None)
    distances = streams.distances(places, [1])
    assert len(distances) == len(places)
    for (number,), distance in distances.items():
        names = [places[number].block.input, places[number].block.output]
        found = ReferenceSession(model.ir, taps=names).run(data)
        before, after = (found[name][range(3), last] for name in names)
        # The session of the streams is optimized, and an angle of float32 vectors is about 1e-4 exact.
        assert distance == pytest.approx(angular_distance(before, after).mean(), abs=1e-3)


@pytest.mark.parametrize("length", ["cached", "fixed"])
def test_padding_that_cannot_be_cut_does_not_choose_blocks(length):
    """Only the token that stands at padding differs."""
    model = cached_decoder(padded=True)
    if length == "fixed":
        for value, size in zip(model.graph.inputs[:2], (12, 12), strict=True):
            value.shape = ir.Shape(["batch", size])
    data = data_for(model, 4)
    data["attention_mask"][:, 7:] = 0
    remarks = []
    for pad in (0, 7, 50):
        data["input_ids"][:, 7:] = pad
        remarks.append(remove_with_notes(model, data, count=1, compensation="none")[1].remarks)
    assert "Statistics include padding" in remarks[0][0]
    assert remarks[0] == remarks[1] == remarks[2]


def test_padded_samples_are_chosen_on_in_batches_of_any_size():
    """Samples without padding differ in length, so each runs alone, also where a score looks at some of them."""
    model = deep("bert")
    data = inputs_of(model, 4)
    for row, length in enumerate((12, 5, 9, 7)):
        data["attention_mask"][row, length:] = 0
    plan = {"score": "sleb", "count": 1, "score_samples": 3, "compensation": "none"}
    assert gone(remove(model, data, batch_size=4, **plan)) == gone(remove(model, data, **plan))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_losses_are_those_of_the_graph(name):
    model = deep(name)
    data = inputs_of(model, 4)
    structure = find_structure(model.ir)
    places = find_places(model.ir, structure)
    judge = Judge(model.ir, structure, BlockChain(model.ir, places), ArraySource(data), batch_size=2)
    losses = judge.losses_without((1,), (0, 1, 2))
    assert set(losses) == {0, 2}
    for number, loss in losses.items():
        outputs = run(remove(model, blocks=(1, number), compensation="none"), data)
        total, size = (
            next_token_loss(outputs["logits"], data["input_ids"])
            if name == "llama"
            else squared_error(outputs, run(model, data))
        )
        # The chain's sessions are optimized, those here are not; and the error is in units of each batch's size.
        assert loss == pytest.approx(total / size, rel=1e-4 if name == "llama" else 0.2)
        assert judge.loss((1, number)) == pytest.approx(loss, rel=1e-12)
    assert (judge.language_model is not None) == (name == "llama")


def test_language_models_are_known_by_their_graph():
    llama, gpt, bert, vit = (deep(name) for name in ("llama", "gpt", "bert", "vit"))
    assert language_model_of(gpt.ir, find_structure(gpt.ir)) == ("input_ids", "logits")
    assert language_model_of(llama.ir, find_structure(llama.ir)) == ("input_ids", "logits")
    assert language_model_of(bert.ir, find_structure(bert.ir)) is None
    assert language_model_of(vit.ir, find_structure(vit.ir)) is None


def test_sleb_is_greedy_on_the_losses_of_the_graph():
    model = deep("llama", seed=3)
    data = inputs_of(model, 2)
    alive, expected = set(range(1, BLOCKS - 1)), []
    for _ in range(2):
        losses = {}
        for number in alive:
            outputs = run(remove(model, blocks=(*expected, number), compensation="none"), data)
            losses[number] = next_token_loss(outputs["logits"], data["input_ids"])[0]
        expected.append(min(losses, key=losses.__getitem__))
        alive.discard(expected[-1])
    removed = remove(model, data, score="sleb", count=2, keep_first=1, keep_last=1, compensation="none")
    assert gone(removed) == sorted(expected)


def gone(model) -> list[int]:
    return [n for n in range(BLOCKS) if not [w for w in model.graph.initializers if w.startswith(f"block{n}.")]]


def test_ends_and_named_blocks_stay_and_the_seed_decides_a_draw():
    model = deep("gpt")
    options = {"score": "random", "compensation": "none", "keep_first": 1, "keep_last": 1, "count": 2}
    drawn = set()
    for seed in range(4):
        settings = context(RemoveBlocksOptions(**options, protect_blocks=(2,)))
        settings = type(settings)(settings.options, settings.dialect, settings.scratch, seed=seed)
        first = gone(RemoveBlocks().apply(model, settings))
        assert first == gone(RemoveBlocks().apply(model, settings)) == [1, 3]
        free = context(RemoveBlocksOptions(**options))
        drawn.add(
            tuple(gone(RemoveBlocks().apply(model, type(free)(free.options, free.dialect, free.scratch, seed=seed))))
        )
    assert drawn == {(1, 2), (1, 3), (2, 3)}


def test_ratio_rounds_down_but_removes_one_block_at_least():
    model = deep("gpt")
    for ratio, left in ((0.05, 4), (0.2, 4), (0.59, 3), (0.6, 2)):
        removed = remove(model, ratio=ratio, score="random", compensation="none")
        assert len(find_structure(removed.ir).blocks) == left


def test_it_says_when_fewer_blocks_can_go_than_were_asked_for():
    options = {"score": "random", "compensation": "none", "keep_first": 1, "keep_last": 1}
    removed, notes = remove_with_notes(deep("gpt"), count=4, **options)
    assert gone(removed) == [1, 2, 3] and "4 blocks were asked for and 3 can go" in notes.remarks[0]
    _, notes = remove_with_notes(deep("gpt"), count=3, **options)
    assert not any("asked for" in remark for remark in notes.remarks)


def test_few_candidates_are_those_of_the_least_influence():
    model = without_effect(deep("llama"), (3,))
    _, notes = remove_with_notes(model, inputs_of(model), score="sleb", count=1, candidates=1)
    assert "Removed 1 of 5 blocks: 3." in notes.remarks


def test_it_says_what_it_needs_and_why_nothing_goes():
    model = deep("gpt")
    assert "--data" in RemoveBlocks().check(model, context(RemoveBlocksOptions())).reason
    kept = RemoveBlocks().check(model, context(RemoveBlocksOptions(keep_first=3, keep_last=2), inputs_of(model)))
    assert kept.status == "skip" and "keep_first (3)" in kept.reason
    assert not RemoveBlocksOptions(score="random", compensation="none").needs.data
    assert RemoveBlocksOptions(score="random").needs.data


def test_removing_by_few_candidates_still_measures_all_that_are_named_by_influence():
    """The last of two rounds tries another candidate where the first one is gone."""
    model = without_effect(deep("llama"), (1, 3))
    _, notes = remove_with_notes(model, inputs_of(model), score="sleb", count=2, candidates=1)
    assert "Removed 2 of 5 blocks: 1, 3." in notes.remarks


@pytest.mark.parametrize(("name", "count"), [("llama", 5), ("bert", 5)])
def test_the_loss_of_some_tokens_is_that_of_those_positions(name, count):
    model = deep(name)
    data = inputs_of(model, 2)
    structure = find_structure(model.ir)
    chain = BlockChain(model.ir, find_places(model.ir, structure))
    judge = Judge(model.ir, structure, chain, ArraySource(data), batch_size=2, tokens=count)
    if name == "bert":
        assert judge.loss((1,)) == Judge(model.ir, structure, chain, ArraySource(data), batch_size=2).loss((1,))
        return
    logits = run(remove(model, blocks=(1,), compensation="none"), data)["logits"]
    places = np.linspace(0, 10, count).astype(int)
    losses = [
        next_token_loss(logits[:, place : place + 2], data["input_ids"][:, place : place + 2])[0] for place in places
    ]
    assert judge.loss((1,)) == pytest.approx(sum(losses) / (2 * count), rel=1e-4)
    assert judge.losses_without((), (1,))[1] == pytest.approx(judge.loss((1,)), rel=1e-12)
