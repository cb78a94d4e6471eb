"""Two artifacts side by side. Numbers that were taken under different conditions are not compared, and it says why."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgesmith.artifact import changed_files
from edgesmith.device.record import compare_records, load_record
from edgesmith.ledger import Ledger, LedgerRow, Measurement, load_ledger
from edgesmith.measure.comparable import ComparedFigure, conditions_differ

_LATENCY_NOTE = "measured at different times; only stages of one compile are interleaved"
_HASH = ", sha256 "
_NEVER_TIMED = "neither was timed; run `edgesmith validate ARTIFACT --on DEVICE` on both"


@dataclass(frozen=True, slots=True)
class ArtifactComparison:
    """The chosen stages of two artifacts."""

    before: str
    after: str
    figures: tuple[ComparedFigure, ...]
    differences: Mapping[str, tuple[str, str]]
    """What differs between the two compiles besides the numbers: source, target, versions, data."""
    warnings: tuple[str, ...] = ()
    """Why the numbers may not be those of what is in the directories now."""


def compare_artifacts(before: Path, after: Path) -> ArtifactComparison:
    """Compare the chosen stages of two artifact directories, and what was measured of them on devices.

    Raises:
        MeasurementError: One of them has no valid ledger, or a damaged validation record.
    """
    ledgers = load_ledger(before), load_ledger(after)
    rows = ledgers[0].chosen_row, ledgers[1].chosen_row
    on_devices = compare_records(load_record(before), load_record(after))
    latency = _timed("latency", rows[0].latency_ms, rows[1].latency_ms, ledgers, note=_LATENCY_NOTE)
    if latency.before is None and latency.after is None:
        # What nobody timed while compiling is no news beside the times of a device.
        timed = () if on_devices else (replace(latency, refusal=_NEVER_TIMED),)
    else:
        timed = (latency,)
    figures = (
        _metric(ledgers, rows),
        *timed,
        _timed("peak memory", rows[0].peak_memory_bytes, rows[1].peak_memory_bytes, ledgers),
        _figure("size", rows[0].size_bytes, rows[1].size_bytes),
        *on_devices,
    )
    return ArtifactComparison(
        before=str(before),
        after=str(after),
        figures=figures,
        differences=_differences(ledgers[0], ledgers[1]),
        warnings=tuple(filter(None, map(_damage, dict.fromkeys((before, after))))),
    )


def _damage(directory: Path) -> str:
    """Return what to know of an artifact with files that are missing or were changed; empty where all are whole."""
    changed = changed_files(directory)
    if not changed:
        return ""
    return (
        f"Damaged: {', '.join(changed)} of {directory} is missing or not what was compiled, so these figures may not "
        "be those of what is there now. Compile again."
    )


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
    elif _content(data[0]) != _content(data[1]):
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
    return {name: pair for name, pair in pairs.items() if _content(pair[0]) != _content(pair[1])}


def _content(fact: str) -> str:
    """Return the hash at the end of a description of data, and anything else as it is: a file may have another name."""
    return fact.rpartition(_HASH)[2]
