"""Which measured assignment is best under a budget: pure functions of numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.host.records import Tier
from edgesmith.ledger import Measurement
from edgesmith_quantization.search.attempts import (
    FLOAT,
    Attempt,
    Limits,
    choose,
    clearly_faster,
    clearly_slower,
    dominated,
)
from edgesmith_quantization.search.layer_groups import LayerGroup
from edgesmith_quantization.search.output_probe import Quality

GROUPS = (LayerGroup(("a",), "small", 10), LayerGroup(("b",), "large", 100), LayerGroup(("c",), "small", 5))


def speedup(value, spread=0.0):
    return Measurement(value=value, unit="x", tier=Tier.REFERENCE, samples=5, low=value - spread, high=value + spread)


def attempt(sqnr=30.0, bits=8.0, speed=None, drop=None, picks=("int8",) * 3):
    return Attempt(GROUPS, picks, None, None, Quality(sqnr, drop), bits, speed)


ATTEMPTS = st.builds(
    attempt,
    st.floats(0, 60),
    st.floats(2, 32),
    st.builds(speedup, st.floats(0.5, 4), st.floats(0, 0.2)),
    st.floats(-2, 5),
)


def test_noise_is_the_share_of_energy_and_zero_for_equal_outputs():
    assert Quality(20.0).noise == pytest.approx(0.01)
    assert Quality(math.inf).noise == 0.0


def test_limits_name_what_is_missed_and_by_how_much():
    limits = Limits(max_metric_drop=0.5, min_sqnr_db=30.0, max_bits_per_weight=4.0)
    assert limits.misses(Quality(31.0, 0.5), 4.0) == ()
    metric, noise, bits = limits.misses(Quality(28.0, 1.25), 4.5)
    assert "1.25, 0.75 more than 0.5" in metric
    assert "28.0 dB, 2.0 dB below 30" in noise
    assert "4.50 bits each, 0.50 more than 4" in bits


@pytest.mark.parametrize("drop", [None, math.nan])
def test_an_unknown_metric_does_not_count_as_kept(drop):
    limits = Limits(max_metric_drop=0.5)
    assert "unknown" in limits.misses(Quality(99.0, drop), 8.0)[0]
    assert limits.shortfall(attempt(drop=drop)) == math.inf


@given(st.lists(ATTEMPTS, min_size=1, max_size=6), st.floats(0, 50), st.sampled_from(["latency", "size"]))
def test_an_attempt_within_budget_is_never_passed_over(attempts, least, objective):
    limits = Limits(min_sqnr_db=least)
    best = choose(attempts, limits, objective)
    assert best in attempts
    assert limits.shortfall(best) == min(limits.shortfall(one) for one in attempts)


@given(st.lists(ATTEMPTS, min_size=1, max_size=6))
def test_the_smallest_wins_where_size_is_the_objective(attempts):
    best = choose(attempts, Limits(), "size")
    assert best.bits_per_weight == min(one.bits_per_weight for one in attempts)


@given(st.lists(ATTEMPTS, min_size=1, max_size=6))
def test_nothing_is_clearly_faster_than_what_was_chosen_for_speed(attempts):
    best = choose(attempts, Limits(), "latency")
    fastest = max(one.speedup.value for one in attempts)
    limit = next(one.speedup.low for one in attempts if one.speedup.value == fastest)
    assert best.speedup.value >= limit


def test_equally_fast_attempts_are_told_apart_by_size():
    quick, small = attempt(bits=8, speed=speedup(2.0, 0.2)), attempt(bits=4, speed=speedup(1.9, 0.2))
    assert choose([quick, small], Limits(), "latency") is small
    assert choose([quick, attempt(bits=4, speed=speedup(1.5, 0.2))], Limits(), "latency") is quick


@given(st.lists(ATTEMPTS, min_size=1, max_size=6), st.floats(2, 40))
def test_within_bits_the_most_exact_wins(attempts, bits):
    best = choose(attempts, Limits(max_bits_per_weight=bits), "latency")
    fitting = [one.quality.noise for one in attempts if one.bits_per_weight <= bits]
    if fitting:
        assert best.quality.noise == min(fitting)


@given(ATTEMPTS, ATTEMPTS, st.sampled_from(["latency", "size"]))
def test_two_attempts_do_not_beat_each_other(one, other, objective):
    assert not (dominated(one, other, objective) and dominated(other, one, objective))


def test_an_attempt_that_is_better_in_one_thing_is_not_beaten():
    base = attempt(30, 8, speedup(2.0))
    assert dominated(base, attempt(31, 9, speedup(2.0)), "latency")
    assert not dominated(base, attempt(31, 7, speedup(1.9)), "latency")
    assert not dominated(base, attempt(29, 7, speedup(3.0)), "latency")
    assert dominated(base, attempt(31, 7, speedup(1.9)), "size")
    assert not dominated(base, attempt(31, 9, speedup(3.0)), "size")
    assert dominated(attempt(30, 8), attempt(31, 7), "latency")
    assert not dominated(base, base, "latency")


def test_a_format_that_leaves_more_in_float_is_not_beaten_by_bits():
    narrow = attempt(25, 13, picks=("int4-weights", FLOAT, FLOAT))
    assert not dominated(narrow, attempt(30, 8), "size")
    assert dominated(attempt(25, 13), attempt(30, 8), "size")


def test_quartiles_decide_what_is_clear():
    assert clearly_faster(speedup(1.2, 0.1)) and not clearly_faster(speedup(1.2, 0.3))
    assert clearly_slower(speedup(0.8, 0.1)) and not clearly_slower(speedup(0.8, 0.3))
    assert not clearly_faster(None) and not clearly_slower(None)


def test_kinds_are_ranked_by_operations_and_taken_out_whole():
    one = attempt(picks=("int8", "int8", FLOAT))
    assert one.largest_kinds(5) == ("large", "small")
    assert one.largest_kinds(1) == ("large",)
    assert one.picks_without({"small"}) == (FLOAT, "int8", FLOAT)
    assert attempt(picks=(FLOAT,) * 3).largest_kinds(5) == ()


def test_the_summary_holds_every_number():
    text = attempt(30.0, 8.25, speedup(2.0, 0.1), 0.5).summary
    assert all(part in text for part in ("30.0 dB", "-0.50", "8.25 bits", "2.00 times", "1.90 to 2.10"))
