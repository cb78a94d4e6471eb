"""Scores that need gradients: Taylor importance by hand, gates that close where nothing is lost, and exact folding."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.folding.cached_models import cached_decoder, data_for
from tests.folding.folding_models import BLOCKS, block_count, deep, inputs_of, remove_with_notes, without_effect
from tests.small_graphs import context, run

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import divergence
from edgesmith.graph.structure import find_structure
from edgesmith_calibration.sources import ArraySource
from edgesmith_folding.finding.places import find_places
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.remove_blocks import RemoveBlocks
from edgesmith_folding.scores.gates import epsilon_at, excess, gates
from edgesmith_folding.scores.ranks import kendall_tau
from edgesmith_folding.scores.taylor import taylor_importance
from edgesmith_folding.training.gated import find_branches, fold_gates, with_gates
from edgesmith_folding.training.importance import importances, token_loss


def places_of(model):
    return {place.number: place for place in find_places(model.ir, find_structure(model.ir))}


def test_formulas_by_hand():
    pairs = [(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])), (torch.tensor([[4.0]]), torch.tensor([[-1.0]]))]
    assert taylor_importance(pairs) == 8.0
    opened = gates(torch.tensor([0.0, 1.0, -1.0, 0.1]), 0.01)
    torch.testing.assert_close(opened, torch.tensor([0.0, 1 / 1.01, 1 / 1.01, 0.5]))
    assert epsilon_at(0.0) == pytest.approx(0.1) and epsilon_at(1.0) == pytest.approx(1e-4)
    assert epsilon_at(0.5) == pytest.approx(10**-2.5)
    costs = torch.tensor([1.0, 3.0])
    assert float(excess(torch.tensor([1.0, 0.5]), costs, 0.5)) == pytest.approx((2.5 / 4 - 0.5) ** 2)
    assert float(excess(torch.tensor([1.0, 0.0]), costs, 0.5)) == 0.0
    logits, dense = torch.log(torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]])), torch.log(torch.tensor([[[0.25, 0.75]]] * 2))
    by_hand = sum(0.25 * np.log(0.25 / a) + 0.75 * np.log(0.75 / b) for a, b in ((0.5, 0.5), (0.1, 0.9))) / 2
    assert float(divergence(logits, dense)) == pytest.approx(by_hand, rel=1e-5)


def test_kendall_tau_counts_pairs():
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1.0
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 2, 3], [2, 1, 3]) == pytest.approx(1 / 3)


def test_taylor_scores_are_those_of_the_gradient_over_all_samples():
    model = deep("gpt")
    data = inputs_of(model, 4)
    places = places_of(model)
    found = importances(model.ir, places, ArraySource(data), ("input_ids", "logits"), batch_size=3)
    assert set(found) == set(range(BLOCKS)) and all(value > 0 for value in found.values())
    graph = TorchGraph(model.ir)
    tokens = torch.from_numpy(data["input_ids"])
    token_loss(graph({"input_ids": tokens})["logits"], tokens).backward()
    by_hand = sum(
        float((parameter * parameter.grad).detach().abs().double().sum())
        for name, parameter in graph.named_parameters()
        if name.startswith("block2.")
    )
    # Batches of 3 and 1 are summed in another order than 4 at once.
    assert found[2] == pytest.approx(by_hand, rel=1e-4)


def test_taylor_removes_a_block_of_zeros_first_and_needs_a_language_model():
    model = without_effect(deep("llama"), (2,)).clone()
    for name, value in model.graph.initializers.items():
        if name.startswith("block2.") and ".norm" not in name:
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    _, notes = remove_with_notes(model, inputs_of(model), score="taylor", count=1)
    assert "Removed 1 of 5 blocks: 2." in notes.remarks
    vit = deep("vit")
    verdict = RemoveBlocks().check(vit, context(RemoveBlocksOptions(score="taylor"), inputs_of(vit)))
    assert verdict.status == "refuse" and "language model" in verdict.reason
    assert RemoveBlocksOptions(score="taylor").needs.gradients and not RemoveBlocksOptions().needs.gradients


@pytest.mark.parametrize("name", ["gpt", "llama", "vit"])
def test_open_gates_change_no_bit_and_closed_ones_leave_the_branch_out(name):
    model = deep(name)
    data = {key: torch.from_numpy(array) for key, array in inputs_of(model, 2).items()}
    places = {number: place for number, place in places_of(model).items() if number in (1, 3)}
    branches = find_branches(model.ir, places)
    assert [(branch.block, branch.residual) for branch in branches] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert branches[0].macs == branches[2].macs > 1 and branches[1].macs > 1
    graph = TorchGraph(with_gates(model.ir, places, branches))
    ones = {branch.gate: torch.ones(()) for branch in branches}
    before, opened = TorchGraph(model.ir)(data), graph(data | ones)
    assert all(torch.equal(array, opened[key]) for key, array in before.items())
    closed = graph(data | ones | {branches[0].gate: torch.zeros(()), branches[1].gate: torch.zeros(())})
    left_out = TorchGraph(without_effect(model, (1,)).ir)(data)
    assert all(torch.equal(array, closed[key]) for key, array in left_out.items())


@pytest.mark.parametrize("name", ["gpt", "llama", "vit"])
def test_gates_fold_into_the_projections_that_end_branches(name):
    model = deep(name)
    data = inputs_of(model, 2)
    places = places_of(model)
    branches = find_branches(model.ir, places)
    values = dict(zip(branches, np.random.default_rng(0).uniform(0.2, 1.0, len(branches)), strict=True))
    graph = TorchGraph(with_gates(model.ir, places, branches))
    fed = {key: torch.from_numpy(array) for key, array in data.items()}
    gated = graph(fed | {branch.gate: torch.tensor(value).float() for branch, value in values.items()})
    folded = model.clone()
    opened = {(branch.block, branch.residual): float(value) for branch, value in values.items()}
    assert fold_gates(folded.graph, opened, places_of(folded)) == []
    for key, array in run(folded, data).items():
        # Scaling a matrix before or after a product of 32 to 64 terms: a few roundings of float32 each.
        np.testing.assert_allclose(array, gated[key].detach().numpy(), rtol=1e-3, atol=1e-4)


def test_gates_behind_a_norm_do_not_fold():
    model = deep("bert")
    assert fold_gates(model.clone().graph, {(1, 0): 0.5, (1, 1): 0.5}, places_of(model)) == [1]
    options = {"score": "gates", "count": 1, "gate_steps": 1, "compensation": "none", "score_samples": 1}
    _, notes = remove_with_notes(model, inputs_of(model, 2), **options, fold_gates=True)
    assert len(notes.skipped) == BLOCKS - 1
    assert all("not folded" in reason for reason in notes.skipped.values())


@pytest.mark.parametrize(("name", "steps"), [("llama", 40), ("vit", 100)])
def test_trained_gates_close_where_nothing_is_lost(name, steps):
    model = without_effect(deep(name), (2,))
    options = {"score": "gates", "count": 1, "gate_steps": steps, "gate_rate": 0.05, "batch_size": 4}
    data = inputs_of(model)
    removed, notes = remove_with_notes(model, data, **options)
    assert "Removed 1 of 5 blocks: 2." in notes.remarks
    assert any("Kendall" in remark for remark in notes.remarks)
    expected = run(model, data)
    assert all(np.array_equal(array, expected[key]) for key, array in run(removed, data).items())
    again, _ = remove_with_notes(model, data, **options, fold_gates=True)
    weights = [v.const_value.numpy() for n, v in again.graph.initializers.items() if n == "block1.mlp.down.weight"]
    kept = [v.const_value.numpy() for n, v in removed.graph.initializers.items() if n == "block1.mlp.down.weight"]
    assert not np.array_equal(weights[0], kept[0])


def test_gates_and_taylor_run_on_empty_caches():
    model = cached_decoder("gpt")
    data = data_for(model, 6)
    for options in ({"score": "taylor"}, {"score": "gates", "gate_steps": 3}):
        removed, _ = remove_with_notes(model, data, count=1, compensation="none", score_samples=2, **options)
        assert block_count(removed) == 3
