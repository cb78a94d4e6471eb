"""Caches of keys and values, known by what the graph does with them."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.folding.cached_models import BLOCKS, FORMS, cached_decoder, decode, logits_of

from edgesmith.data import choose_data, fitted
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing.builder import GraphBuilder
from edgesmith.testing.models import TINY_MODELS
from edgesmith_calibration.sources import ArraySource


@pytest.mark.parametrize("form", FORMS)
def test_each_slot_is_found_with_its_own_output(form):
    model = cached_decoder("gpt", form)
    caches = find_caches(model.ir)
    assert len(caches) == BLOCKS * (1 if form == "stacked" else 2)
    pairs = [(int(cache.input.name[2:]), int(cache.output.name[3:])) for cache in caches]
    # in0 belongs to the first block, whose outputs have the highest numbers.
    assert [entry // 2 + leaving // 2 for entry, leaving in pairs] == [BLOCKS] * len(caches)
    assert all(entry % 2 == leaving % 2 for entry, leaving in pairs)
    assert {len(cache.joins) for cache in caches} == {2 if form == "stacked" else 1}
    assert {len(cache.behind) for cache in caches} == {{"apart": 0, "tokens first": 1, "stacked": 3}[form]}
    assert caches[0].length_axis == {"apart": 2, "tokens first": 1, "stacked": None}[form]


def test_the_hand_made_decoders_decode_what_they_compute_at_once():
    for kind in ("llama", "gpt"):
        model = cached_decoder(kind)
        tokens = np.random.default_rng(0).integers(0, 96, (2, 9))
        np.testing.assert_allclose(decode(model, tokens, (4, 1, 3, 1)), logits_of(model, tokens), atol=1e-4)


def test_other_graphs_have_none():
    assert not any(find_caches(make().ir) for make in TINY_MODELS.values())
    # What is joined and computed with is no cache, nor is what goes through unchanged, nor what is handed out twice.
    builder = GraphBuilder(x=("batch", 2, "length", 4), y=("batch", 2, 3, 4), z=("batch", 2, 3, 4))
    joined = builder.add("Concat", "x", "y", axis=2)
    changed = builder.add("Add", joined, builder.number(1.0))
    through = builder.add("Identity", "z")
    assert not find_caches(builder.finish(changed, through))
    twice = GraphBuilder(x=("batch", 2, "length", 4), y=("batch", 2, 3, 4))
    joined = twice.add("Concat", "x", "y", axis=2)
    assert not find_caches(twice.finish(joined, twice.add("Transpose", joined, perm=[0, 2, 1, 3])))


def test_fused_attention_hands_out_its_cache():
    past = ("batch", 2, "past", 4)
    builder = GraphBuilder(opset=23, x=("batch", "tokens", 8), k=past, v=past)
    parts = builder.add_many("Attention", "x", "x", "x", "", "k", "v", outputs=3, q_num_heads=2, kv_num_heads=2)
    found = [(cache.input.name, cache.output.name) for cache in find_caches(builder.finish(*parts))]
    assert found == [("k", parts[1]), ("v", parts[2])]


def test_random_inputs_come_with_empty_caches():
    model = cached_decoder("llama")
    for inputs in (sample_inputs(model.ir), runnable_inputs(model.ir)):
        assert {array.shape[2] for name, array in inputs.items() if name != "input_ids"} == {0}
        assert np.isfinite(ReferenceSession(model.ir).run(inputs)["logits"]).all()


def test_data_may_leave_caches_out_and_loses_those_that_a_step_dropped():
    model = cached_decoder("llama", "tokens first")
    tokens = np.random.default_rng(0).integers(0, 96, (5, 7))
    data = choose_data(opened(ArraySource({"input_ids": tokens}))).open(model).calibration
    (batch,) = data.batches(5)
    assert {array.shape for name, array in batch.inputs.items() if name != "input_ids"} == {(5, 0, 2, 8)}
    assert np.isfinite(ReferenceSession(model.ir).run(batch.inputs)["logits"]).all()
    assert fitted(data, model) is data
    smaller = Model(without_first_input(model), Task(), Provenance("t", "t", "t"))
    (fewer,) = fitted(data, smaller).batches(5)
    assert set(batch.inputs) - set(fewer.inputs) == {"in0"}


def opened(source):
    from edgesmith.data import RunData

    return RunData(source, None)


def without_first_input(model: Model) -> ir.Model:
    copy = model.ir.clone()
    copy.graph.inputs.remove(next(value for value in copy.graph.inputs if value.name == "in0"))
    return copy
