"""Closed forms of static attention, held against sums over all samples."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith_calibration.errors import DataError
from edgesmith_tokens.static.formulas import least_squares_map, row_logarithm
from edgesmith_tokens.static.measure import Forms, greedy_choice
from edgesmith_tokens.static.statistics import MapStatistics
from edgesmith_tokens.static.training import divergence, row_softmax

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))


def sample(sizes, seed=0):
    """Return maps whose rows sum to 1, and values, float64 [samples, heads, tokens, ...]."""
    count, heads, tokens, channels = sizes
    generator = np.random.default_rng(seed)
    maps = np.exp(generator.normal(0, 1, (count, heads, tokens, tokens)))
    return maps / maps.sum(-1, keepdims=True), generator.normal(0.3, 1, (count, heads, tokens, channels))


def seen(maps, values, batch=3):
    statistics = MapStatistics("test")
    for start in range(0, len(maps), batch):
        statistics.update(maps[start : start + batch], values[start : start + batch])
    return statistics


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_streamed_statistics_equal_those_of_all_samples_at_once(sizes, seed):
    maps, values = sample(sizes, seed)
    statistics = seen(maps, values)
    mean = maps.mean(0)
    assert statistics.count == len(maps)
    np.testing.assert_allclose(statistics.mean_map(), mean, rtol=1e-12)
    energies = np.square(maps).sum((1, 2, 3))
    expected = 1 - (np.square(maps - mean).sum((1, 2, 3)) / energies).mean()
    assert statistics.similarity == pytest.approx(expected, abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99), with_bias=st.booleans())
def test_errors_from_sums_are_those_of_the_outputs(sizes, seed, with_bias):
    maps, values = sample(sizes, seed)
    statistics = seen(maps, values)
    static = np.random.default_rng(seed + 1).normal(0, 1, maps.shape[1:])
    bias = statistics.bias(static) if with_bias else None
    outputs = maps @ values
    if with_bias:
        np.testing.assert_allclose(bias, (outputs - static @ values).mean(0), atol=1e-10)
    left = outputs - static @ values - (0 if bias is None else bias)
    expected = np.sqrt(np.square(left).sum() / np.square(outputs).sum())
    # The root of a difference of sums: an error of 1e-12 of the energy is one of 1e-6 in a root near zero.
    assert statistics.relative_error(static, bias) == pytest.approx(expected, abs=1e-6, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_the_least_squares_map_is_that_of_numpy_with_the_ridge_as_further_rows(sizes, seed):
    maps, values = sample(sizes, seed)
    ridge = 1e-2
    found = seen(maps, values).least_squares_map(ridge)
    for head in range(maps.shape[1]):
        columns = np.concatenate(values[:, head], axis=1)
        targets = np.concatenate((maps @ values)[:, head], axis=1)
        gram = columns @ columns.T
        extra = np.sqrt(ridge * np.trace(gram) / len(gram)) * np.eye(len(gram))
        rows = np.concatenate([columns.T, extra])
        wanted = np.concatenate([targets.T, np.zeros_like(extra)])
        expected = np.linalg.lstsq(rows, wanted)[0].T
        np.testing.assert_allclose(found[head], expected, atol=1e-8)


def test_no_map_does_better_on_its_samples_than_least_squares():
    maps, values = sample((30, 2, 4, 3))
    statistics = seen(maps, values)
    solved = statistics.least_squares_map(1e-9)
    best = statistics.relative_error(solved)
    assert best <= statistics.relative_error(statistics.mean_map())
    nearby = solved + np.random.default_rng(0).normal(0, 1e-2, solved.shape)
    assert best < statistics.relative_error(nearby)
    assert statistics.relative_error(solved, statistics.bias(solved)) <= best


def test_two_parts_add_up_to_the_whole():
    maps, values = sample((9, 2, 4, 3))
    whole = seen(maps, values)
    parts, other = seen(maps[:4], values[:4]), seen(maps[4:], values[4:])
    parts.absorb(other)
    assert parts.count == 9 and other.count == 5
    np.testing.assert_allclose(other.mean_map(), maps[4:].mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts.mean_map(), whole.mean_map(), rtol=1e-12)
    assert parts.relative_error(parts.mean_map()) == pytest.approx(whole.relative_error(whole.mean_map()))
    similarity = whole.similarity
    whole.absorb(MapStatistics("none"))
    assert whole.similarity == similarity
    empty = MapStatistics("all")
    empty.absorb(whole)
    empty.update(maps, values)
    assert empty.count == 18 and whole.similarity == similarity


def test_statistics_take_the_memory_that_the_page_says():
    # Small values beside large maps, so that maps decide.
    maps, values = sample((8, 2, 256, 4))
    map_bytes = maps[0].nbytes
    parts = MapStatistics("fitted"), MapStatistics("held out")
    tracemalloc.start()
    try:
        for part, start in zip(parts, (0, 4), strict=True):
            part.update(maps[start : start + 4], values[start : start + 4])
        held, _ = tracemalloc.get_traced_memory()
        Forms("best", True, 1e-3).solve(None, *parts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Eight sums and their outputs and values; six more while a map is solved for and judged.
    assert held < 9 * map_bytes and peak < 15 * map_bytes


def test_a_constant_map_is_similar_to_itself_and_the_closed_forms_find_it():
    maps, values = sample((20, 2, 4, 3))
    maps[:] = maps[0]
    statistics = seen(maps, values)
    assert statistics.similarity == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(statistics.mean_map(), maps[0], atol=1e-12)
    # The ridge pulls the map towards zero by at most ridge * mean of the spectrum over its smallest value.
    np.testing.assert_allclose(statistics.least_squares_map(1e-9), maps[0], atol=1e-5)


def test_values_of_zero_are_solved_without_a_warning():
    found = least_squares_map(np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), 1e-3)
    assert np.array_equal(found, np.zeros((1, 3, 3)))


def test_a_map_that_is_not_finite_is_named():
    maps, values = sample((2, 1, 3, 2))
    values[1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="the attention of block 4 is infinite or NaN"):
        statistics = MapStatistics("block 4")
        statistics.update(maps, values)


def test_logits_of_a_map_give_it_back():
    maps, _ = sample((1, 2, 5, 1))
    np.testing.assert_allclose(row_softmax(row_logarithm(maps[0])), maps[0], rtol=1e-12)
    hard = np.eye(4)[None]
    assert np.allclose(row_softmax(row_logarithm(hard)), hard, atol=1e-7)
    assert np.allclose(row_softmax(row_logarithm(hard)).sum(-1), 1.0)


def test_guidance_by_the_mean_map_has_the_gradient_of_guidance_by_all_maps():
    maps, _ = sample((7, 2, 4, 1))
    teacher = torch.from_numpy(maps)
    logits = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alone = torch.stack([divergence(each[None], logits) for each in teacher]).mean()
    (expected,) = torch.autograd.grad(alone, logits)
    (found,) = torch.autograd.grad(divergence(teacher.mean(0, keepdim=True), logits), logits)
    torch.testing.assert_close(found, expected)
    assert float(alone.detach()) > 0
    mean = teacher.mean(0, keepdim=True)
    assert float(divergence(mean, mean.log())) == pytest.approx(0.0, abs=1e-12)


def test_greedy_takes_the_least_harm_each_time_and_stops_at_the_limit():
    harm = {0: 0.3, 1: 0.1, 2: 0.2, 3: 0.15}
    tried = []

    def error(static):
        tried.append(tuple(static))
        # 1 and 3 together are worse than their sum.
        return sum(harm[index] for index in static) + (0.5 if {1, 3} <= set(static) else 0.0)

    chosen = greedy_choice(3, 4, error, None)
    assert [index for index, _ in chosen] == [1, 2, 0]
    assert [error for _, error in chosen] == pytest.approx([0.1, 0.3, 0.6])
    assert [index for index, _ in greedy_choice(3, 4, error, 0.35)] == [1, 2]
    assert greedy_choice(3, 4, error, 0.05) == ()
    assert len(greedy_choice(9, 2, error, None)) == 2
    assert tried[:4] == [(0,), (1,), (2,), (3,)]
