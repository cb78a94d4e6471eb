"""Splits of weights: sums that are exact, zeros that stay, errors that fall."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgesmith_quantization.arithmetic.blocks import dequantize_blocks, round_to_grid
from edgesmith_quantization.arithmetic.splitting import (
    SplitScheme,
    digit_limits,
    digits_of,
    find_owners,
    round_unsplit,
    signal_to_noise_db,
    split_by_owner,
    split_weight,
)

SCHEMES = [
    SplitScheme(bits, parts, by, symmetric, per_row, block_size, whole, clip, assignment)
    for bits, parts in ((2, 3), (4, 2), (8, 3))
    for by in ("value", "magnitude", "digits")
    for symmetric in (False, True)
    for per_row, block_size, whole in ((False, None, True), (False, None, False), (True, None, False), (True, 8, False))
    for clip, assignment in (("none", "clusters"), ("mse", "nearest"))
    if by != "digits" or bits * parts <= 8
]


def laplace(*shape, seed=0):
    return np.random.default_rng(seed).laplace(0, 0.05, shape).astype(np.float32)


def outliers(*shape):
    values = laplace(*shape)
    values.flat[:: max(values.size // 5, 1)] *= 40
    return values


weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 20)),
    elements=st.floats(-4, 4, width=16, allow_subnormal=False),
)


@settings(max_examples=80, deadline=None)
@given(weights, st.integers(2, 4), st.booleans(), st.booleans())
def test_parts_add_up_bit_for_bit_and_do_not_overlap(rows, count, magnitude, per_row):
    owners, edges = find_owners(rows, count, magnitude=magnitude, per_row=per_row)
    parts = split_by_owner(rows, owners, count)
    assert edges.shape == (len(rows) if per_row else 1, count - 1)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    # Adding +0.0 turns -0.0 into 0.0 and leaves every other number as it is.
    assert (total + np.float32(0)).tobytes() == (rows + np.float32(0)).tobytes()
    assert (np.count_nonzero(np.stack(parts), axis=0) <= 1).all()


@settings(max_examples=60, deadline=None)
@given(weights, st.sampled_from(SCHEMES))
def test_codes_fit_their_bits_and_zeros_stay_zero(rows, scheme):
    split = split_weight(rows, scheme)
    assert len(split.parts) == scheme.parts
    for part in split.parts:
        lowest, highest = part.grid.limits
        assert part.codes.shape == rows.shape
        assert part.codes.min() >= lowest
        assert part.codes.max() <= highest
        assert (part.scale > 0).all()
        assert np.isfinite(part.scale).all()
        assert not dequantize_blocks(part)[rows == 0].any()
    assert np.isfinite(split.dequantized()).all()


@pytest.mark.parametrize("scheme", [each for each in SCHEMES if each.by != "digits"])
def test_rounded_parts_do_not_overlap(scheme):
    split = split_weight(outliers(12, 24), scheme)
    values = np.stack([dequantize_blocks(part) for part in split.parts])
    assert (np.count_nonzero(values, axis=0) <= 1).all()


@pytest.mark.parametrize("scheme", [each for each in SCHEMES if not each.symmetric and each.by != "magnitude"])
@pytest.mark.parametrize("make", [laplace, outliers])
def test_affine_splits_round_better_than_the_same_quantizer_alone(scheme, make):
    rows = make(32, 48)
    assert split_weight(rows, scheme).error(rows) <= error(round_unsplit(rows, scheme), rows)


def error(rounded, rows):
    return float(np.square(dequantize_blocks(rounded) - rows, dtype=np.float64).sum())


@pytest.mark.parametrize("scheme", [each for each in SCHEMES if each.assignment == "clusters" and each.by != "digits"])
def test_nearest_parts_never_round_worse_than_clusters(scheme):
    rows = outliers(16, 24)
    clusters, nearest = (split_weight(rows, replace(scheme, assignment=each)) for each in ("clusters", "nearest"))
    # Scales are stored in float32, whose rounding may cost a 1e-6 of the error.
    assert nearest.error(rows) <= clusters.error(rows) * (1 + 1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_gains_on_gaussian_weights_are_those_of_the_specification(bits):
    rows = np.random.default_rng(0).normal(0, 1, (512, 512)).astype(np.float32)
    whole = SplitScheme(bits, whole=True)
    expected = {2: (1.8, 8.2, 0.5), 4: (15.0, 23.5, 17.3)}[bits]
    found = [
        signal_to_noise_db(rows, dequantize_blocks(round_unsplit(rows, whole))),
        signal_to_noise_db(rows, split_weight(rows, whole).dequantized()),
        signal_to_noise_db(rows, split_weight(rows, replace(whole, symmetric=True)).dequantized()),
    ]
    # The range of a sample decides the scale, so other samples differ by tenths; the symmetric grid at 2 bits holds
    # one code above zero, and its use differs between quantizers.
    assert found[:2] == pytest.approx(expected[:2], abs=0.3)
    assert expected[2] - 0.5 <= found[2] <= found[1] - 4


def test_magnitude_shells_beat_value_clusters_on_symmetric_grids():
    rows = np.random.default_rng(0).normal(0, 1, (128, 256)).astype(np.float32)
    value, magnitude = (
        signal_to_noise_db(rows, split_weight(rows, SplitScheme(4, by=by, symmetric=True, whole=True)).dequantized())
        for by in ("value", "magnitude")
    )
    assert magnitude > value + 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans(), st.data())
def test_digits_count_back_to_the_code(bits, count, signed, data):
    lowest, highest = digit_limits(bits, count) if signed else (0, (1 << bits * count) - 1)
    codes = np.array([*data.draw(st.lists(st.integers(lowest, highest), min_size=1)), lowest, highest], np.int64)
    digits = digits_of(codes, bits, count, signed=signed)
    assert np.array_equal(sum(digit << bits * place for place, digit in enumerate(digits)), codes)
    half = 1 << bits - 1
    for digit in digits:
        assert digit.min() >= (-half if signed else 0)
        assert digit.max() <= (half - 1 if signed else 2 * half - 1)


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_digits_round_as_one_code_of_all_their_bits(clip):
    rows = laplace(16, 24)
    split = split_weight(rows, SplitScheme(2, 3, "digits", clip=clip))
    fine = dequantize_blocks(round_unsplit(rows, SplitScheme(6, clip=clip)))
    # The parts are multiples of one scale, of at most 63 steps: three float32 roundings each.
    step = split.parts[0].scale
    assert np.abs(split.dequantized() - fine).max() <= 4 * 64 * step.max() * np.finfo(np.float32).eps


@pytest.mark.parametrize(("bits", "parts"), [(2, 2), (2, 3), (2, 4), (4, 2)])
@pytest.mark.parametrize("half", [False, True])
def test_signed_digits_are_clipped_where_that_lowers_the_error(bits, parts, half):
    rows = np.random.default_rng(0).standard_t(3, (16, 512)).astype(np.float16 if half else np.float32)
    covering, fitted = (
        split_weight(rows, SplitScheme(bits, parts, "digits", symmetric=True, clip=clip)) for clip in ("none", "mse")
    )
    low, high = digit_limits(bits, parts)
    assert (covering.parts[0].scale[:, 0] >= np.maximum(rows.min(axis=1) / low, rows.max(axis=1) / high) * 0.999).all()
    errors = [np.square(each.dequantized() - rows).sum(axis=1) for each in (fitted, covering)]
    # Rounding scales to float16 may cost a little of what the fit gains.
    assert (errors[0] <= errors[1] * (1.01 if half else 1 + 1e-5)).all()
    assert errors[0].sum() < errors[1].sum() * 0.999
    # One more bit is worth 6 dB: digits lie between one code of all their bits and one of a bit less.
    one_less = split_weight(rows, SplitScheme(bits * parts - 1, 1, "value", symmetric=True, clip="mse"))
    assert fitted.error(rows) < one_less.error(rows)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_weights_get_codes_that_fit_scales_of_half_precision(scheme):
    rows = (laplace(8, 24) * 1e-3).astype(np.float16)
    split = split_weight(rows, scheme)
    for part in split.parts:
        assert np.array_equal(part.scale, part.scale.astype(np.float16).astype(np.float32))
        if scheme.by != "digits":
            nearest = round_to_grid(rows, part.grid)
            held = dequantize_blocks(part) != 0
            assert np.array_equal(part.codes[held], nearest[held])


def test_a_part_without_members_has_scale_one_and_the_code_of_zero():
    rows = np.array([[0.5, 0.25, 0.125], [0.0, 0.0, 0.0]], np.float32)
    for symmetric in (False, True):
        for part in split_weight(rows, SplitScheme(4, symmetric=symmetric)).parts:
            assert part.scale[1, 0] == 1.0
            offset = 0 if part.zero_point is None else part.zero_point[1, 0]
            assert (part.codes[1] == offset).all()


def test_blocks_that_do_not_fill_the_last_are_rounded_alone():
    rows = outliers(4, 21)
    scheme = SplitScheme(4, block_size=8)
    split, head = split_weight(rows, scheme), split_weight(rows[:, :16], replace(scheme, clusters_per_row=True))
    assert split.parts[0].scale.shape == (4, 3)
    assert head.parts[0].scale.shape == (4, 2)
    assert split.dequantized().shape == rows.shape
