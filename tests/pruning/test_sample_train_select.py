"""Masks that are sampled, tried and trained: counts, nested stages, what may not move, and what training is worth."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Notes
from edgesmith.host.records import Needs
from edgesmith.progress import SilentProgress
from edgesmith_calibration.sources import ArraySource
from edgesmith_pruning.finding.sparse_layers import find_sparse_layers
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.prune_weights import PruneWeights
from edgesmith_pruning.sparsity.masks import Pattern, removed_count
from small_graphs import context, graph, node, run, sqnr

pytest.importorskip("torch")

import torch

from edgesmith_pruning.sparsity.trained import STAGES, SampleTrainSelect, Schedule


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def mlp():
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Add", ["h", "ab"], "hb"),
        node("Relu", ["hb"], "r"),
        node("Gemm", ["r", "b", "bb"], "s", transB=1),
        node("MatMul", ["s", "head"], "y"),
    ]
    weights = {
        "a": normal(16, 24) / 4,
        "ab": normal(24, seed=1) / 4,
        "b": normal(16, 24, seed=2) / 4,
        "bb": normal(16, seed=3) / 4,
        "head": normal(16, 3, seed=4) / 4,
    }
    return graph(nodes, weights, {"x": ["n", 16]})


DATA = {"x": normal(200, 16, seed=8)}
OPTIONS = {"criterion": "randomized", "candidates": 2, "check_steps": 5, "batch_size": 20, "samples": 200}


def weight_of(model, name):
    return model.graph.initializers[name].const_value.numpy()


def prune(seed=0, **options):
    model = mlp()
    used = replace(context(PruneWeightsOptions(**OPTIONS | options), DATA), seed=seed)
    assert PruneWeights().check(model, used).status == "ok"
    before = ir.to_proto(model.ir).SerializeToString()
    result = PruneWeights().apply(model, used)
    assert ir.to_proto(model.ir).SerializeToString() == before
    return result, used.notes


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_are_exact_and_the_rest_is_trained(pattern):
    result, notes = prune(training_steps=5, sparsity=0.75, pattern=pattern)
    for name in ("a", "b"):
        weight = weight_of(result, name)
        matrix = weight if name == "b" else weight.T
        if pattern == "2:4":
            assert Pattern(2, 4).holds(matrix) and (matrix == 0).sum() == matrix.size // 2
        else:
            assert (matrix == 0).sum() == removed_count(matrix.size, 0.75)
        assert not np.isin(weight[weight != 0], weight_of(mlp(), name)).all()
    assert np.count_nonzero(weight_of(result, "head")) == 48
    assert sum("held-out loss" in remark for remark in notes.remarks) == (1 if pattern == "2:4" else 4)
    assert notes.remarks[-2].startswith(f"Set {576 if pattern == 'unstructured' else 384} of 768 weights of 2 layers")
    assert "This gains size only: onnx-cpu multiplies by zeros" in notes.remarks[-1]


def test_float16_is_not_trained():
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "head"], "y")]
    weights = {"w": normal(16, 16).astype(np.float16), "head": normal(16, 3).astype(np.float16)}
    half = ir.DataType.FLOAT16.value
    model = graph(nodes, weights, {"x": ["n", 16]}, types={"x": half, "y": half})
    data = {"x": DATA["x"].astype(np.float16)}
    verdict = PruneWeights().check(model, context(PruneWeightsOptions(**OPTIONS, training_steps=2), data))
    assert verdict.status == "refuse" and "set training_steps to 0" in verdict.reason
    assert PruneWeights().check(model, context(PruneWeightsOptions(**OPTIONS), data)).status == "ok"


def test_training_recovers_what_masks_alone_lose():
    other = {"x": normal(200, 16, seed=9)}
    expected = run(mlp(), other)["y"]
    alone, _ = prune(sparsity=0.6, refit=False, adaptive_weight=False)
    trained, _ = prune(training_steps=80, sparsity=0.6)
    assert sqnr(expected, run(trained, other)["y"]) > sqnr(expected, run(alone, other)["y"]) + 1


def test_without_draws_the_largest_weights_are_trained_stage_by_stage():
    """Iterative magnitude pruning: each stage removes the smallest weights that the stage before left."""
    result, notes = prune(criterion="magnitude", training_steps=5, sparsity=0.75)
    assert sum("the largest weights were trained on" in remark for remark in notes.remarks) == 4
    for name in ("a", "b"):
        before, after = (np.abs(weight_of(model, name)) for model in (mlp(), result))
        assert (after == 0).sum() == removed_count(after.size, 0.75)
        assert not np.isin(after[after != 0], before).all()
        # The first stage sees the weights as they were given: its zeros are the smallest of all.
        first = removed_count(after.size, 1 - 0.25 ** STAGES[0])
        assert (after.ravel()[np.argsort(before, axis=None)[:first]] == 0).all()
    again, _ = prune(1, criterion="magnitude", training_steps=5, sparsity=0.75)
    np.testing.assert_array_equal(weight_of(result, "a"), weight_of(again, "a"))


def test_seeds_decide():
    first, second, third = (prune(seed, training_steps=2, sparsity=0.6)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(weight_of(first, "a"), weight_of(second, "a"))
    assert ((weight_of(first, "a") == 0) != (weight_of(third, "a") == 0)).any()


def _training(sparsity=0.9375, **settings):
    model = mlp().ir
    options = PruneWeightsOptions()
    layers = find_sparse_layers(model, find_structure(model), options, Notes())
    stays = {layer.name: np.zeros(layer.matrix().shape, bool) for layer in layers}
    schedule = Schedule(sparsity, None, steps=3, check_steps=3, candidates=3, seed=0, **settings)
    return SampleTrainSelect(model, layers, stays, ArraySource(DATA), schedule, SilentProgress(), 20)


def test_stages_are_nested_and_come_close_in_the_end():
    training = _training()
    seen = []
    inner = training._stage

    def stage(sparsity, before, generator):
        seen.append((sparsity, inner(sparsity, before, generator)))
        return seen[-1][1]

    training._stage = stage
    training.run()
    assert [round(sparsity, 2) for sparsity, _ in seen] == [0.54, 0.83, 0.92, 0.94]
    for (_, before), (sparsity, after) in pairwise(seen):
        for name in before:
            assert after[name][before[name]].all()
            assert after[name].sum() == removed_count(after[name].size, sparsity)


def test_the_candidate_of_the_lowest_held_out_loss_is_taken():
    training = _training()
    training.run()
    for selection in training.selections:
        assert len(selection.scores) == 3
        assert selection.chosen == int(np.argmin(selection.scores))
        assert max(selection.distances) > 0
        assert f"Number {selection.chosen + 1} was trained on" in selection.sentence()


def test_nothing_is_trained_on_what_decides():
    training = _training()
    held_out = np.concatenate([batch.inputs["x"] for batch in training._held_out])
    trained = np.concatenate([batch.inputs["x"] for batch in training._batches])
    assert len(held_out) + len(trained) == 200
    assert not (held_out[:, None] == trained[None]).all(axis=2).any()


def test_the_exported_graph_is_the_trained_network_and_its_zeros_are_exact():
    training = _training(sparsity=0.6)
    result, masks = training.run()
    with torch.no_grad():
        expected = training._student({"x": torch.from_numpy(DATA["x"])})["y"].numpy()
    np.testing.assert_allclose(run(mlp().with_ir(result), DATA)["y"], expected, atol=1e-5)
    for layer in training._layers:
        weight = result.graph.initializers[layer.name].const_value.numpy()
        assert not weight.view(np.int32)[layer.stored(masks[layer.name])].any()


def test_training_is_a_need_only_where_it_is_asked_for():
    assert PruneWeightsOptions(criterion="randomized", training_steps=1).needs.gradients
    assert not PruneWeightsOptions(criterion="randomized").needs.gradients
    smallest = PruneWeightsOptions(criterion="magnitude", refit=False)
    assert not smallest.needs.data
    assert smallest.model_copy(update={"training_steps": 1}).needs == Needs(data=True, gradients=True)
    assert not PruneWeightsOptions(training_steps=5).needs.gradients
