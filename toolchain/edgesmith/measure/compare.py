"""Two artifacts side by side. Numbers that were taken under different conditions are not compared, and it says why."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgesmith.ledger import Ledger, LedgerRow, Measurement, load_ledger

_LATENCY_NOTE = "measured at different times; only stages of one compile are interleaved"


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of two artifacts."""

    name: str
    before: Measurement | None
    after: Measurement | None
    refusal: str = ""
    """Why the two must not be compared; empty when they may."""
    note: str = ""
    """What to know when reading the comparison."""

    @property
    def ratio(self) -> float | None:
        """Second divided by first, or None when they must not be compared."""
        if self.refusal or self.before is None or self.after is None or self.before.value == 0:
            return None
        return self.after.value / self.before.value

    @property
    def difference(self) -> float | None:
        """Second minus first, or None when they must not be compared."""
        if self.refusal or self.before is None or self.after is None:
            return None
        return self.after.value - self.before.value


@dataclass(frozen=True, slots=True)
class ArtifactComparison:
    """The chosen stages of two artifacts."""

    before: str
    after: str
    figures: tuple[ComparedFigure, ...]
    differences: Mapping[str, tuple[str, str]]
    """What differs between the two compiles besides the numbers: source, target, versions, data."""


def compare_artifacts(before: Path, after: Path) -> ArtifactComparison:
    """Compare the chosen stages of two artifact directories.

    Raises:
        MeasurementError: One of them has no valid ledger.
    """
    ledgers = load_ledger(before), load_ledger(after)
    rows = ledgers[0].chosen_row, ledgers[1].chosen_row
    figures = (
        _metric(ledgers, rows),
        _timed("latency", rows[0].latency_ms, rows[1].latency_ms, ledgers, note=_LATENCY_NOTE),
        _timed("peak memory", rows[0].peak_memory_bytes, rows[1].peak_memory_bytes, ledgers),
        _figure("size", rows[0].size_bytes, rows[1].size_bytes),
    )
    return ArtifactComparison(
        before=str(before), after=str(after), figures=figures, differences=_differences(ledgers[0], ledgers[1])
    )


def conditions_differ(before: Measurement, after: Measurement) -> str:
    """Return in words what differs between the conditions of two numbers; empty when they are comparable."""
    parts = []
    if before.tier != after.tier:
        parts.append(f"tier {before.tier} and {after.tier}")
    for name in sorted({*before.conditions, *after.conditions} - {"baseline_bytes"}):
        first, second = before.conditions.get(name, "unknown"), after.conditions.get(name, "unknown")
        if first != second:
            parts.append(f"{name} {first} and {second}")
    return ", ".join(parts)


def _figure(name: str, before: Measurement | None, after: Measurement | None, note: str = "") -> ComparedFigure:
    missing = " and ".join(side for side, number in (("first", before), ("second", after)) if number is None)
    refusal = f"not measured in the {missing} artifact" if missing else ""
    return ComparedFigure(name=name, before=before, after=after, refusal=refusal, note="" if refusal else note)


def _timed(
    name: str,
    before: Measurement | None,
    after: Measurement | None,
    ledgers: tuple[Ledger, Ledger],
    note: str = "",
) -> ComparedFigure:
    if before is None or after is None:
        return _figure(name, before, after)
    different = [conditions_differ(before, after)]
    for fact in ("processor", "system", "usable_cores"):
        first, second = (ledger.machine.get(fact, "unknown") for ledger in ledgers)
        if first != second and fact not in before.conditions:
            different.append(f"{fact} {first} and {second}")
    reasons = ", ".join(part for part in different if part)
    refusal = f"measured under different conditions: {reasons}" if reasons else ""
    return ComparedFigure(name=name, before=before, after=after, refusal=refusal, note="" if refusal else note)


def _metric(ledgers: tuple[Ledger, Ledger], rows: tuple[LedgerRow, LedgerRow]) -> ComparedFigure:
    before, after = rows[0].metric, rows[1].metric
    if before is None or after is None:
        return _figure(ledgers[0].metric or "metric", before, after)
    refusal = ""
    data = [ledger.data.get("evaluation", "") for ledger in ledgers]
    if ledgers[0].metric != ledgers[1].metric:
        refusal = f"different metrics: {ledgers[0].metric} and {ledgers[1].metric}"
    elif data[0] != data[1]:
        refusal = f"measured on different data: {data[0] or 'unknown'} and {data[1] or 'unknown'}"
    return ComparedFigure(name=ledgers[0].metric, before=before, after=after, refusal=refusal)


def _differences(before: Ledger, after: Ledger) -> dict[str, tuple[str, str]]:
    facts = [
        {
            "source": ledger.source,
            "target": ledger.target,
            "seed": str(ledger.seed),
            "threads": str(ledger.threads),
            **{f"{role} data": text for role, text in ledger.data.items()},
            **{f"version of {name}": version for name, version in ledger.versions.items()},
        }
        for ledger in (before, after)
    ]
    names = sorted({*facts[0], *facts[1]})
    pairs = {name: (facts[0].get(name, "-"), facts[1].get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
