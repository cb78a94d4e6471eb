"""What the page says: the ledger turned into words and figures, before any markup."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgesmith.budget import metric_drop
from edgesmith.ledger import Ledger, LedgerRow, Measurement, OutputError
from edgesmith.report.format import (
    capitalize,
    format_bytes,
    format_change,
    format_decibels,
    format_factor,
    format_milliseconds,
    format_spread,
    format_value,
)

Tone = Literal["good", "bad", "even"]

TIERS: Mapping[str, str] = {
    "simulated": "Computed on another machine from a model of the device. Good for ranking, never a promise.",
    "reference": "Measured by running the model in ONNX Runtime on a CPU, not on the device itself.",
    "proxy": "Measured on hardware of the same kind, or by its compiler, but not on the device itself.",
    "device": "Measured on the device that the model is for.",
}

STATUSES: Mapping[str, str] = {
    "ok": "kept",
    "skipped": "skipped",
    "undone": "undone",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number in the ledger table."""

    text: str
    detail: str = ""
    """Spread or change, in small print."""
    tier: str = ""
    title: str = ""
    """Conditions and sample count, shown on hover."""


@dataclass(frozen=True, slots=True)
class RowView:
    """One stage in the ledger table."""

    row: LedgerRow
    chosen: bool
    status: str
    tier: str
    """Tier of the numbers of this row, or "mixed"."""
    metric: Cell | None
    latency: Cell | None
    speedup: Cell | None
    size: Cell | None
    memory: Cell | None
    error: Cell | None


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One figure before and after."""

    name: str
    before: str
    after: str
    change: str
    detail: str
    tone: Tone
    tier: str
    shares: tuple[float, float] | None = None
    """Lengths of the bars before and after, 0 to 1, on one scale that starts at zero."""
    interval: tuple[float, float, float, float] | None = None
    """For a metric: low end, value, high end and zero of its change, as positions 0 to 1 on one scale."""


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One demand of the budget against what was reached."""

    demand: str
    limit: str
    reached: str
    distance: str
    met: bool | None
    """None where the figure was not measured."""


def row_views(ledger: Ledger) -> tuple[RowView, ...]:
    """Return the ledger table."""
    return tuple(_row_view(row, ledger) for row in ledger.rows)


def key_figures(ledger: Ledger) -> tuple[KeyFigure, ...]:
    """Return metric, latency, size and peak memory of the source and the chosen stage, as far as measured."""
    source, chosen = ledger.rows[0], ledger.chosen_row
    figures = (
        _metric_figure(ledger, source, chosen),
        _latency_figure(source, chosen),
        _bytes_figure("Size", source.size_bytes, chosen.size_bytes, ("smaller", "larger")),
        _bytes_figure("Peak memory", source.peak_memory_bytes, chosen.peak_memory_bytes, ("less", "more")),
    )
    return tuple(figure for figure in figures if figure is not None)


def budget_lines(ledger: Ledger) -> tuple[BudgetLine, ...]:
    """Return each demand of the budget with the distance to it."""
    row = ledger.chosen_row
    unit = row.metric.unit if row.metric else ""
    drop = metric_drop(row, ledger.rows[0], higher_is_better=ledger.metric_higher_is_better)
    reached: dict[str, float | None] = {
        "max_metric_drop": drop,
        "max_latency_ms": row.latency_ms.value if row.latency_ms else None,
        "max_size_bytes": row.size_bytes.value if row.size_bytes else None,
        "min_speedup": row.speedup.value if row.speedup else None,
    }
    formats: dict[str, tuple[str, Callable[[float], str]]] = {
        "max_metric_drop": (f"{ledger.metric} lost, at most", lambda value: _plain_change(value, unit)),
        "max_latency_ms": ("latency, at most", format_milliseconds),
        "max_size_bytes": ("size, at most", format_bytes),
        "min_speedup": ("speed-up, at least", format_factor),
    }
    lines = []
    for name, limit in ledger.budget.items():
        demand, write = formats.get(name, (name.replace("_", " "), lambda value: format_value(value, "")))
        lines.append(_budget_line(name, demand, limit, reached.get(name), write))
    return tuple(lines)


def skipped_by_reason(ledger: Ledger) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return stage, reason and nodes of everything that was left alone, the most frequent reason first."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in ledger.rows:
        for node, reason in row.skipped.items():
            groups[row.stage, reason].append(node)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple((stage, reason, tuple(nodes)) for (stage, reason), nodes in ordered)


def conditions_of(ledger: Ledger) -> dict[str, str]:
    """Return the conditions that all timed numbers share."""
    timed = [row.latency_ms.conditions for row in ledger.rows if row.latency_ms]
    if not timed:
        return {}
    shared = set.intersection(*(set(conditions.items()) for conditions in timed))
    return {name: str(value) for name, value in timed[0].items() if (name, value) in shared}


def _row_view(row: LedgerRow, ledger: Ledger) -> RowView:
    numbers = (row.metric, row.latency_ms, row.speedup, row.size_bytes, row.peak_memory_bytes)
    tiers = {str(number.tier) for number in numbers if number is not None}
    against_source = next((one for one in row.errors if one.against == ledger.rows[0].stage), None)
    error = against_source or (row.errors[0] if row.errors else None)
    return RowView(
        row=row,
        chosen=row.index == ledger.chosen,
        status=STATUSES[row.status],
        tier=tiers.pop() if len(tiers) == 1 else "mixed" if tiers else "",
        metric=_metric_cell(row),
        latency=_cell(row.latency_ms, format_milliseconds),
        speedup=_cell(row.speedup, format_factor),
        size=_cell(row.size_bytes, format_bytes),
        memory=_cell(row.peak_memory_bytes, format_bytes),
        error=_error_cell(error, show_against=error is not against_source) if error else None,
    )


