"""Least squares in place of removed blocks: exact where it can be, taken only where it helps, and never more nodes."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.folding.folding_models import BLOCKS, arrays_of, deep, inputs_of, remove, remove_with_notes, without_effect
from tests.small_graphs import operators, run

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith_calibration.moments import MomentsObserver
from edgesmith_folding.compensation.solve import best_solution, in_units_of, solve, without_constant


def moments_of(rows, targets, size):
    observer = MomentsObserver("test")
    observer.update(*in_units_of(rows, targets, size))
    return without_constant(observer.moments)


def test_an_exact_map_is_found_whatever_the_rows_are_long():
    generator = np.random.default_rng(0)
    matrix, bias = generator.normal(size=(6, 4)), generator.normal(size=4)
    rows = generator.normal(size=(300, 6)) * np.exp(generator.normal(size=(300, 1)) * 2)
    targets = rows @ matrix + bias
    found = solve(moments_of(rows, targets, targets), np.zeros((7, 4)), 1e-12)
    np.testing.assert_allclose(found, np.vstack([matrix, bias]), atol=1e-6)


def test_the_error_is_that_of_rows_in_units_of_the_stream():
    generator = np.random.default_rng(1)
    rows, targets = generator.normal(size=(50, 3)), generator.normal(size=(50, 2))
    layer = generator.normal(size=(4, 2))
    scale = np.sqrt(np.square(targets).mean(axis=1))
    by_hand = np.square((rows @ layer[:-1] + layer[-1] - targets) / scale[:, None]).sum()
    assert moments_of(rows, targets, targets).error(layer) == pytest.approx(by_hand)


def test_a_strong_ridge_keeps_weights_and_frees_the_bias():
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(400, 3))
    start = generator.normal(size=(4, 2))
    targets = rows @ start[:-1] + 5.0
    found = solve(moments_of(rows, targets, np.ones((400, 1))), start, 1e9)
    np.testing.assert_allclose(found[:-1], start[:-1], atol=1e-6)
    np.testing.assert_allclose(found[-1], 5.0, atol=1e-4)


def test_inputs_without_rank_leave_directions_as_they_are():
    rows = np.zeros((20, 3))
    rows[:, 0] = np.arange(1, 21)
    start = np.vstack([np.eye(3), np.zeros(3)])
    found = solve(moments_of(rows, rows * 2, np.ones((20, 1))), start, 1e-6)
    np.testing.assert_allclose(found[1:3], start[1:3], atol=1e-9)
    zero = np.zeros((20, 3))
    assert np.isfinite(solve(moments_of(zero, zero, zero), start, 1e-3)).all()


def test_the_ridge_is_chosen_on_samples_held_out():
    generator = np.random.default_rng(3)
    truth = np.vstack([np.eye(12), np.zeros(12)])
    rows, other = generator.normal(size=(14, 12)), generator.normal(size=(400, 12))
    fit, judge = (moments_of(x, x + generator.normal(size=x.shape), np.ones((len(x), 1))) for x in (rows, other))
    best = best_solution(fit, judge, truth, (1e-9, 1e3))
    np.testing.assert_allclose(best.matrix, solve(fit, truth, 1e3))
    whole = judge.energy
    assert best.before == pytest.approx(judge.error(truth) / whole)


@pytest.mark.parametrize("name", ["gpt", "llama", "vit"])
def test_folding_adds_no_product_and_changes_one_projection(name):
    model = deep(name)
    data = inputs_of(model, 16)
    plain = remove(model, blocks=(2, 3), compensation="none")
    folded, notes = remove_with_notes(model, data, blocks=(2, 3), compensation="folded")
    assert operators(folded)["MatMul"] == operators(plain)["MatMul"]
    changed = {key for key, array in arrays_of(folded).items() if arrays_of(plain).get(key) != array}
    assert changed and all(key.startswith("block1.mlp.down") or key.endswith("_bias") for key in changed)
    assert any("output projection of block 1 (folded, no new node)" in remark for remark in notes.remarks)


def test_a_projection_without_bias_gets_an_add_and_the_report_says_so():
    model = deep("llama").clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    GraphEditor(model.graph).bypass(values[find_structure(model.ir).blocks[1].mlps[0].down.output].producer())
    data = inputs_of(model, 16)
    plain = remove(model, blocks=(2,), compensation="none")
    folded, notes = remove_with_notes(model, data, blocks=(2,), compensation="folded")
    assert operators(folded)["Add"] == operators(plain)["Add"] + 1
    assert "output projection of block 1 (folded, one Add)" in notes.remarks[-1]


@pytest.mark.parametrize("name", ["bert", "gpt", "llama", "vit"])
def test_a_product_is_one_matmul_for_each_run(name):
    model = deep(name)
    data = inputs_of(model, 16)
    plain = remove(model, blocks=(1, 3), compensation="none")
    made, notes = remove_with_notes(model, data, blocks=(1, 3), compensation="product")
    taken = sum("left as it was" not in part for part in notes.remarks[-1].split(";"))
    assert operators(made)["MatMul"] == operators(plain)["MatMul"] + taken
    assert len(made.graph) == len(plain.graph) + 2 * taken
    assert taken


def test_nothing_can_be_folded_before_a_norm_or_before_the_first_block():
    bert = deep("bert")
    _, notes = remove_with_notes(bert, inputs_of(bert), blocks=(2,))
    assert "product in place of block 2 (one MatMul, one Add)" in notes.remarks[-1]
    gpt = deep("gpt")
    data = inputs_of(gpt)
    _, notes = remove_with_notes(gpt, data, blocks=(0,), compensation="folded")
    assert "no output projection stands" in notes.remarks[-1]
    _, notes = remove_with_notes(gpt, data, blocks=(0,))
    assert "product in place of block 0" in notes.remarks[-1]


@pytest.mark.parametrize("compensation", ["folded", "product"])
@pytest.mark.parametrize("name", ["gpt", "llama", "vit"])
def test_the_stream_is_nearer_to_what_it_was_on_data_that_nothing_was_solved_on(name, compensation):
    model = deep(name)
    last = find_structure(model.ir).blocks[3]
    data, fresh = inputs_of(model, 48), inputs_of(model, 8, seed=9)
    wanted = ReferenceSession(model.ir, taps=[last.output]).run(fresh)[last.output]
    errors = []
    for choice in ("none", compensation):
        removed = remove(model, data, blocks=(2, 3), compensation=choice)
        after = find_structure(removed.ir).blocks[2]
        found = ReferenceSession(removed.ir, taps=[after.input]).run(fresh)[after.input]
        errors.append(float(np.square(found - wanted).sum()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("compensation", ["auto", "folded", "product"])
def test_what_cannot_get_better_stays_bit_for_bit(compensation):
    model = without_effect(deep("llama"), (2, 3))
    data = inputs_of(model)
    removed, notes = remove_with_notes(model, data, blocks=(2, 3), compensation=compensation)
    plain = remove(model, blocks=(2, 3), compensation="none")
    assert arrays_of(removed) == arrays_of(plain)
    assert operators(removed) == operators(plain)
    assert "left as it was" in notes.remarks[-1]
    assert all(np.array_equal(array, run(plain, data)[key]) for key, array in run(removed, data).items())


def test_later_projections_are_repaired_towards_the_given_network():
    model = deep("llama")
    data, fresh = inputs_of(model, 24), inputs_of(model, 8, seed=9)
    wanted = run(model, fresh)["logits"]
    plain = remove(model, data, blocks=(1,), compensation="folded")
    repaired, notes = remove_with_notes(model, data, blocks=(1,), compensation="folded", repair_blocks=BLOCKS)
    errors = [np.square(run(each, fresh)["logits"] - wanted).sum() for each in (plain, repaired)]
    assert errors[1] < errors[0]
    assert [f"output projection of block {n}" in notes.remarks[-1] for n in range(BLOCKS)] == [
        True,
        False,
        True,
        True,
        True,
    ]


def test_two_runs_give_equal_bytes():
    model = deep("llama")
    data = inputs_of(model)
    first, second = (remove(model, data, count=2, repair_blocks=1) for _ in range(2))
    assert arrays_of(first) == arrays_of(second)


def test_one_sample_is_too_few_to_hold_one_out():
    model = deep("llama")
    data = inputs_of(model, 1)
    removed, notes = remove_with_notes(model, data, blocks=(2,))
    assert arrays_of(removed) == arrays_of(remove(model, blocks=(2,), compensation="none"))
    assert any("two" in remark for remark in notes.remarks)


@pytest.mark.parametrize("samples", [2, 3, 9])
def test_padded_samples_are_made_up_for_whatever_the_batch_size(samples):
    """Each runs alone, so any two are enough; the one held out is the same as at a batch size of 1."""
    model = deep("bert")
    data = inputs_of(model, samples)
    data["attention_mask"][:, 6:] = 0
    alone, notes = remove_with_notes(model, data, blocks=(2,))
    assert "Error on samples held out" in notes.remarks[-1]
    together, batched = remove_with_notes(model, data, blocks=(2,), batch_size=4)
    assert batched.remarks == notes.remarks
    assert arrays_of(together) == arrays_of(alone)
