"""What is left of a graph when blocks are taken out: the same as if they added nothing, and nothing of them."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.folding.folding_models import (
    BLOCKS,
    MODELS,
    PRE_NORM,
    arrays_of,
    block_count,
    deep,
    inputs_of,
    remove,
    without_effect,
)
from tests.small_graphs import context, run

from edgesmith.errors import StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.structure import find_structure
from edgesmith_folding.finding.places import find_places, runs
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks
from edgesmith_folding.running.chain import BlockChain

SUBSETS = st.sets(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS).map(sorted).map(tuple)


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(PRE_NORM), blocks=SUBSETS, seed=st.integers(0, 5))
def test_removing_blocks_equals_blocks_that_add_zero_bit_for_bit(name, blocks, seed):
    model = deep(name, seed)
    before = arrays_of(model)
    data = inputs_of(model, 2, seed=seed)
    removed = remove(model, blocks=blocks, compensation="none")
    expected = run(without_effect(model, blocks), data)
    for key, array in run(removed, data).items():
        assert np.array_equal(array, expected[key])
    names = {value.name for node in removed.graph for value in node.inputs if value is not None}
    assert not [weight for weight in removed.graph.initializers if weight not in names]
    assert not [weight for number in blocks for weight in names if weight.startswith(f"block{number}.")]
    assert {weight for weight in before if weight.startswith("block")} - {
        weight for weight in before for number in blocks if weight.startswith(f"block{number}.")
    } <= names
    assert arrays_of(model) == before and block_count(model) == BLOCKS


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_list_changes_no_bit(name):
    model = deep(name)
    data = inputs_of(model)
    settings_ = context(RemoveBlocksOptions(blocks=()), data)
    assert RemoveBlocks().check(model, settings_).status == "skip"
    same = RemoveBlocks().apply(model, settings_)
    assert same.ir is not model.ir
    assert arrays_of(same) == arrays_of(model) and len(same.graph) == len(model.graph)
    assert all(np.array_equal(array, run(model, data)[key]) for key, array in run(same, data).items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("blocks", [(BLOCKS - 1,), (0, 2, 3)])
def test_the_rest_still_has_the_structure_that_was_there(name, blocks):
    model = deep(name)
    removed = remove(model, blocks=blocks, compensation="none")
    kept = [b for number, b in enumerate(find_structure(model.ir).blocks) if number not in blocks]
    found = find_structure(removed.ir).blocks
    assert [b.mlps[0].down.weight for b in found] == [b.mlps[0].down.weight for b in kept]
    assert [b.norm for b in found] == [b.norm for b in kept]
    again = remove(removed, blocks=(0,), compensation="none")
    assert block_count(again) == BLOCKS - len(blocks) - 1
    run(again, inputs_of(model, 2))


@settings(max_examples=6, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), blocks=SUBSETS)
def test_the_chain_runs_what_the_graph_without_blocks_computes(name, blocks):
    model = deep(name)
    data = inputs_of(model, 2)
    chain = BlockChain(model.ir, find_places(model.ir, find_structure(model.ir)))
    removed = remove(model, blocks=blocks, compensation="none")
    expected = ReferenceSession(removed.ir, optimization="all").run(data)
    # The same operators run in other sessions; what ONNX Runtime fuses may differ by a few roundings of float32.
    for key, array in chain.run(data, blocks).items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_trying_each_block_equals_running_without_it(name):
    model = deep(name)
    data = inputs_of(model, 2)
    chain = BlockChain(model.ir, find_places(model.ir, find_structure(model.ir)))
    tried = dict(chain.run_without_each(data, (1,), (0, 1, 3, 4)))
    assert list(tried) == [0, 3, 4]
    for number, outputs in tried.items():
        expected = chain.run(data, (1, number))
        assert all(np.array_equal(array, expected[key]) for key, array in outputs.items())


def test_a_run_ends_where_a_block_stays():
    model = deep("llama")
    places = {place.number: place for place in find_places(model.ir, find_structure(model.ir))}
    found = runs((3, 0, 1, 4), places)
    assert [[place.number for place in run] for run in found] == [[0, 1], [3, 4]]


def test_blocks_own_their_nodes_and_share_none():
    for name in MODELS:
        model = deep(name)
        places = find_places(model.ir, find_structure(model.ir))
        assert [place.obstacle for place in places] == [""] * BLOCKS
        assert sum(len(place.nodes) for place in places) == len(set().union(*(place.nodes for place in places)))
        for place in places:
            read = {
                value.name for node in place.nodes for value in node.inputs if value is not None and value.const_value
            }
            assert not [weight for weight in read if weight.startswith("block") and place_of(weight) != place.number]


def place_of(weight: str) -> int:
    return int(weight.removeprefix("block").split(".")[0])


def test_a_block_whose_inner_value_is_an_output_stays_with_the_reason():
    """As in a decoder that hands out keys and values for a cache."""
    model = deep("llama").clone()
    structure = find_structure(model.ir)
    keys = structure.blocks[2].attentions[0].key.linear.output
    values = ir.convenience.create_value_mapping(model.graph)
    model.graph.outputs.append(values[keys])
    settings_ = context(RemoveBlocksOptions(keep_first=0, keep_last=0, score="random", count=5, compensation="none"))
    removed = RemoveBlocks().apply(model, settings_)
    assert block_count(removed) == 1
    assert [reason for reason in settings_.notes.skipped.values() if keys in reason and "output of the graph" in reason]
    named = context(RemoveBlocksOptions(blocks=(2,), compensation="none"))
    verdict = RemoveBlocks().check(model, named)
    assert verdict.status == "refuse" and keys in verdict.reason
    with pytest.raises(StepError, match="block 2 cannot be removed"):
        RemoveBlocks().apply(model, named)
    with pytest.raises(StepError, match="it does not exist"):
        RemoveBlocks().apply(model, context(RemoveBlocksOptions(blocks=(7,), compensation="none")))
