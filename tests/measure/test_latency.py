"""Interleaved timing, driven by a clock that the test owns."""

import pytest

from edgesmith.device.worker.machine import waited_seconds
from edgesmith.device.worker.turns import interleave, quartiles
from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier
from edgesmith.measure.local import LocalRunner
from edgesmith.measure.runner import Conditions, LatencyComparison, LatencyPlan

CONDITIONS = Conditions(
    runtime="fake 1", provider="fake", optimization="all", threads=1, batch=1, shapes="x 1", processor="fake"
)


class Machine:
    """A machine whose stages take a known time, which drifts as it gets hot."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now, self.drift, self.calls = 0.0, drift, []

    def stage(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * (1 + self.drift * self.now)

        return run

    def compare(self, plan: LatencyPlan, **seconds: float) -> LatencyComparison:
        stages = {name: self.stage(name, value) for name, value in seconds.items()}
        timing = interleave(stages, plan, clock=lambda: self.now, waiting_clock=lambda: 0.0)
        return LatencyComparison(timing.runs, timing.rounds, Tier.REFERENCE, CONDITIONS, timing.waiting_share)


def test_times_and_ratio_are_those_of_the_stages():
    comparison = Machine().compare(LatencyPlan(), source=0.010, small=0.004)
    assert comparison.latency_ms("source").value == pytest.approx(10)
    assert comparison.latency_ms("small").value == pytest.approx(4)
    assert comparison.speedup("small", "source").value == pytest.approx(2.5)
    assert comparison.speedup("source", "small").value == pytest.approx(0.4)
    assert comparison.latency_ms("small").conditions["threads"] == 1


def test_ratio_is_fair_on_a_machine_that_slows_down_under_the_measurement():
    plan = LatencyPlan(min_rounds=30, max_rounds=30)
    comparison = Machine(drift=0.05).compare(plan, first=0.010, twin=0.010)
    times = comparison.runs["first"]
    assert max(times) > 1.1 * min(times)
    assert comparison.speedup("twin", "first").value == pytest.approx(1, abs=0.01)


def test_every_round_visits_every_stage_in_shuffled_but_repeatable_order():
    orders = []
    for _ in range(2):
        machine = Machine()
        plan = LatencyPlan(min_rounds=12, max_rounds=12, warmup_runs=1, runs_per_visit=1, seed=3)
        comparison = machine.compare(plan, a=0.001, b=0.001, c=0.001)
        visits = machine.calls[3::2]
        rounds = [tuple(visits[i : i + 3]) for i in range(0, len(visits), 3)]
        assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
        assert len(set(rounds)) > 1
        assert all(len(one) == 12 for one in comparison.rounds.values())
        orders.append(rounds)
    assert orders[0] == orders[1]


def test_stops_early_when_ratios_are_precise():
    comparison = Machine().compare(LatencyPlan(min_rounds=5, max_rounds=1000, max_seconds=1e9), a=0.01, b=0.02)
    assert len(comparison.rounds["a"]) == 5


def test_time_budget_ends_a_noisy_measurement():
    machine = Machine()
    noisy = iter(range(10**6))

    def run() -> None:
        machine.now += 0.01 * (1 + next(noisy) % 7)

    plan = LatencyPlan(min_rounds=3, max_rounds=10**6, max_seconds=5)
    timing = interleave({"a": run, "b": machine.stage("b", 0.01)}, plan, clock=lambda: machine.now)
    assert 3 < len(timing.rounds["a"]) < 60


def test_slow_stages_get_one_run_per_visit_but_all_rounds():
    machine = Machine()
    comparison = machine.compare(LatencyPlan(min_rounds=5, max_seconds=10), slow=3.0)
    assert len(comparison.runs["slow"]) == 5
    assert len(machine.calls) <= 5 + 4


def test_slow_first_runs_are_not_timed():
    machine = Machine()
    pending = [1.0, 0.5, 0.1]

    def run() -> None:
        machine.now += pending.pop(0) if pending else 0.01

    timing = interleave({"a": run}, LatencyPlan(), clock=lambda: machine.now)
    assert max(timing.runs["a"]) == pytest.approx(10)


def test_busy_machine_is_reported():
    machine = Machine()
    timing = interleave(
        {"a": machine.stage("a", 0.01)},
        LatencyPlan(),
        clock=lambda: machine.now,
        waiting_clock=lambda: machine.now / 2,
    )
    busy = LatencyComparison(timing.runs, timing.rounds, Tier.REFERENCE, CONDITIONS, timing.waiting_share)
    assert timing.waiting_share == pytest.approx(0.5)
    assert "50%" in busy.remarks[0]
    assert Machine().compare(LatencyPlan(), a=0.01).remarks == ()


def test_nothing_to_time_is_an_error():
    with pytest.raises(MeasurementError, match="no stage"):
        LocalRunner().latency({}, {})


@pytest.mark.parametrize("wrong", [{"min_rounds": 0}, {"max_seconds": 0}, {"max_rounds": 2}, {"precision": -1}])
def test_impossible_plans_are_refused(wrong: dict):
    with pytest.raises(MeasurementError, match="cannot be followed"):
        LatencyPlan(**wrong)


def test_quartiles_of_one_and_of_several():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_waiting_time_of_this_thread_grows_only():
    before = waited_seconds()
    sum(range(100_000))
    assert 0 <= before <= waited_seconds()
