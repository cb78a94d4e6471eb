"""Groups by dynamic programming: the best of all by brute force, and losses that are those of the graph."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.folding.folding_models import BLOCKS, deep, inputs_of
from tests.folding.test_shared_weights import shared, with_equal_blocks
from tests.small_graphs import context, run

from edgesmith.graph.structure import find_structure
from edgesmith_calibration.sources import ArraySource
from edgesmith_folding.finding.places import find_places
from edgesmith_folding.options.sharing import ShareBlocksOptions
from edgesmith_folding.running.chain import BlockChain
from edgesmith_folding.running.judge import Judge
from edgesmith_folding.scores.losses import next_token_loss
from edgesmith_folding.share_blocks import ShareBlocks
from edgesmith_folding.sharing.groups import find_sharers
from edgesmith_folding.sharing.partition import best_partition
from edgesmith_folding.sharing.swaps import swap_costs


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 7), groups=st.integers(1, 7), largest=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_partition_is_the_best_of_all(length, groups, largest, seed):
    numbers = np.random.default_rng(seed).normal(size=(length, length + 1))

    def cost(start, stop):
        return float(numbers[start, stop])

    def total(cuts):
        return sum(cost(start, stop) for start, stop in pairwise(cuts))

    every = [
        (0, *(place + 1 for place, cut in enumerate(cuts) if cut), length)
        for cuts in product((0, 1), repeat=length - 1)
    ]
    allowed = [cuts for cuts in every if len(cuts) == groups + 1 and all(b - a <= largest for a, b in pairwise(cuts))]
    found = best_partition(length, groups, largest, cost)
    assert bool(found) == bool(allowed)
    if found:
        assert [stop for _, stop in found[:-1]] == [start for start, _ in found[1:]]
        assert total((0, *(stop for _, stop in found))) == pytest.approx(min(map(total, allowed)))


def test_what_may_not_be_a_group_is_none():
    assert best_partition(3, 1, 3, lambda start, stop: np.inf) == ()
    assert best_partition(3, 2, 2, lambda start, stop: np.inf if (start, stop) == (0, 2) else 1.0) == ((0, 1), (1, 3))
    assert best_partition(0, 0, 1, lambda start, stop: 0.0) == ()


def test_costs_are_the_losses_of_the_graph_with_one_block_exchanged():
    model = deep("llama", seed=2)
    data = inputs_of(model, 3)
    structure = find_structure(model.ir)
    places = find_places(model.ir, structure)
    judge = Judge(model.ir, structure, BlockChain(model.ir, places), ArraySource(data), batch_size=2)
    sharers = find_sharers(model.ir, {place.number: place for place in places})
    found = swap_costs(model.ir, sharers, frozenset({(1, 2), (1, 3), (2, 3)}), judge)
    usual = next_token_loss(run(model, data)["logits"], data["input_ids"])
    for (owner, user), rise in found.items():
        copy = model.clone()
        weights = copy.graph.initializers
        for name, value in weights.items():
            if name.startswith(f"block{user}.") and ".norm" not in name:
                value.const_value = weights[name.replace(f"block{user}.", f"block{owner}.")].const_value
        total, count = next_token_loss(run(copy, data)["logits"], data["input_ids"])
        # The chain's sessions are optimized, those here are not.
        assert rise == pytest.approx((total - usual[0]) / count, rel=1e-3, abs=1e-5)


def test_equal_neighbours_are_found_and_sharing_them_changes_no_bit():
    model = with_equal_blocks(deep("llama"), (2, 3))
    data = inputs_of(model, 2)
    options = {"grouping": "loss", "keep_first": 1, "keep_last": 1, "weights": "first", "score_samples": 2}
    settings_ = context(ShareBlocksOptions(**options), data)
    # Of blocks 1 to 3 two sets of weights are left. Neighbours in turn would share 1 and 2.
    result = ShareBlocks().apply(model, settings_)
    assert down_weights(result)[2:4] == ["block2.mlp.down.weight"] * 2 and len(set(down_weights(result))) == BLOCKS - 1
    assert any("least sum of losses" in remark for remark in settings_.notes.remarks)
    assert down_weights(shared(model, **options | {"grouping": "neighbours"}))[1:3] == ["block1.mlp.down.weight"] * 2
    expected = run(model, data)
    assert all(np.array_equal(array, expected[key]) for key, array in run(result, data).items())


def test_losses_need_data():
    model = deep("gpt")
    verdict = ShareBlocks().check(model, context(ShareBlocksOptions(grouping="loss", weights="first")))
    assert verdict.status == "refuse" and "--data" in verdict.reason
    assert not ShareBlocksOptions(grouping="loss", groups=((1, 2),), weights="first").needs.data


def down_weights(model):
    found = [block.mlps[0].down.weight for block in find_structure(model.ir).blocks]
    assert len(found) == BLOCKS
    return found
