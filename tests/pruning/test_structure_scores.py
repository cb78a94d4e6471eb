"""Scores of atoms against what they approximate, and on networks where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.moments import Moments, MomentsObserver
from edgesmith_pruning.repair.least_squares import dropped, pulled, refit, rescaled
from edgesmith_pruning.scores.activations import fluctuation, paper_moments, released_moments, second_moment, wanda
from edgesmith_pruning.scores.elimination import Problem, eliminate
from edgesmith_pruning.scores.similarity import js_divergences, most_alike
from edgesmith_pruning.scores.taylor import first_order, label_loss

INPUTS, OUTPUTS, ROWS = 6, 4, 400


def layer(seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [rows, inputs] that depend on each other, and a layer [inputs + 1, outputs]."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0.3, 1, (ROWS, INPUTS)) @ generator.normal(0, 1, (INPUTS, INPUTS))
    return x, generator.normal(0, 1, (INPUTS + 1, OUTPUTS))


def outputs(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return x @ matrix[:-1] + matrix[-1]


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    observer = MomentsObserver("layer")
    observer.update(x, y)
    return observer.moments


def test_second_moment_is_the_energy_that_a_channel_adds():
    # Linear activation and Gaussian inputs: E |B_j a_j|^2 = |B_j|^2 A_j Sigma A_j^T, twice the score (Monte Carlo).
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(INPUTS, 5)), generator.normal(size=(5, OUTPUTS))
    mixing = generator.normal(size=(INPUTS, INPUTS))
    x = generator.normal(size=(200_000, INPUTS)) @ mixing
    exact = np.einsum("ij,ik,kj->j", first, mixing.T @ mixing, first)
    sampled = np.array([np.square(np.outer((x @ first)[:, j], second[j])).sum(axis=1).mean() for j in range(5)])
    # 200,000 samples of a chi-squared number have a relative deviation of sqrt(2 / 200000) = 0.3 %; five of them.
    np.testing.assert_allclose(2 * second_moment(second, exact), sampled, rtol=0.016)
    np.testing.assert_allclose(paper_moments(np.square(second).sum(1), [exact]), second_moment(second, exact))


def test_gated_scores_are_products_as_printed_and_as_released():
    norms, up, gate = np.array([1.0, 2.0]), np.array([3.0, 1.0]), np.array([0.5, 4.0])
    np.testing.assert_allclose(paper_moments(norms**2, [up, gate]), (0.5 * norms**2) ** 2 * up * gate)
    silu = gate / (1 + np.exp(-gate))
    np.testing.assert_allclose(released_moments(norms, [up, gate], [False, True]), norms * up * silu)


def test_wanda_and_fluctuation_are_those_of_the_activations():
    x, matrix = layer()
    found = moments_of(x, outputs(x, matrix))
    product = np.abs(matrix[:-1]) * np.linalg.norm(x, axis=0)[:, None]
    np.testing.assert_allclose(wanda(matrix[:-1], found.second_moment), product.sum(1) / np.sqrt(ROWS))
    np.testing.assert_allclose(
        fluctuation(matrix[:-1], found.variance), x.var(0) * np.square(matrix[:-1]).sum(1), rtol=1e-9
    )


@given(st.integers(0, 50), st.integers(1, INPUTS - 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_elimination_adds_exactly_the_error_of_refits(seed, count):
    x, matrix = layer(seed)
    found = pulled(moments_of(x, outputs(x, matrix)), matrix, 1e-6)
    rows = [(index,) for index in range(INPUTS)]
    order, rises = eliminate([Problem(found, rows)], np.zeros(INPUTS, int), [count])
    kept = np.ones(INPUTS, bool)
    before = found.error(refit(found, matrix, kept, bias=True))
    for atom, rise in zip(order, rises, strict=True):
        costs = []
        for other in np.flatnonzero(kept):
            kept[other] = False
            costs.append(found.error(refit(found, matrix, kept, bias=True)) - before)
            kept[other] = True
        kept[atom] = False
        after = found.error(refit(found, matrix, kept, bias=True))
        # The quadratic form loses digits where errors cancel against the energy.
        assert rise == pytest.approx(after - before, abs=1e-7 * found.energy)
        assert after - before <= min(costs) + 1e-7 * found.energy
        before = after


def test_a_duplicate_goes_first_and_costs_nothing():
    x, matrix = layer()
    x[:, 4], matrix[[1, 4]] = x[:, 1], matrix[1] / 2
    found = pulled(moments_of(x, outputs(x, matrix)), matrix, 1e-9)
    order, rises = eliminate([Problem(found, [(i,) for i in range(INPUTS)])], np.zeros(INPUTS, int), [1])
    assert order[0] in (1, 4)
    assert rises[0] < 1e-6 * found.energy


def test_a_dead_channel_goes_first():
    x, matrix = layer()
    x[:, 2] = 0
    found = moments_of(x, outputs(x, matrix))
    for scores in (
        wanda(matrix[:-1], found.second_moment),
        fluctuation(matrix[:-1], found.variance),
        second_moment(matrix[:-1], found.second_moment),
    ):
        assert scores.argmin() == 2
    order, _ = eliminate(
        [Problem(pulled(found, matrix, 1e-6), [(i,) for i in range(INPUTS)])], np.zeros(INPUTS, int), [2]
    )
    assert order[0] == 2


def test_groups_lose_equally_many_and_kept_atoms_stay():
    x, matrix = layer()
    found = pulled(moments_of(x, outputs(x, matrix)), matrix, 1e-6)
    rows, groups = [(i,) for i in range(INPUTS)], np.repeat([0, 1], 3)
    order, _ = eliminate([Problem(found, rows)], groups, [2, 2], kept=(1, 5))
    assert sorted(order) == [0, 2, 3, 4]


def test_blocks_of_rows_are_removed_together_and_layers_are_summed():
    x, matrix = layer()
    found = pulled(moments_of(x, outputs(x, matrix)), matrix, 1e-6)
    rows, groups = [(0, 1), (2, 3), (4, 5)], np.zeros(3, int)
    order, rises = eliminate([Problem(found, rows)], groups, [1])
    errors = []
    for atom in range(3):
        kept = ~np.isin(np.arange(INPUTS), rows[atom])
        errors.append(found.error(refit(found, matrix, kept, bias=True)))
    assert order[0] == int(np.argmin(errors))
    assert rises[0] == pytest.approx(min(errors) - found.error(refit(found, matrix, kept | True, bias=True)), rel=1e-4)
    _, twice = eliminate([Problem(found, rows)] * 2, groups, [1])
    assert twice[0] == pytest.approx(2 * rises[0])


@given(st.integers(0, 50), st.lists(st.booleans(), min_size=INPUTS, max_size=INPUTS).filter(any), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_refit_never_raises_the_calibration_error(seed, kept, bias):
    x, matrix = layer(seed)
    # The aim is not what the layer gives: layers before have changed.
    found = moments_of(x, outputs(x + np.random.default_rng(seed).normal(0, 0.3, x.shape), matrix))
    kept = np.array(kept)
    before = found.error(dropped(matrix, kept))
    assert found.error(refit(pulled(found, matrix, 1e-3), matrix, kept, bias=bias)) <= before * (1 + 1e-9)


def test_a_refit_is_the_identity_where_nothing_was_pruned():
    x, matrix = layer()
    found = pulled(moments_of(x, outputs(x, matrix)), matrix, 1e-3)
    np.testing.assert_allclose(refit(found, matrix, np.ones(INPUTS, bool), bias=True), matrix, atol=1e-9)


def test_rescaling_is_batch_normalization_estimated_anew():
    generator = np.random.default_rng(5)
    inputs = generator.normal(1, 2, size=(300, 6)) @ generator.normal(size=(6, 6))
    matrix = generator.normal(size=(7, 4))
    matrix[:3, 3] = 0  # the last output reads only what goes
    wanted = inputs @ matrix[:-1] + matrix[-1]
    observer = MomentsObserver("layer")
    observer.update(inputs, wanted)
    kept = np.array([True, True, True, False, False, False])
    found = inputs @ (result := rescaled(matrix, kept, observer.moments))[:-1] + result[-1]
    left = inputs @ dropped(matrix, kept)[:-1]
    normalized = torch.nn.functional.batch_norm(torch.from_numpy(left), None, None, training=True, eps=1e-12).numpy()
    # A normalization that gives the dense outputs back has their deviation as gain and their mean as shift.
    np.testing.assert_allclose(found[:, :3], (normalized * wanted.std(axis=0) + wanted.mean(axis=0))[:, :3], rtol=1e-9)
    np.testing.assert_allclose(found[:, 3], wanted[:, 3].mean())
    assert not result[3:6].any()


def test_divergence_of_heads_is_symmetric_bounded_and_zero_for_equal_ones():
    generator = np.random.default_rng(0)
    heads = generator.dirichlet(np.ones(8), size=(4, 20))
    heads[3] = heads[1]
    found = js_divergences(heads)
    np.testing.assert_array_equal(found, found.T)
    assert found[1, 3] == pytest.approx(0, abs=1e-12)
    assert (found >= 0).all() and (found <= 20 * np.log(2)).all()
    apart = np.stack([np.eye(8)[[0] * 5], np.eye(8)[[1] * 5]])
    assert js_divergences(apart)[0, 1] == pytest.approx(5 * np.log(2))


def test_of_two_alike_heads_the_one_worth_less_goes():
    divergences = np.array([[0, 0.1, 0.9], [0.1, 0, 0.5], [0.9, 0.5, 0]])
    assert most_alike(divergences, np.array([1.0, 2.0, 3.0])) == [0, 1]
    assert most_alike(divergences, np.array([2.0, 1.0, 0.0])) == [1, 2]


def test_taylor_is_the_squared_change_of_the_loss():
    values = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    gradients = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
    # Channels last: (1 * 0.5 + 3 * 1)^2 and (2 * 1 - 1 * 1)^2.
    torch.testing.assert_close(first_order(values, gradients, -1), torch.tensor([12.25, 1.0]))
    torch.testing.assert_close(first_order(values, gradients, 1), torch.tensor([6.25, 4.0]))


def test_labels_are_drawn_where_there_are_none():
    logits = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    generator = torch.Generator().manual_seed(0)
    assert label_loss(logits, None, generator).item() == pytest.approx(0, abs=1e-6)
    assert label_loss(logits, torch.tensor([1, 0]), generator).item() == pytest.approx(100, rel=1e-6)
