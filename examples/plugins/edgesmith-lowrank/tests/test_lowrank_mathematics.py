"""The factors against what the theorem says of them."""

import numpy as np
import pytest
from edgesmith_lowrank.factorisation import factorise, rank_for_energy, rank_for_ratio, saves
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(12, 40))


def made_up(inputs: int, outputs: int, samples: int, seed: int = 0):
    """Return inputs X [samples, in] with directions of very different size, and a matrix W [in, out]."""
    generator = np.random.default_rng(seed)
    data = generator.normal(size=(samples, inputs)) * np.logspace(0, -2, inputs)
    return data @ generator.normal(size=(inputs, inputs)), generator.normal(size=(inputs, outputs))


def output_error(data, weight, left, right) -> float:
    """Return the share of the energy of X W that is lost in X A B."""
    lost = np.square(data @ (weight - left @ right)).sum()
    return float(lost / np.square(data @ weight).sum())


@given(SIZES, st.integers(0, 3))
def test_all_directions_give_the_matrix_back(sizes, seed):
    data, weight = made_up(*sizes, seed)
    factors = factorise(weight, data.T @ data)
    # Whitening by directions 1e-2 apart, squared in the Gram matrix, costs four of sixteen digits.
    np.testing.assert_allclose(factors.left @ factors.right, weight, atol=1e-9 * np.abs(weight).max())
    assert factors.energy.sum() == pytest.approx(1)
    assert (np.diff(factors.energy) <= 1e-15).all()


@given(SIZES, st.integers(0, 3))
def test_what_is_lost_on_the_data_is_the_energy_of_the_directions_left_out(sizes, seed):
    data, weight = made_up(*sizes, seed)
    factors = factorise(weight, data.T @ data)
    # Damping adds a millionth of the mean eigenvalue to each: what is lost grows by that times the square of what is
    # left out, and the whole by that times the square of the weight.
    mean = np.trace(data.T @ data) / len(weight)
    whole = np.square(data @ weight).sum()
    for rank in range(1, len(factors.energy) + 1):
        left, right = factors.cut(rank)
        lost = output_error(data, weight, left, right)
        moved = 1e-6 * mean * (np.square(weight - left @ right).sum() + np.square(weight).sum()) / whole
        assert lost == pytest.approx(factors.energy[rank:].sum(), abs=moved + 1e-12)


def test_data_decides_which_directions_stay():
    data, weight = made_up(24, 16, 200)
    whitened, plain = factorise(weight, data.T @ data), factorise(weight)
    for rank in (2, 4, 8):
        assert output_error(data, weight, *whitened.cut(rank)) < 0.7 * output_error(data, weight, *plain.cut(rank))


def test_no_other_matrix_of_that_rank_is_better():
    data, weight = made_up(10, 8, 60)
    left, right = factorise(weight, data.T @ data).cut(3)
    best = output_error(data, weight, left, right)
    generator = np.random.default_rng(1)
    for _ in range(200):
        other = output_error(
            data,
            weight,
            left + 1e-3 * generator.normal(size=left.shape),
            right + 1e-3 * generator.normal(size=right.shape),
        )
        assert other >= best - 1e-9


def test_directions_without_data_do_no_harm():
    data, weight = made_up(12, 6, 4)
    factors = factorise(weight, data.T @ data)
    assert np.isfinite(factors.left).all() and np.isfinite(factors.right).all()
    assert output_error(data, weight, *factors.cut(4)) < 1e-4
    silent = factorise(weight, np.zeros((12, 12)))
    np.testing.assert_allclose(silent.left @ silent.right, weight, atol=1e-12)
    nothing = factorise(np.zeros((3, 2)), None)
    assert not nothing.left.any() and not nothing.energy.any()


@pytest.mark.parametrize(("kept", "rank"), [(0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.91, 3), (1.0, 3), (0.01, 1)])
def test_the_rank_for_an_energy_is_the_smallest(kept, rank):
    assert rank_for_energy(np.array([0.6, 0.3, 0.1]), kept) == rank


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 0.99))
def test_the_rank_for_a_ratio_costs_no_more(inputs, outputs, ratio):
    rank = rank_for_ratio(inputs, outputs, ratio)
    assert rank == 1 or rank * (inputs + outputs) <= ratio * inputs * outputs
    assert (rank + 1) * (inputs + outputs) > ratio * inputs * outputs


def test_a_square_matrix_saves_below_half_of_its_rank():
    assert saves(31, 64, 64) and not saves(32, 64, 64)
