"""Interleaved timing: A B A B instead of A A B B, so that drift and foreign load do not favour one stage."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .machine import waited_seconds

Clock = Callable[[], float]
Plan = Any
"""How long and how often to time: what has the fields of `edgesmith.measure.runner.LatencyPlan`."""
Run = Callable[[], object]
"""One inference of one stage."""
Visit = Callable[[int, bool], "list[float]"]
"""Times so many runs of one stage in milliseconds, after an untimed one where the second argument says so."""

_STABLE_WINDOW = 3
_STABLE_TOLERANCE = 0.05
_NOTCH = 1.57


@dataclass(frozen=True)
class Timing:
    """What was timed in turns, in milliseconds."""

    runs: Mapping[str, Sequence[float]]
    rounds: Mapping[str, Sequence[float]]
    waiting_share: float


def interleave(
    stages: Mapping[str, Run],
    plan: Plan,
    *,
    clock: Clock = time.perf_counter,
    waiting_clock: Clock = waited_seconds,
) -> Timing:
    """Warm all `stages` up and time them in turns."""
    seconds_per_sweep = sum(warm_up(run, plan, clock) for run in stages.values())
    visits = {label: partial(visit, run, clock=clock) for label, run in stages.items()}
    return take_turns(visits, plan, seconds_per_sweep, clock=clock, waiting_clock=waiting_clock)


def take_turns(
    visits: Mapping[str, Visit],
    plan: Plan,
    seconds_per_sweep: float,
    *,
    clock: Clock = time.perf_counter,
    waiting_clock: Clock = waited_seconds,
) -> Timing:
    """Time stages in rounds; each round visits every stage once, in a shuffled order.

    A visit is one untimed run, since the stage before has left its own weights in the caches, and then
    `plan.runs_per_visit` timed ones. Stages so slow that the fewest rounds would not fit into the time budget
    get one timed run per visit. Rounds end when the ratios are precise, the time is used up, or `max_rounds` are
    done.
    """
    slow = seconds_per_sweep * plan.min_rounds * (plan.runs_per_visit + 1) > plan.max_seconds
    timed_runs = 1 if slow else plan.runs_per_visit
    order = list(visits)
    shuffler = random.Random(plan.seed)
    runs: dict[str, list[float]] = {label: [] for label in visits}
    rounds: dict[str, list[float]] = {label: [] for label in visits}
    started, waited = clock(), waiting_clock()
    for done in range(1, plan.max_rounds + 1):
        shuffler.shuffle(order)
        for label in order:
            times = visits[label](timed_runs, not slow)
            runs[label] += times
            rounds[label].append(statistics.median(times))
        if done >= plan.min_rounds and (clock() - started >= plan.max_seconds or _precise(rounds, plan.precision)):
            break
    elapsed = clock() - started
    share = (waiting_clock() - waited) / elapsed if elapsed > 0 else 0.0
    return Timing(runs, rounds, share)


def visit(run: Run, timed_runs: int, refill: bool, clock: Clock = time.perf_counter) -> list[float]:
    """Return the times of single runs in milliseconds."""
    if refill:
        run()
    times = []
    for _ in range(timed_runs):
        started = clock()
        run()
        times.append((clock() - started) * 1e3)
    return times


def warm_up(run: Run, plan: Plan, clock: Clock = time.perf_counter) -> float:
    """Run until two neighbouring windows have the same median, and return the last median in seconds."""
    times: list[float] = []
    started = clock()
    while len(times) < plan.warmup_runs:
        before = clock()
        run()
        times.append(clock() - before)
        if len(times) >= 2 * _STABLE_WINDOW:
            earlier = statistics.median(times[-2 * _STABLE_WINDOW : -_STABLE_WINDOW])
            latest = statistics.median(times[-_STABLE_WINDOW:])
            if abs(latest - earlier) <= _STABLE_TOLERANCE * earlier:
                break
        if len(times) >= 2 and clock() - started > plan.max_seconds / 4:
            break
    return statistics.median(times[-_STABLE_WINDOW:])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile of a non-empty sequence."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _precise(rounds: Mapping[str, Sequence[float]], precision: float) -> bool:
    """Return whether the half-width of each median ratio to the first stage is within `precision` of the median.

    The half-width is the notch of a box plot, 1.57 IQR / sqrt(n): an approximate 95 % interval of a median
    (McGill, Tukey and Larsen, Variations of Box Plots, The American Statistician 32, 1978).
    """
    first, *others = rounds.values()
    series = [[a / b for a, b in zip(first, other, strict=True)] for other in others] or [list(first)]
    for values in series:
        low, median, high = quartiles(values)
        if _NOTCH * (high - low) / len(values) ** 0.5 > precision * median:
            return False
    return True
