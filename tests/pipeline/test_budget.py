"""Budgets: what is missed, what pays, and what the verdict says."""

import pytest

from edgesmith.budget import conclude, metric_drop, misses, reason_to_undo, untimed_gain
from edgesmith.host.records import Tier
from edgesmith.ledger import LedgerRow, Measurement
from edgesmith.recipe import Budget


def number(value: float, unit: str, low: float | None = None) -> Measurement:
    return Measurement(value=value, unit=unit, tier=Tier.REFERENCE, low=low, high=None if low is None else value)


def row(
    *, change: float = 0.0, speedup: float = 1.0, low: float | None = None, size: float = 100.0, index: int = 1
) -> LedgerRow:
    return LedgerRow(
        index=index,
        stage="step",
        metric=number(90 + change, "points"),
        metric_change=number(change, "points"),
        latency_ms=number(10 / speedup, "ms"),
        speedup=number(speedup, "x", low),
        speedup_step=number(speedup, "x", low),
        size_bytes=number(size, "bytes"),
    )


@pytest.mark.parametrize(
    ("budget", "stage", "words"),
    [
        (Budget(max_metric_drop=0.5), row(change=-0.4), None),
        (Budget(max_metric_drop=0.5), row(change=-0.8), "metric drop is 0.8 points, 0.3 points above"),
        (Budget(max_latency_ms=6), row(speedup=1.0), "latency is 10 ms, 4 ms above"),
        (Budget(min_speedup=2), row(speedup=1.9999), "speed-up is 1.99x, asked for 2x"),
        (Budget(min_speedup=2), row(speedup=1.5), "speed-up is 1.50x, asked for 2x"),
        (Budget(max_size_bytes=50), row(size=50), None),
        (Budget(max_size_bytes=50), row(size=51), "size is 51 bytes, 1 bytes above"),
    ],
)
def test_a_miss_names_the_limit_and_the_distance(budget: Budget, stage: LedgerRow, words: str | None) -> None:
    found = misses(stage, row(index=0), budget, higher_is_better=True)
    assert (found == ()) if words is None else (len(found) == 1 and words in found[0])


def test_an_unmeasured_limit_counts_as_missed() -> None:
    found = misses(LedgerRow(index=1, stage="step"), row(index=0), Budget(max_latency_ms=1), higher_is_better=True)
    assert found == ("latency was not measured (limit 1 ms)",)


def test_lower_is_better_metrics_lose_upwards() -> None:
    worse = row(change=3.0)
    assert misses(worse, row(index=0), Budget(max_metric_drop=1), higher_is_better=False)
    assert not misses(worse, row(index=0), Budget(max_metric_drop=1), higher_is_better=True)


@pytest.mark.parametrize(
    ("budget", "stage", "undone"),
    [
        (Budget(), row(speedup=1.5, low=1.4), False),
        (Budget(), row(speedup=1.05, low=0.95), True),
        (Budget(), row(speedup=0.9, low=0.8, size=50), True),
        (Budget(), row(speedup=1.02, low=0.95, size=50), False),
        (Budget(), row(speedup=1.02, low=0.95, size=100), True),
        (Budget(max_latency_ms=20), row(speedup=0.9, low=0.8, size=50), True),
        (Budget(max_size_bytes=60), row(speedup=2.0, low=1.9), True),
        (Budget(max_size_bytes=60), row(speedup=0.9, low=0.8, size=50), False),
        (Budget(max_metric_drop=0.5), row(change=-0.6, speedup=3, low=2.9), True),
        (Budget(max_metric_drop=0.5), row(change=-0.5, speedup=3, low=2.9), False),
    ],
)
def test_a_step_pays_in_what_the_budget_names(budget: Budget, stage: LedgerRow, undone: bool) -> None:
    assert bool(reason_to_undo(stage, row(index=0), row(index=0), budget, higher_is_better=True)) is undone


def untimed(size: float) -> LedgerRow:
    return row(size=size).model_copy(update={"latency_ms": None, "speedup": None, "speedup_step": None})


def test_what_nobody_timed_is_kept_for_its_size_alone_and_says_so() -> None:
    before, after = untimed(100), untimed(25)
    assert reason_to_undo(after, before, before, Budget(), higher_is_better=True) == ""
    told = untimed_gain(after, before)
    assert "100 bytes to 25 bytes" in told and "latency was not measured, and it may be slower" in told
    assert "compile with `--on DEVICE`" in told
    assert untimed_gain(row(speedup=2, low=1.9), row()) == ""


def test_a_budget_of_time_undoes_what_nobody_timed_and_says_how_to_time_it() -> None:
    reason = reason_to_undo(untimed(25), untimed(100), untimed(100), Budget(min_speedup=1.5), higher_is_better=True)
    assert "nothing shows that it improves time (its speed was not measured, smaller, metric not better)" in reason
    assert "compile with `--on DEVICE`" in reason


def with_step(
    worst: float, best: float, *, change: float = 0.0, speedup: float = 1.01, low: float = 0.9, size: float = 100.0
) -> LedgerRow:
    """A stage that is neither faster nor smaller, and whose metric moved against the step before."""
    step = Measurement(value=(worst + best) / 2, unit="%", tier=Tier.REFERENCE, low=worst, high=best)
    stage = row(change=change, speedup=speedup, low=low, size=size)
    return stage.model_copy(update={"metric_step": step})


