"""Decoders with a cache: removed blocks lose their slots, shared ones keep theirs, and decoding stays right."""

import numpy as np
import pytest
from tests.folding import cached_models
from tests.folding.cached_models import BLOCKS, FORMS, cached_decoder, data_for, decode, greedy, logits_of
from tests.folding.folding_models import arrays_of, block_count, remove_with_notes
from tests.small_graphs import context

import edgesmith_folding
from edgesmith.errors import StepError
from edgesmith.graph.cache import find_caches
from edgesmith.host.postconditions import Promise, check_result
from edgesmith.host.step import run_step
from edgesmith.testing import isolated_registry
from edgesmith_folding import METHODS
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.options.sharing import ShareBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks
from edgesmith_folding.share_blocks import ShareBlocks

TOKENS = np.random.default_rng(3).integers(0, 96, (2, 12))
# Parts of a sequence are multiplied in other shapes than the whole, so sums of 8 to 64 products of float32 are rounded
# in another order: 64 * 2^-24 of logits below 10 is 4e-5.
ROUNDING = 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "blocks"), [("llama", (0,)), ("gpt", (1, 2)), ("llama", (0, 1, 3))])
def test_removed_blocks_lose_their_slots_and_decoding_equals_the_full_forward(kind, form, blocks):
    model = cached_decoder(kind, form)
    before = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    result, notes = remove_with_notes(model, blocks=blocks, compensation="none")
    slots = 1 if form == "stacked" else 2
    assert block_count(result) == BLOCKS - len(blocks)
    assert len(find_caches(result.ir)) == slots * (BLOCKS - len(blocks))
    assert len(result.graph.inputs) == 1 + slots * (BLOCKS - len(blocks))
    gone = {f"in{2 * n + i}" for n in blocks for i in range(slots)}
    gone |= {f"out{2 * (BLOCKS - n) + i}" for n in blocks for i in range(slots)}
    assert before - {value.name for value in (*result.graph.inputs, *result.graph.outputs)} == gone
    named = notes.remarks[1].removeprefix("Their slots of the cache went, inputs and outputs: ").split(". ")[0]
    assert set(named.split(", ")) == gone
    assert not [name for name in arrays_of(result) if name.startswith(tuple(f"block{n}." for n in blocks))]
    if form != "stacked":
        np.testing.assert_allclose(decode(result, TOKENS, (5, 1, 1, 4, 1)), logits_of(result, TOKENS), atol=ROUNDING)


def test_cached_greedy_decoding_gives_the_same_64_tokens_after_removing_and_sharing():
    model = cached_decoder("llama")
    settings = context(ShareBlocksOptions(groups=((1, 2),), weights="first"))
    folded = ShareBlocks().apply(remove_with_notes(model, blocks=(0,), compensation="none")[0], settings)
    assert len(find_caches(folded.ir)) == 2 * (BLOCKS - 1)
    prompt = TOKENS[:, :4]
    tokens = greedy(folded, prompt, 64, cached=True)
    assert tokens.shape == (2, 68)
    np.testing.assert_array_equal(tokens, greedy(folded, prompt, 64, cached=False))


@pytest.mark.parametrize("weights", ["weighted", "first"])
@pytest.mark.parametrize("kind", ["llama", "gpt"])
def test_shared_blocks_keep_slots_of_their_own(kind, weights):
    model = cached_decoder(kind)
    settings = context(ShareBlocksOptions(groups=((1, 2),), weights=weights), data_for(model))
    assert ShareBlocks().check(model, settings).status == "ok"
    result = ShareBlocks().apply(model, settings)
    assert [v.name for v in result.graph.inputs] == [v.name for v in model.graph.inputs]
    assert [v.name for v in result.graph.outputs] == [v.name for v in model.graph.outputs]
    assert sum(len(value.uses()) == 2 for value in result.graph.initializers.values()) >= 4
    np.testing.assert_allclose(decode(result, TOKENS, (5, 1, 6)), logits_of(result, TOKENS), atol=ROUNDING)


def test_blocks_are_chosen_and_made_up_for_on_empty_caches():
    model = cached_decoder("llama")
    data = data_for(model, 16)
    for score in ("sleb", "block-influence", "angular"):
        result, notes = remove_with_notes(model, data, score=score, count=1, keep_first=1)
        assert len(find_caches(result.ir)) == 2 * (BLOCKS - 1)
        assert any("output projection" in remark for remark in notes.remarks), notes.remarks


def test_the_last_cache_stays_where_the_graph_reads_its_length():
    model = cached_decoder("gpt")
    every = context(RemoveBlocksOptions(blocks=tuple(range(BLOCKS)), compensation="none"))
    assert RemoveBlocks().check(model, every).status == "refuse"
    with pytest.raises(StepError, match="length"):
        RemoveBlocks().apply(model, every)
    greedy_ = context(RemoveBlocksOptions(count=BLOCKS, keep_first=0, keep_last=0, score="random", compensation="none"))
    assert RemoveBlocks().check(model, greedy_).status == "ok"
    assert block_count(RemoveBlocks().apply(model, greedy_)) == 1


def test_the_host_lets_whole_slots_go_and_nothing_else():
    model = cached_decoder("llama")
    samples = data_for(model, 2, 5)
    result, _ = remove_with_notes(model, blocks=(1,), compensation="none")
    assert check_result(model, result, Promise("test", drops_caches=True), samples).relative_error is not None
    with pytest.raises(StepError, match="changed the graph's inputs"):
        check_result(model, result, Promise("test"), samples)
    half = model.clone()
    half.graph.outputs.remove(find_caches(half.ir)[0].output)
    with pytest.raises(StepError, match="changed the graph's outputs"):
        check_result(model, half, Promise("test", drops_caches=True), samples)
    silent = model.clone()
    silent.graph.outputs.remove(silent.graph.outputs[0])
    with pytest.raises(StepError, match="changed the graph's outputs"):
        check_result(model, silent, Promise("test", drops_caches=True), samples)


def test_a_step_may_drop_slots_and_sharing_may_not():
    assert {record.name: record.drops_caches for record in METHODS} == {"remove-blocks": True, "share-blocks": False}
    model = cached_decoder("llama")
    registry = isolated_registry(edgesmith_folding)
    options = RemoveBlocksOptions(blocks=(0, 2), compensation="none")
    result = run_step(registry, registry.method("remove-blocks"), model, context(options, data_for(model, 4)))
    assert result.verdict.status == "ok" and len(find_caches(result.model.ir)) == 2 * (BLOCKS - 2)


def test_the_only_block_with_a_cache_stays_and_the_report_says_why(monkeypatch):
    monkeypatch.setattr(cached_models, "BLOCKS", 1)
    model = cached_decoder()
    removed, notes = remove_with_notes(model, data_for(model, 2), count=1)
    assert block_count(removed) == 1
    assert notes.remarks[-1].startswith("1 blocks were asked for and 0 can go")
