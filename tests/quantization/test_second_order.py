"""Second-order rounding held against its paper: output error, the plain loop, dead inputs, scales of least error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.damping import damped
from edgesmith_quantization.arithmetic.blocks import BlockCodes, dequantize_blocks, fit_blocks, round_blocks
from edgesmith_quantization.arithmetic.second_order import (
    output_error,
    refit_scales,
    round_second_order,
)


def case(outputs, inputs, seed=0, correlation=0.2):
    """Return a weight, and the Gram matrix of inputs that are correlated as activations of networks are."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(inputs) + correlation * generator.normal(size=(inputs, inputs))
    rows = generator.normal(size=(4 * inputs, inputs)) @ mixing
    return generator.normal(size=(outputs, inputs)).astype(np.float32), rows.T @ rows


def plain_loop(weight, gram, grid, damping):
    """Algorithm 1 of the paper as it is derived in its section 3: one column at a time, the inverse updated in full."""
    remaining, codes = weight.astype(np.float64), np.zeros(weight.shape)
    inverse = np.linalg.inv(damped(gram, damping))
    for column in range(weight.shape[1]):
        block = column // grid.block_size
        step, zero = grid.scale[:, block].astype(np.float64), grid.offset[:, block]
        codes[:, column] = np.clip(np.rint(remaining[:, column] / step) + zero, *grid.limits)
        error = (remaining[:, column] - (codes[:, column] - zero) * step) / inverse[column, column]
        remaining -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_equal_those_of_the_plain_loop(symmetric):
    weight, gram = case(24, 160)
    grid = fit_blocks(weight, 4, 32, symmetric)
    fast = round_second_order(weight, gram, grid, damping=0.05, descending=False)
    # float32 sums differ in the last place from the plain loop's, which moves a value that lies between two codes.
    assert (fast.codes != plain_loop(weight, gram, grid, 0.05)).mean() < 0.005


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("descending", [True, False])
@given(seed=st.integers(0, 2**16), inputs=st.integers(20, 90))
@settings(max_examples=5, deadline=None)
def test_output_error_falls_below_that_of_nearest_rounding(bits, descending, seed, inputs):
    weight, gram = case(48, inputs, seed)
    nearest = round_blocks(weight, bits, 32, False, "mse")
    rounded = round_second_order(weight, gram, nearest.grid, descending=descending)
    assert output_error(weight, dequantize_blocks(rounded), gram) < output_error(
        weight, dequantize_blocks(nearest), gram
    )
    np.testing.assert_array_equal(rounded.scale, nearest.scale)


def test_uncorrelated_inputs_round_to_nearest():
    weight, _ = case(8, 40)
    nearest = round_blocks(weight, 4, None, True)
    rounded = round_second_order(weight, np.diag(np.arange(1.0, 41.0)), nearest.grid)
    np.testing.assert_array_equal(rounded.codes, nearest.codes)


def test_inputs_that_calibration_never_saw_round_to_nearest():
    weight, gram = case(8, 40)
    gram[5], gram[:, 5] = 0, 0
    nearest = round_blocks(weight, 4, 16, True)
    rounded = round_second_order(weight, gram, nearest.grid)
    np.testing.assert_array_equal(rounded.codes[:, 5], nearest.codes[:, 5])
    empty = round_second_order(weight, np.zeros((40, 40)), nearest.grid)
    np.testing.assert_array_equal(empty.codes, nearest.codes)


def test_one_calibration_row_is_enough_to_be_defined():
    weight, _ = case(8, 40)
    row = np.random.default_rng(0).normal(size=40)
    rounded = round_second_order(weight, np.outer(row, row), fit_blocks(weight, 4, 16, False))
    assert np.isfinite(dequantize_blocks(rounded)).all()


def test_grids_of_one_scale_a_row_serve_per_channel_rounding():
    weight, gram = case(16, 200)
    nearest = round_blocks(weight, 8, None, True)
    rounded = round_second_order(weight, gram, nearest.grid)
    assert rounded.scale.shape == (16, 1)
    assert output_error(weight, dequantize_blocks(rounded), gram) < output_error(
        weight, dequantize_blocks(nearest), gram
    )