@pytest.mark.parametrize("budget", [Budget(), Budget(min_speedup=2), Budget(max_size_bytes=50)])
@pytest.mark.parametrize(
    ("stage", "undone"),
    [
        (with_step(0.1, 2.0), False),
        # The interval holds 0: the gain may be chance.
        (with_step(-0.1, 2.0, change=1.0), True),
        (with_step(0.1, 2.0, speedup=0.9, low=0.8), True),
        (with_step(0.1, 2.0, size=102), True),
    ],
)
def test_a_better_metric_pays_where_it_costs_neither_time_nor_size(
    budget: Budget, stage: LedgerRow, undone: bool
) -> None:
    assert bool(reason_to_undo(stage, row(index=0), row(index=0), budget, higher_is_better=True)) is undone
    told = reason_to_undo(with_step(-2.0, 0.1), row(index=0), row(index=0), budget, higher_is_better=True)
    assert "metric not better" in told


@pytest.mark.parametrize(("after", "better"), [(366.1, True), (375.4, False), (380.0, False)])
def test_a_metric_without_interval_is_better_beyond_a_thousandth(after: float, better: bool) -> None:
    stage, before = (without_interval(value, speedup=1.01, low=0.9) for value in (after, 375.5))
    assert (reason_to_undo(stage, before, without_interval(371.1), Budget(), higher_is_better=False) == "") is better


def test_what_nobody_timed_and_is_kept_for_its_metric_says_so() -> None:
    better = untimed(100).model_copy(update={"metric": number(91, "points")})
    assert reason_to_undo(better, untimed(100), untimed(100), Budget(), higher_is_better=True) == ""
    assert "Kept because its metric is better, and not because it is faster" in untimed_gain(better, untimed(100))


def test_the_verdict_says_gain_cost_and_distance() -> None:
    rows = [row(index=0), row(change=-0.8, speedup=2.5, size=25)]
    free = conclude(rows, 1, Budget(), higher_is_better=True)
    assert "2.50 times the speed" in free and "4.00 times smaller" in free and "-0.80 points" in free
    assert "udget" not in free
    assert "Within budget" in conclude(rows, 1, Budget(max_metric_drop=1), higher_is_better=True)
    assert "Budget missed: metric drop is 0.8 points" in conclude(
        rows, 1, Budget(max_metric_drop=0.5), higher_is_better=True
    )


def test_the_verdict_says_what_a_step_misses_of_its_own_options() -> None:
    missing = row(speedup=2).model_copy(update={"missed": ("weights take 4.50 bits each, 0.50 more than 4",)})
    told = conclude([row(index=0), missing], 1, Budget(), higher_is_better=True)
    assert f"{missing.stage} misses what it was asked for: weights take 4.50 bits each, 0.50 more than 4." in told
    undone = missing.model_copy(update={"status": "undone"})
    assert "misses" not in conclude([row(index=0), undone, row(index=2)], 2, Budget(), higher_is_better=True)
    assert "misses" not in conclude([row(index=0), row(index=1), missing], 1, Budget(), higher_is_better=True)


def without_interval(metric: float, *, speedup: float = 2, low: float = 1.9) -> LedgerRow:
    """A stage whose metric, like perplexity, is no mean over samples, so that no paired change is known."""
    return row(speedup=speedup, low=low).model_copy(update={"metric": number(metric, ""), "metric_change": None})


@pytest.mark.parametrize(("after", "undone"), [(12.0, True), (10.5, False), (9.0, False)])
def test_a_metric_without_paired_change_is_held_against_the_budget_too(after: float, undone: bool) -> None:
    source, stage = without_interval(10.0), without_interval(after)
    budget = Budget(max_metric_drop=1)
    assert bool(reason_to_undo(stage, source, source, budget, higher_is_better=False)) is undone
    assert bool(misses(stage, source, budget, higher_is_better=False)) is undone


@pytest.mark.parametrize("after", [float("inf"), 10.0])
def test_a_difference_that_is_not_finite_is_unknown(after: float) -> None:
    source, stage = without_interval(float("inf")), without_interval(after)
    assert metric_drop(stage, source, higher_is_better=False) is None


def test_an_unknown_drop_is_not_taken_for_none() -> None:
    source = row(index=0).model_copy(update={"metric": None})
    stage = row(speedup=2, low=1.9).model_copy(update={"metric_change": None})
    assert "not known" in reason_to_undo(stage, source, source, Budget(max_metric_drop=1), higher_is_better=True)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (row(speedup=0.25, low=0.24, size=25), "4.00 times SLOWER than the source, 4.00 times smaller"),
        (row(speedup=1.04, low=0.95), "No measurable difference in speed"),
        (row(speedup=2.0, low=1.9, size=200), "2.00 times the speed of the source, 2.00 times larger"),
        (row(speedup=2.0, low=1.9, size=100.2), "of equal size"),
    ],
)
def test_the_verdict_says_loss_and_noise_as_plainly_as_gain(stage: LedgerRow, words: str) -> None:
    assert words in conclude([row(index=0), stage], 1, Budget(), higher_is_better=True)


@pytest.mark.parametrize(
    ("low", "median", "high", "words"),
    [
        (1.83, 13.73, 16.33, "1.83 to 16.33 times the speed of the source (quartiles; the median is 13.73)"),
        (0.25, 0.4, 0.5, "2.00 to 4.00 times SLOWER than the source (quartiles; the median is 2.50)"),
        (1.9, 2.0, 2.1, "2.00 times the speed of the source."),
    ],
)
def test_the_verdict_gives_the_range_of_a_speed_up_that_scatters(
    low: float, median: float, high: float, words: str
) -> None:
    stage = LedgerRow(index=1, stage="step", speedup=number(median, "x", low).model_copy(update={"high": high}))
    assert conclude([row(index=0), stage], 1, Budget(), higher_is_better=True).startswith(words)
