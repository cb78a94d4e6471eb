"""Budgets: what a stage misses, whether a step pays, and the verdict on a whole run. Pure functions of the ledger."""

import math
from collections.abc import Sequence

from edgesmith.ledger import LedgerRow, Measurement
from edgesmith.recipe import Budget

TIMES_FROM = "Times were taken on "
"""Begins the remark on times that an earlier run took."""
_EQUAL_SIZE = 0.01
"""Sizes that differ by less than this share count as equal: a header, a name."""
_WIDE = 1.25
"""Quartiles of a speed-up that are this many times apart are told, since the median alone would promise too much."""
_LEAST_GAIN = 0.001
"""Share of a metric without an interval that a gain must exceed; sums in another order move it by far less."""
_TIME_IT = "To know, compile with `--on DEVICE`, which times each step there."


def metric_drop(row: LedgerRow, source: LedgerRow, *, higher_is_better: bool) -> float | None:
    """Return how much metric the stage lost against the source, in the metric's unit; negative is a gain.

    None where the source has no metric of its own, because the metric compares with the source, or where the
    difference is not finite.
    """
    if row.metric_change is not None:
        change = row.metric_change.value
    elif row.metric is not None and source.metric is not None:
        change = row.metric.value - source.metric.value
    else:
        return None
    if not math.isfinite(change):
        return None
    return -change if higher_is_better else change


def misses(row: LedgerRow, source: LedgerRow, budget: Budget, *, higher_is_better: bool) -> tuple[str, ...]:
    """Return one sentence for each limit that the stage misses, with the distance to it. Empty means: within budget.

    A limit on something that was not measured counts as missed, because nothing shows that it holds.
    """
    drop = metric_drop(row, source, higher_is_better=higher_is_better)
    checks = (
        ("metric drop", drop, budget.max_metric_drop, _unit_of_change(row.metric.unit if row.metric else "")),
        ("latency", _value(row.latency_ms), budget.max_latency_ms, "ms"),
        ("size", _value(row.size_bytes), budget.max_size_bytes, "bytes"),
    )
    found = []
    for name, value, limit, unit in checks:
        if limit is None:
            continue
        if value is None:
            found.append(f"{name} was not measured (limit {_plain(limit, unit)})")
        elif value > limit:
            distance = f"{_plain(value - limit, unit)} above the limit of {_plain(limit, unit)}"
            found.append(f"{name} is {_plain(value, unit)}, {distance}")
    speedup = _value(row.speedup)
    if budget.min_speedup is not None and speedup is None:
        found.append(f"speed-up was not measured (asked for {budget.min_speedup:g}x)")
    elif budget.min_speedup is not None and speedup is not None and speedup < budget.min_speedup:
        # Rounded down, since 1.999 is not the 2 that was asked for.
        found.append(f"speed-up is {math.floor(100 * speedup) / 100:.2f}x, asked for {budget.min_speedup:g}x")
    return tuple(found)


def reason_to_undo(
    row: LedgerRow, before: LedgerRow, source: LedgerRow, budget: Budget, *, higher_is_better: bool
) -> str:
    """Return why a step does not pay, or an empty string if it does.

    A step pays when it keeps the metric within the budget and improves what the budget names. Where the budget names
    neither time nor size, it pays when it is faster, or smaller without being slower. It pays under every budget when
    it improves the metric (`improves_metric`) and is neither slower nor larger, as what makes up for a loss should. A
    speed-up counts when its lower quartile is above 1, a slow-down when its upper quartile is below. Where nothing was
    timed, nothing shows that a step is slower, and `untimed_gain` says so.
    """
    drop = metric_drop(row, source, higher_is_better=higher_is_better)
    unit = _unit_of_change(row.metric.unit if row.metric else "")
    if budget.max_metric_drop is not None and drop is None:
        return "what it loses is not known, and the budget limits it"
    if budget.max_metric_drop is not None and drop is not None and drop > budget.max_metric_drop:
        return f"it loses {drop:.3g} {unit} against the source, and the budget allows {budget.max_metric_drop:g}"
    faster = row.speedup_step is not None and _low(row.speedup_step) > 1
    slower = row.speedup_step is not None and _high(row.speedup_step) < 1
    smaller = _is_smaller(row, before)
    better = improves_metric(row, before, higher_is_better=higher_is_better)
    wants_time = budget.max_latency_ms is not None or budget.min_speedup is not None
    wants_size = budget.max_size_bytes is not None
    if (faster and (wants_time or not wants_size)) or (smaller and (wants_size or not (wants_time or slower))):
        return ""
    if better and not slower and not _is_larger(row, before):
        return ""
    asked = " and ".join(name for name, wanted in (("time", wants_time), ("size", wants_size)) if wanted)
    change = f"{'smaller' if smaller else 'not smaller'}, metric {'better' if better else 'not better'}"
    what = asked or "time, nor size at equal time"
    if row.speedup_step is None:
        hint = f" {_TIME_IT}" if wants_time else ""
        return f"nothing shows that it improves {what} (its speed was not measured, {change}).{hint}"
    speed = f"{row.speedup_step.value:.2f}x the speed of the step before it"
    return f"lowered to the target, it does not improve {what} ({speed}, {change})"


