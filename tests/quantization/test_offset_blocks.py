"""Blocks with free offsets: exact for weights of such blocks, never worse than the range, stored as an Add."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_quantization.arithmetic.blocks import BlockCodes, dequantize_blocks, round_blocks, round_to_grid
from edgesmith_quantization.arithmetic.offset_blocks import fit_offset_blocks
from edgesmith_quantization.arithmetic.second_order import output_error, round_second_order
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights
from small_graphs import context, graph, node, operators, run, sqnr


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def rounded(values, bits=4, block_size=32):
    grid = fit_offset_blocks(values, bits, block_size)
    return BlockCodes(round_to_grid(values, grid), grid.scale, grid.zero_point, bits, block_size)


@given(seed=st.integers(0, 2**16), bits=st.sampled_from([2, 4]), block_size=st.sampled_from([16, 32]))
@settings(max_examples=20, deadline=None)
def test_weights_that_were_rounded_so_before_are_found_again(seed, bits, block_size):
    """As in GGUF's Q4_1, whose blocks use the first and the last code."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << bits, (6, 4, block_size))
    codes[..., 0], codes[..., 1] = 0, (1 << bits) - 1
    scale, offset = generator.uniform(0.01, 1, (6, 4, 1)), generator.uniform(-3, 3, (6, 4, 1))
    values = (codes * scale + offset).astype(np.float32).reshape(6, -1)
    found = rounded(values, bits, block_size)
    np.testing.assert_array_equal(found.codes, codes.reshape(6, -1))
    # Offsets of up to 300 steps are kept as zero points in float32: a relative 6e-8 of them is 2e-5 of a step.
    np.testing.assert_allclose(dequantize_blocks(found), values, rtol=0, atol=5e-5)


@given(seed=st.integers(0, 2**16), bits=st.sampled_from([2, 4, 8]), scale=st.sampled_from([1e-10, 1.0, 1e10]))
@settings(max_examples=20, deadline=None)
def test_the_fit_never_does_worse_than_the_whole_range(seed, bits, scale):
    values = normal(5, 96, seed=seed) * np.float32(scale)
    found = rounded(values, bits)
    step = np.ptp(values.reshape(5, 3, 32), axis=2) / ((1 << bits) - 1)
    errors = np.square((dequantize_blocks(found) - values).astype(np.float64)).reshape(5, 3, 32).sum(axis=2)
    # The whole range rounds each of 32 values by at most half a step; float32 sums blur that by a little.
    assert (errors <= 32 * np.square(step / 2) * 1.001).all()
    assert found.codes.max() < 1 << bits


@pytest.mark.parametrize("bits", [2, 4])
def test_free_offsets_are_closer_than_zero_points(bits):
    values = normal(64, 256)
    free, tied = rounded(values, bits), round_blocks(values, bits, 32, False, "mse")
    errors = [np.square(dequantize_blocks(each) - values).sum() for each in (free, tied)]
    assert errors[0] < 0.97 * errors[1]


@pytest.mark.parametrize("values", [np.zeros((2, 32)), np.full((2, 32), 3.0), np.full((2, 32), -1e-38)])
def test_constant_blocks_are_kept(values):
    np.testing.assert_allclose(dequantize_blocks(rounded(values.astype(np.float32))), values, rtol=1e-6, atol=1e-37)


def test_second_order_rounding_takes_free_offsets():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(400, 96)) @ generator.normal(size=(96, 96))
    weight, gram = normal(24, 96), rows.T @ rows
    nearest = rounded(weight)
    better = round_second_order(weight, gram, nearest.grid)
    errors = [output_error(weight, dequantize_blocks(each), gram) for each in (better, nearest)]
    assert errors[0] < errors[1]
    np.testing.assert_array_equal(better.zero_point, nearest.zero_point)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rounding", ["nearest", "mse", "second-order"])
def test_offsets_are_stored_as_an_addition_to_blocks(transposed, rounding):
    weight = normal(40, 96) if transposed else normal(96, 40)
    model = graph([node("Gemm", ["x", "w"], "y", transB=transposed)], {"w": weight}, {"x": ["n", 96]})
    data = {"x": normal(300, 96)}
    used = context(QuantizeWeightsOptions(offsets=True, rounding=rounding, samples=300), data)
    result = QuantizeWeights().apply(model, used)
    assert operators(result) == {"DequantizeLinear": 1, "Reshape": 2, "Add": 1, "Gemm": 1}
    # 15 steps over a block of 32 normal values, about 4.2 deviations wide: noise of 4.2^2 / 15^2 / 12 is -22 dB.
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 20


def test_tables_and_shorter_blocks_keep_zero_points():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(70, 24)}, {"x": ["n", 70]})
    result = QuantizeWeights().apply(model, context(QuantizeWeightsOptions(offsets=True)))
    assert operators(result) == {"DequantizeLinear": 1, "MatMul": 1}
