"""The ledger as a table for the terminal: legible at 80 columns, without colour, and when piped to a file."""

import re
from typing import TYPE_CHECKING

from edgesmith.budget import TIMES_FROM
from edgesmith.ledger import Ledger, LedgerRow, Measurement
from edgesmith.measure.runner import BUSY
from edgesmith.report.format import (
    NOT_MEASURED,
    format_bytes,
    format_change,
    format_factor,
    format_number,
    format_spread,
    format_value,
    shorten,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from edgesmith.measure.comparable import ComparedFigure
    from edgesmith.measure.compare import ArtifactComparison

_FINDING = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)+): ")
"""How a remark begins that is a finding: with the name of its rule."""
_STAGE_LENGTH = 30
_TIER_LETTERS = {"simulated": "S", "reference": "R", "proxy": "P", "device": "D"}


def ledger_table(ledger: Ledger) -> "RenderableType":
    """Return the ledger for a rich console: a table, what the letters mean, and the verdict."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    units = {row.metric.unit for row in ledger.rows if row.metric}
    unit = units.pop() if len(units) == 1 else ""
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("", width=1)
    table.add_column("stage", overflow="fold", min_width=14)
    rows = [_cells(row, ledger, unit) for row in ledger.rows]
    # Units stand below: at 80 columns every character counts, and a quartile that is cut would be another number.
    word = max((len(word) for cells in rows for word in cells[3].split()), default=0)
    table.add_column(Text(f"{ledger.metric or 'metric'}\n{unit}".strip()), justify="right")
    table.add_column("latency\nms", justify="right", min_width=word)
    for title in ("speed", "size", "peak"):
        table.add_column(title, justify="right", no_wrap=True)
    # Where the metric is SQNR already, the column would only confuse. With several outputs it is another number: the
    # metric takes them together, the column has the worst of them, and of the first samples.
    has_other_metric = ledger.metric != "sqnr"
    if has_other_metric:
        table.add_column("SQNR\ndB", justify="right")
    table.add_column("tier", justify="center")
    for row, (*cells, decibels, tiers) in zip(ledger.rows, rows, strict=True):
        shown = (*cells, decibels, tiers) if has_other_metric else (*cells, tiers)
        table.add_row(*map(Text, shown), style=_style(row, ledger))
    legend = [_meaning(ledger, name) for name in _TIER_LETTERS if _has_tier(ledger, name)]
    times = "latency as median [quartiles], " if any(row.latency_ms for row in ledger.rows) else ""
    notes = f"> chosen, {times}tier: {', '.join(legend) or 'nothing measured'}"
    return Group(
        table,
        Text(notes, style="dim"),
        *_notes_on_times(ledger),
        *_reasons(ledger),
        *_findings(ledger),
        Text(ledger.verdict, style="bold"),
    )


def comparison_table(comparison: "ArtifactComparison") -> "RenderableType":
    """Return two artifacts side by side for a rich console, with the reason where numbers are not comparable."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("figure")
    for title in ("first", "second", "change"):
        table.add_column(title, justify="right")
    notes = []
    for figure in comparison.figures:
        cells = (figure.name, _number(figure.before), _number(figure.after), _change(figure))
        table.add_row(*map(Text, cells))
        said = [f"not compared, {figure.refusal}" if figure.refusal else figure.note, _spreads(figure)]
        if any(said):
            notes.append(Text(f"{figure.name}: {'; '.join(filter(None, said))}"))
    names = Text(f"first   {comparison.before}\nsecond  {comparison.after}", style="dim")
    parts: list[RenderableType] = [names, table, *notes]
    if comparison.differences:
        parts.append(_difference_table(comparison))
    parts += [Text(warning, style="bold red") for warning in comparison.warnings]
    return Group(*parts)


def _difference_table(comparison: "ArtifactComparison") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    for title in ("differs", "first", "second"):
        table.add_column(title, overflow="fold")
    for name, (first, second) in comparison.differences.items():
        table.add_row(Text(name), Text(first), Text(second))
    return table