def improves_metric(row: LedgerRow, before: LedgerRow, *, higher_is_better: bool) -> bool:
    """Return whether the evaluation data shows a better metric than that of the stage before.

    Where the paired change between both is known, its whole 95 % interval must be on the better side. Metrics such as
    perplexity and SQNR have none; there any gain counts that is above a thousandth of the value before.
    """
    step = row.metric_step
    if step is not None and step.low is not None and step.high is not None:
        return step.low > 0 if higher_is_better else step.high < 0
    if row.metric is None or before.metric is None:
        return False
    gain = row.metric.value - before.metric.value
    return (gain if higher_is_better else -gain) > _LEAST_GAIN * abs(before.metric.value)


def untimed_gain(row: LedgerRow, before: LedgerRow) -> str:
    """Return what to know of a step that was kept though nobody timed it; empty where it was timed."""
    if row.speedup_step is not None:
        return ""
    gain = "its metric is better"
    if before.size_bytes is not None and row.size_bytes is not None and _is_smaller(row, before):
        sizes = f"{_plain(before.size_bytes.value, 'bytes')} to {_plain(row.size_bytes.value, 'bytes')}"
        gain = f"it is smaller ({sizes})"
    return (
        f"Kept because {gain}, and not because it is faster: its latency was not measured, and it may be slower. "
        f"{_TIME_IT}"
    )


def conclude(rows: Sequence[LedgerRow], chosen: int, budget: Budget, *, higher_is_better: bool) -> str:
    """Return the verdict on a run: what the chosen stage gained and cost, and the distance to the budget."""
    source, row = rows[0], rows[chosen]
    parts = []
    if row.speedup is not None:
        parts.append(_speed(row.speedup))
    if row.size_bytes is not None and source.size_bytes is not None and row.size_bytes.value:
        parts.append(_size(source.size_bytes.value / row.size_bytes.value))
    change = row.metric_change
    if change is not None:
        unit = _unit_of_change(change.unit)
        interval = f" (95 % interval {change.low:+.2f} to {change.high:+.2f})" if change.low is not None else ""
        parts.append(f"with a change of {change.value:+.2f} {unit}{interval}")
    sentence = ", ".join(parts) or "Nothing was measured"
    sentence = sentence[0].upper() + sentence[1:] + "."
    if row.size_bytes is not None and row.latency_ms is None:
        here = "the device is not here; compile with `--on DEVICE`, or `edgesmith validate` it there."
        sentence += f" Not timed: {row.untimed or here}"
    for each in rows[: chosen + 1]:
        if each.missed and each.status == "ok":
            sentence += f" {each.stage} misses what it was asked for: {'; '.join(each.missed)}."
    if budget == Budget():
        return sentence
    missed = misses(row, source, budget, higher_is_better=higher_is_better)
    return f"{sentence} {'Budget missed: ' + '; '.join(missed) if missed else 'Within budget'}."


def _unit_of_change(unit: str) -> str:
    """Return the unit that a difference of two values has: a share in percent changes by points."""
    return "points" if unit == "%" else unit


def _value(measurement: Measurement | None) -> float | None:
    return measurement.value if measurement is not None else None


def _plain(value: float, unit: str) -> str:
    if unit == "bytes":
        return (
            f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB" if value >= 1e3 else f"{value:g} bytes"
        )
    return f"{value:.4g} {unit}".strip()


def _speed(speedup: Measurement) -> str:
    """Return a speed-up in words, as a range where the quartiles are wide; on both sides of 1, none was measured."""
    low, high = _low(speedup), _high(speedup)
    if low <= 1 <= high:
        return f"no measurable difference in speed ({speedup.value:.2f} times that of the source)"
    slower = speedup.value < 1
    middle, ends = (1 / speedup.value, (1 / high, 1 / low)) if slower else (speedup.value, (low, high))
    words = "times SLOWER than the source" if slower else "times the speed of the source"
    if high < _WIDE * low:
        return f"{middle:.2f} {words}"
    return f"{ends[0]:.2f} to {ends[1]:.2f} {words} (quartiles; the median is {middle:.2f})"


def _is_smaller(row: LedgerRow, before: LedgerRow) -> bool:
    sizes = row.size_bytes, before.size_bytes
    return sizes[0] is not None and sizes[1] is not None and sizes[0].value < sizes[1].value


def _is_larger(row: LedgerRow, before: LedgerRow) -> bool:
    sizes = row.size_bytes, before.size_bytes
    return sizes[0] is not None and sizes[1] is not None and sizes[0].value > (1 + _EQUAL_SIZE) * sizes[1].value


def _size(ratio: float) -> str:
    if abs(ratio - 1) < _EQUAL_SIZE:
        return "of equal size"
    return f"{ratio:.2f} times smaller" if ratio > 1 else f"{1 / ratio:.2f} times larger"


def _high(measurement: Measurement) -> float:
    return measurement.high if measurement.high is not None else measurement.value


def _low(measurement: Measurement) -> float:
    return measurement.low if measurement.low is not None else measurement.value
