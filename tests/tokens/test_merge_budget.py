"""Choosing where to merge: least error first, and no further than the clock asks for."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_graphs import context, operators
from tests.tokens.aggregate_networks import images as patch_images
from tests.tokens.aggregate_networks import vision
from tests.tokens.attention_networks import fused
from tests.tokens.merge_models import images

from edgesmith.errors import DataError, MeasurementError
from edgesmith.graph.cost import count_cost
from edgesmith.host.records import Tier
from edgesmith.ledger import Measurement
from edgesmith.testing.models import tiny_vit
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.merging import budget
from edgesmith_tokens.merging.budget import Curve, plans, power_curve
from edgesmith_tokens.merging.schedule import fitted
from edgesmith_tokens.options.merging import MergeTokensOptions


class CountingTrial:
    """Takes multiplications for time."""

    measures_latency = True

    def __init__(self):
        self.timed = 0

    def lower(self, model):
        return model

    def speedups(self, models, baseline, *, max_seconds=30.0):
        self.timed += len(models)
        whole = count_cost(baseline.ir).macs
        return tuple(
            Measurement(value=whole / count_cost(each.ir).macs, unit="x", tier=Tier.REFERENCE) for each in models
        )


class WatchingTrial(CountingTrial):
    """Notes which attention the baseline has, and that of the models that are compared with it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def speedups(self, models, baseline, *, max_seconds=30.0):
        self.seen += [tuple(operators(each)["Attention"] for each in (baseline, model)) for model in models]
        return super().speedups(models, baseline, max_seconds=max_seconds)


def chosen(speedup, trial=None, samples=2):
    model, trial = tiny_vit(blocks=2), trial or CountingTrial()
    options = MergeTokensOptions(speedup=speedup, samples=samples)
    settings_ = replace(context(options, images(2)), trial=trial)
    assert MergeTokens().check(model, settings_).status == "ok"
    return model, MergeTokens().apply(model, settings_), settings_.notes.remarks


def test_times_are_compared_with_the_model_that_was_given_and_not_with_its_single_operators():
    model, trial = fused(vision(blocks=2)), WatchingTrial()
    data = patch_images(model, 2)
    settings_ = replace(context(MergeTokensOptions(speedup=1.05, samples=2), data), trial=trial)
    assert MergeTokens().check(model, settings_).status == "ok"
    MergeTokens().apply(model, settings_)
    assert set(trial.seen) == {(2, 0)}


def test_what_cannot_be_reached_is_said_and_the_fastest_is_taken():
    model, merged, remarks = chosen(50.0)
    assert "short of 50" in remarks[0]
    most = MergeTokens().apply(model, context(MergeTokensOptions(r=100)))
    # What the first block takes decides most; blocks further on may have no whole step left.
    assert count_cost(merged.ir).macs <= 1.1 * count_cost(most.ir).macs


def test_the_model_is_as_fast_as_asked_for_and_not_much_faster_and_the_choice_repeats():
    trial = CountingTrial()
    model, merged, remarks = chosen(1.3, trial)
    reached = count_cost(model.ir).macs / count_cost(merged.ir).macs
    assert 1.3 <= reached < 1.45
    assert "timed at" in remarks[0] and "short" not in remarks[0]
    assert chosen(1.3)[2] == remarks


def test_of_many_plans_the_first_that_is_fast_enough_is_taken_and_not_all_are_timed(monkeypatch):
    model, sequence = tiny_vit(blocks=6), []
    whole = count_cost(model.ir).macs

    def kept(*arguments):
        sequence[:] = plans(*arguments)
        return tuple(sequence)

    @cache
    def reached(counts):
        return whole / count_cost(MergeTokens().apply(model, context(MergeTokensOptions(counts=counts))).ir).macs

    monkeypatch.setattr(budget, "plans", kept)
    for speedup in (1.3, 1.7):
        trial, options = CountingTrial(), MergeTokensOptions(speedup=speedup, samples=2)
        merged = MergeTokens().apply(model, replace(context(options, images(2)), trial=trial))
        assert whole / count_cost(merged.ir).macs == next(each for each in map(reached, sequence) if each >= speedup)
        assert trial.timed < len(sequence)


def test_a_single_patch_has_none_to_merge_with():
    model = vision(1, 1, blocks=2)
    settings_ = replace(context(MergeTokensOptions(speedup=1.2), patch_images(model, 2)), trial=CountingTrial())
    verdict = MergeTokens().check(model, settings_)
    assert verdict.status == "skip" and "no two patches" in verdict.reason
    assert MergeTokens().apply(model, settings_).digest() == model.digest()


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    blocks=st.integers(1, 5),
    tokens=st.integers(2, 60),
    protected=st.integers(0, 2),
    step=st.integers(1, 5),
)
def test_plans_grow_by_one_step_in_the_block_of_least_error(data, blocks, tokens, protected, step):
    scales = data.draw(st.lists(st.floats(0.01, 10), min_size=blocks, max_size=blocks))
    curves = [Curve(scale, 1.5, 100.0 * (blocks - number)) for number, scale in enumerate(scales)]
    before = (0,) * blocks

    def total(plan):
        return sum(curve.error(count) for curve, count in zip(curves, plan, strict=True))

    def saved(plan):
        return sum(curve.macs * count for curve, count in zip(curves, plan, strict=True))

    for plan in plans(curves, tokens, protected, step):
        assert fitted(plan, tokens, protected) == plan and saved(plan) > saved(before)
        cost = (total(plan) - total(before)) / (saved(plan) - saved(before))
        for number in range(blocks):
            more = (*before[:number], before[number] + step, *before[number + 1 :])
            # Where all of it fits, no block is cheaper.
            if fitted(more, tokens, protected) == more:
                assert cost <= (total(more) - total(before)) / (saved(more) - saved(before)) + 1e-12
        before = plan


def test_curves_go_through_what_was_measured():
    curve = power_curve([4, 12], [0.01, 0.09], 5.0)
    assert curve.error(0) == 0
    np.testing.assert_allclose([curve.error(4), curve.error(12)], [0.01, 0.09])
    assert power_curve([4], [0.2], 1.0).error(8) == pytest.approx(0.4)
    # A block whose error does not rise is taken to be linear, and never to get better.
    assert power_curve([4, 8], [0.2, 0.1], 1.0).power == 1.0


def test_without_times_or_data_it_refuses_and_says_what_works():
    model, options = tiny_vit(), MergeTokensOptions(speedup=1.5)
    untimed = context(options, images())
    assert "ratio" in MergeTokens().check(model, untimed).reason
    with pytest.raises(MeasurementError):
        MergeTokens().apply(model, untimed)
    without_data = replace(context(options), trial=CountingTrial())
    assert "--data" in MergeTokens().check(model, without_data).reason
    with pytest.raises(DataError, match="no calibration data for choosing"):
        MergeTokens().apply(model, without_data)
    assert options.needs.data and not MergeTokensOptions().needs.data