def _cells(row: LedgerRow, ledger: Ledger, unit: str) -> tuple[str, ...]:
    status = "" if row.status == "ok" else f" ({row.status})"
    metric = NOT_MEASURED
    if row.metric:
        metric = format_value(row.metric.value, row.metric.unit).removesuffix(f" {unit}" if unit else "")
    against_source = [error for error in row.errors if error.against == ledger.rows[0].stage] or list(row.errors)
    return (
        ">" if row.index == ledger.chosen else "",
        f"{shorten(row.stage, _STAGE_LENGTH)}{status}",
        metric,
        _latency(row.latency_ms),
        format_factor(row.speedup.value) if row.speedup else NOT_MEASURED,
        format_bytes(row.size_bytes.value) if row.size_bytes else NOT_MEASURED,
        format_bytes(row.peak_memory_bytes.value) if row.peak_memory_bytes else NOT_MEASURED,
        _decibels(against_source[0].sqnr_db) if against_source else NOT_MEASURED,
        _tiers(row),
    )


def _latency(number: Measurement | None) -> str:
    if number is None:
        return NOT_MEASURED
    if number.low is None or number.high is None:
        return format_number(number.value)
    return f"{format_number(number.value)} [{format_number(number.low)}..{format_number(number.high)}]"


def _decibels(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.1f}"


def _tiers(row: LedgerRow) -> str:
    numbers = (row.metric, row.latency_ms, row.speedup, row.size_bytes, row.peak_memory_bytes)
    tiers = {str(number.tier) for number in numbers if number is not None}
    return "".join(letter for name, letter in _TIER_LETTERS.items() if name in tiers) or NOT_MEASURED


def _has_tier(ledger: Ledger, tier: str) -> bool:
    return any(_TIER_LETTERS[tier] in _tiers(row) for row in ledger.rows)


def _meaning(ledger: Ledger, tier: str) -> str:
    """Return what a tier's letter stands for, and of which figures where a device was timed."""
    timed = ledger.device and any(row.latency_ms is not None and row.latency_ms.tier == tier for row in ledger.rows)
    return f"{_TIER_LETTERS[tier]} {tier}{' (latency)' if timed else ''}"


def _notes_on_times(ledger: Ledger) -> "list[RenderableType]":
    """Return what was noted of the source where a device was timed, or else what must be known of any times."""
    from rich.text import Text

    remarks = ledger.rows[0].remarks
    return [Text(remark) for remark in remarks if ledger.device or remark.startswith((BUSY, TIMES_FROM))]


def _style(row: LedgerRow, ledger: Ledger) -> str:
    return "bold green" if row.index == ledger.chosen else "dim" if row.status != "ok" else ""


def _reasons(ledger: Ledger) -> "list[RenderableType]":
    from rich.text import Text

    return [Text(f"{shorten(row.stage, _STAGE_LENGTH)}: {row.reason}") for row in ledger.rows if row.reason]


def _findings(ledger: Ledger) -> "list[RenderableType]":
    """Return the first thing that each rule of the target found in the artifact; the report has the rest."""
    from rich.text import Text

    first: dict[str, str] = {}
    for remark in ledger.chosen_row.remarks:
        found = _FINDING.match(remark)
        if found:
            first.setdefault(found[1], remark)
    return [Text(remark) for remark in first.values()]


def _number(number: Measurement | None) -> str:
    if number is None:
        return NOT_MEASURED
    return format_value(number.value, number.unit)


def _spreads(figure: "ComparedFigure") -> str:
    """Return the quartiles of times on both sides."""
    numbers = [number for number in (figure.before, figure.after) if number is not None and number.unit == "ms"]
    spreads = [f"[{spread}]" for number in numbers if (spread := format_spread(number))]
    return f"quartiles {' and '.join(spreads)} ms" if spreads else ""


def _change(figure: "ComparedFigure") -> str:
    if figure.ratio is None or figure.difference is None or figure.before is None:
        return NOT_MEASURED
    if figure.before.unit in ("ms", "mJ", "bytes"):
        return format_factor(figure.ratio)
    return format_change(figure.difference, figure.before.unit)