def _cell(number: Measurement | None, write: Callable[[float], str], detail: str | None = None) -> Cell | None:
    if number is None:
        return None
    facts = [f"{number.samples} samples" if number.samples > 1 else "one measurement", f"tier {number.tier}"]
    facts += [f"{name} {value}" for name, value in number.conditions.items()]
    spread = format_spread(number) if detail is None else detail
    return Cell(text=write(number.value), detail=spread, tier=str(number.tier), title=", ".join(facts))


def _error_cell(error: OutputError, *, show_against: bool) -> Cell:
    return Cell(
        text=format_decibels(error.sqnr_db),
        detail=f"against {error.against}" if show_against else "",
        title=f"against {error.against}: cosine {error.cosine:.6f}, largest difference {error.max_abs:.3g}",
    )


def _metric_cell(row: LedgerRow) -> Cell | None:
    number, change = row.metric, row.metric_change
    if number is None:
        return None
    detail = format_change(change.value, number.unit) if change else None
    return _cell(number, lambda value: format_value(value, number.unit), detail)


def _metric_figure(ledger: Ledger, source: LedgerRow, chosen: LedgerRow) -> KeyFigure | None:
    before, after = source.metric, chosen.metric
    if after is None:
        return None
    change, interval = (after.value - before.value if before else 0.0), chosen.metric_change
    detail, tone = "", _tone(change if ledger.metric_higher_is_better else -change)
    if interval and interval.low is not None and interval.high is not None:
        change = interval.value
        low, high = (format_change(end, after.unit).removesuffix(" points") for end in (interval.low, interval.high))
        detail = f"95 % interval {low} to {high}, {interval.samples} samples"
        if interval.low <= 0 <= interval.high:
            detail, tone = f"within the noise; {detail}", "even"
    words = format_change(change, after.unit) if change and math.isfinite(change) else "no change"
    same = before is None or source is chosen
    return KeyFigure(
        name=capitalize(ledger.metric or "metric"),
        before=format_value(before.value, before.unit) if before and not same else "",
        after=format_value(after.value, after.unit),
        change="" if same else words,
        detail=detail or (f"{after.samples} samples" if after.samples > 1 else ""),
        tone="even" if same else tone,
        tier=str(after.tier),
        interval=None if same else _positions(interval),
    )


def _latency_figure(source: LedgerRow, chosen: LedgerRow) -> KeyFigure | None:
    before, after = source.latency_ms, chosen.latency_ms
    if after is None:
        return None
    same = before is None or source is chosen
    ratio = chosen.speedup.value if chosen.speedup else before.value / after.value if before and after.value else 1.0
    change = _factor(ratio, "faster", "slower")
    spread = format_spread(after)
    return KeyFigure(
        name="Latency",
        before=format_milliseconds(before.value) if before and not same else "",
        after=format_milliseconds(after.value),
        change="" if same else change,
        detail=f"quartiles {spread}, {after.samples} runs" if spread else "",
        tone="even" if same else _tone(ratio - 1),
        tier=str(after.tier),
        shares=_shares(before.value, after.value) if before and not same else None,
    )


def _bytes_figure(
    name: str, before: Measurement | None, after: Measurement | None, words: tuple[str, str]
) -> KeyFigure | None:
    if after is None:
        return None
    same = before is None or before == after
    ratio = before.value / after.value if before and after.value else 1.0
    change = _factor(ratio, *words)
    baseline = after.conditions.get("baseline_bytes")
    return KeyFigure(
        name=name,
        before=format_bytes(before.value) if before and not same else "",
        after=format_bytes(after.value),
        change="" if same else change,
        detail=f"of which {format_bytes(float(baseline))} is the empty runtime" if baseline else "",
        tone="even" if same else _tone(ratio - 1),
        tier=str(after.tier),
        shares=_shares(before.value, after.value) if before and not same else None,
    )


def _factor(ratio: float, above: str, below: str) -> str:
    """Return a ratio in words; one that is not positive and finite says nothing."""
    if ratio <= 0 or not math.isfinite(ratio):
        return ""
    return f"{format_factor(ratio)} {above}" if ratio >= 1 else f"{format_factor(1 / ratio)} {below}"


def _tone(gain: float) -> Tone:
    return "good" if gain > 0 else "bad" if gain < 0 else "even"


def _shares(before: float, after: float) -> tuple[float, float] | None:
    top = max(before, after)
    if not math.isfinite(top) or top <= 0 or min(before, after) < 0:
        return None
    return before / top, after / top


def _positions(change: Measurement | None) -> tuple[float, float, float, float] | None:
    if change is None or change.low is None or change.high is None:
        return None
    reach = max(abs(change.low), abs(change.high), abs(change.value))
    if not math.isfinite(reach) or reach == 0:
        return None
    low, value, high = (0.5 + end / reach / 2 for end in (change.low, change.value, change.high))
    return low, value, high, 0.5


def _plain_change(value: float, unit: str) -> str:
    # A gain is a negative loss; adding zero keeps "-0.00" off the page.
    return f"{round(value, 6) + 0.0:.2f} points" if unit in ("%", "points") else format_value(value, unit)


def _budget_line(
    name: str, demand: str, limit: float, reached: float | None, write: Callable[[float], str]
) -> BudgetLine:
    if reached is None:
        return BudgetLine(demand, write(limit), "not measured", "", None)
    room = reached - limit if name.startswith("min_") else limit - reached
    met = room >= 0
    distance = f"{write(abs(room))} {'to spare' if met else 'missing' if name.startswith('min_') else 'too much'}"
    return BudgetLine(demand, write(limit), write(reached), distance, met)
