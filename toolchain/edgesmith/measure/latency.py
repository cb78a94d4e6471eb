"""Interleaved timing: A B A B instead of A A B B, so that drift and foreign load do not favour one stage."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesmith.errors import MeasurementError
from edgesmith.measure.runner import LatencyPlan, quartiles

Run = Callable[[], object]
"""One inference of one stage."""

_STABLE_WINDOW = 3
_STABLE_TOLERANCE = 0.05
_NOTCH = 1.57
_SCHEDULER = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True, slots=True)
class Timing:
    """What `interleave` measured, in milliseconds."""

    runs: Mapping[str, Sequence[float]]
    rounds: Mapping[str, Sequence[float]]
    waiting_share: float


def interleave(
    stages: Mapping[str, Run],
    plan: LatencyPlan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    waiting_clock: Callable[[], float] | None = None,
) -> Timing:
    """Time all `stages` in rounds; each round visits every stage once, in a shuffled order.

    A visit is one untimed run, since the stage before has left its own weights in the caches, and then
    `plan.runs_per_visit` timed ones. Stages so slow that the fewest rounds would not fit into the time budget
    get one timed run per visit. Rounds end when the ratios are precise, the time is used up, or `max_rounds` are
    done.
    """
    if not stages:
        raise MeasurementError(
            "no stage to time",
            expected="at least one model file",
            why="a comparison needs something to run",
            fix="pass the source or an artifact",
        )
    seconds_per_sweep = sum(_warm_up(run, plan, clock) for run in stages.values())
    slow = seconds_per_sweep * plan.min_rounds * (plan.runs_per_visit + 1) > plan.max_seconds
    timed_runs = 1 if slow else plan.runs_per_visit
    order = list(stages)
    shuffler = random.Random(plan.seed)
    runs: dict[str, list[float]] = {label: [] for label in stages}
    rounds: dict[str, list[float]] = {label: [] for label in stages}
    waiting_clock = waiting_clock or seconds_waited
    started, waited = clock(), waiting_clock()
    for done in range(1, plan.max_rounds + 1):
        shuffler.shuffle(order)
        for label in order:
            visit = _visit(stages[label], timed_runs, refill=not slow, clock=clock)
            runs[label] += visit
            rounds[label].append(quartiles(visit)[1])
        if done >= plan.min_rounds and (clock() - started >= plan.max_seconds or _precise(rounds, plan.precision)):
            break
    elapsed = clock() - started
    share = (waiting_clock() - waited) / elapsed if elapsed > 0 else 0.0
    return Timing(runs=runs, rounds=rounds, waiting_share=share)


def seconds_waited() -> float:
    """Return how long this thread has been ready to run while no processor was free; 0 where the system hides it."""
    try:
        return int(_SCHEDULER.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _visit(run: Run, timed_runs: int, *, refill: bool, clock: Callable[[], float]) -> list[float]:
    if refill:
        run()
    times = []
    for _ in range(timed_runs):
        started = clock()
        run()
        times.append((clock() - started) * 1e3)
    return times


def _warm_up(run: Run, plan: LatencyPlan, clock: Callable[[], float]) -> float:
    """Run until two neighbouring windows have the same median, and return the last median in seconds."""
    times: list[float] = []
    started = clock()
    while len(times) < plan.warmup_runs:
        before = clock()
        run()
        times.append(clock() - before)
        if len(times) >= 2 * _STABLE_WINDOW:
            earlier = quartiles(times[-2 * _STABLE_WINDOW : -_STABLE_WINDOW])[1]
            latest = quartiles(times[-_STABLE_WINDOW:])[1]
            if abs(latest - earlier) <= _STABLE_TOLERANCE * earlier:
                break
        if len(times) >= 2 and clock() - started > plan.max_seconds / 4:
            break
    return quartiles(times[-_STABLE_WINDOW:])[1]


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