@pytest.mark.parametrize("block_size", [16, 100])
def test_blocks_get_their_grids_when_their_turn_comes(block_size):
    """The grid of a block covers what the weights have become, also where a block crosses an update of all columns."""
    weight, gram = case(16, 300)
    seen = []

    def refit(values):
        seen.append(values.copy())
        return fit_blocks(values, 4, None, False)

    rounded = round_second_order(weight, gram, fit_blocks(weight, 4, block_size, False), descending=False, refit=refit)
    assert [part.shape[1] for part in seen] == [block_size] * (300 // block_size) + [300 % block_size][
        : 300 % block_size
    ]
    np.testing.assert_array_equal(seen[0], weight[:, :block_size])
    # When its turn comes, all columns before it are rounded, and the others are those of least output error.
    done = 2 * block_size
    values, hessian = dequantize_blocks(rounded), damped(gram, 0.01)
    error = (weight - values)[:, :done].astype(np.float64)
    taken_up = error @ hessian[:done, done:] @ np.linalg.inv(hessian[done:, done:])
    expected = weight[:, done:] + taken_up
    np.testing.assert_allclose(seen[2], expected[:, :block_size], rtol=1e-3, atol=2e-3)


@given(seed=st.integers(0, 2**16), bits=st.sampled_from([2, 4]), symmetric=st.booleans())
@settings(max_examples=10, deadline=None)
def test_refitted_scales_never_raise_the_output_error(seed, bits, symmetric):
    weight, gram = case(12, 70, seed)
    rounded = round_blocks(weight, bits, 32, symmetric)
    refitted = refit_scales(weight, gram, rounded, damping=0.0001)
    before, after = (output_error(weight, dequantize_blocks(each), gram) for each in (rounded, refitted))
    # Damping bounds the share of the objective that is not the output error.
    assert after <= before * 1.001
    np.testing.assert_array_equal(refitted.codes, rounded.codes)
    assert (refitted.scale > 0).all()


def test_refitted_scales_solve_the_least_squares_problem():
    weight, gram = case(3, 64)
    rounded = round_blocks(weight, 4, 32, True)
    refitted = refit_scales(weight, gram, rounded, damping=0.01)
    root = np.linalg.cholesky(damped(gram, 0.01)).T
    for row in range(3):
        columns = np.zeros((64, 2))
        columns[:32, 0], columns[32:, 1] = rounded.codes[row, :32], rounded.codes[row, 32:]
        best = np.linalg.lstsq(root @ columns, root @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(refitted.scale[row], best, rtol=1e-4)


def test_blocks_of_zeros_keep_their_scale():
    weight, gram = case(4, 64)
    weight[:, :32] = 0
    rounded = round_blocks(weight, 4, 32, True)
    refitted = refit_scales(weight, gram, rounded)
    np.testing.assert_array_equal(refitted.scale[:, 0], rounded.scale[:, 0])
    assert (dequantize_blocks(refitted)[:, :32] == 0).all()


def test_output_error_is_that_of_the_outputs():
    weight, _ = case(6, 20)
    inputs = np.random.default_rng(1).normal(size=(50, 20))
    other = weight + np.float32(0.1)
    expected = np.square(inputs @ (weight - other).T).sum() / np.square(inputs @ weight.T).sum()
    assert output_error(weight, other, inputs.T @ inputs) == pytest.approx(expected, rel=1e-5)
    assert output_error(np.zeros((2, 20), np.float32), other[:2], np.eye(20)) == 0


def test_rounding_is_deterministic():
    weight, gram = case(8, 60)
    grid = fit_blocks(weight, 2, 16, False)
    first, second = (round_second_order(weight, gram, grid) for _ in range(2))
    assert isinstance(first, BlockCodes)
    np.testing.assert_array_equal(first.codes, second.codes)
