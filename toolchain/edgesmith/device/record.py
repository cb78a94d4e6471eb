"""The validation record of an artifact: one entry for each run on a device, with all that makes it comparable."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.device.facts import SPEED_FACTS, State
from edgesmith.device.loadgen import LoadGenResult
from edgesmith.engine import EngineReport
from edgesmith.errors import MeasurementError
from edgesmith.files import write_atomically
from edgesmith.host.records import Tier
from edgesmith.ledger import LedgerRow, Measurement, OutputError
from edgesmith.measure.comparable import ComparedFigure, conditions_differ

FILE_NAME = "validation.json"

_TOLD = {"power_mode": "power mode", "clocks": "clocks"}
"""Conditions that are said beside a comparison."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceRun(_Record):
    """One run of the artifact on a device."""

    when: str
    """Date and time in UTC, as ISO 8601."""
    on: str
    """How the user named the device."""
    tier: Tier
    reason: str
    """Why the numbers have this tier."""
    row: LedgerRow
    """Latency, metric and error against the simulation, in the ledger's form."""
    gaps: Mapping[str, OutputError]
    """Output name to its distance from the simulation."""
    simulation: str
    """What computed the outputs that these were compared with."""
    simulated_metric: Measurement | None = None
    """The metric of the simulation on the same samples."""
    percentiles_ms: Mapping[str, float] = Field(default_factory=dict)
    samples_per_second: float
    energy_mj: Measurement | None = None
    """Energy of the whole module for one run, where the board measures its power."""
    engine: EngineReport | None = None
    """What the runtime built, where it tells."""
    loadgen: LoadGenResult | None = None
    """One scenario of MLPerf's load generator, if it was asked for."""
    machine: Mapping[str, str | int] = Field(default_factory=dict)
    before: State
    after: State
    remarks: tuple[str, ...] = ()

    @property
    def machine_name(self) -> str:
        """What the device calls itself."""
        return str(self.machine.get("machine", self.on))


class ValidationRecord(_Record):
    """Every run, oldest first."""

    format: int = 1
    runs: tuple[DeviceRun, ...] = ()


def load_record(directory: Path) -> ValidationRecord:
    """Return the record of an artifact; an empty one if it was never validated.

    Raises:
        MeasurementError: The file is damaged.
    """
    path = directory / FILE_NAME
    try:
        return ValidationRecord.model_validate_json(path.read_bytes()) if path.is_file() else ValidationRecord()
    except (OSError, ValidationError) as error:
        raise MeasurementError(
            f"{path} cannot be read as a validation record: {str(error).partition(chr(10))[0]}.",
            expected="a file that `edgesmith validate` wrote",
            why="New runs are added to it, and damaged ones would be taken for measured.",
            fix="Move the file away and validate again.",
        ) from error


def append_run(directory: Path, run: DeviceRun) -> None:
    """Add a run to the record of an artifact.

    Raises:
        MeasurementError: The record is damaged.
        OutputError: It cannot be written. The runs before are still there.
    """
    record = load_record(directory)
    record = record.model_copy(update={"runs": (*record.runs, run)})
    write_atomically(directory / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def compare_runs(before: DeviceRun, after: DeviceRun) -> ComparedFigure:
    """Return the latency of two runs side by side, with the reason where they must not be compared.

    Runs of different machines, power modes, clocks, drivers, runtimes, threads or shapes are not compared.
    """
    return _figure("latency", before, after, before.row.latency_ms, after.row.latency_ms)


def compare_records(before: ValidationRecord, after: ValidationRecord) -> tuple[ComparedFigure, ...]:
    """Return latency and energy of two artifacts on each device that one of them was validated on.

    Of each device, the newest two runs under each conditions that both artifacts share are compared. Where they share
    none, the newest two are shown with what differs; where only one artifact was there, that is said.
    """
    found: list[ComparedFigure] = []
    machines = dict.fromkeys(run.machine_name for record in (before, after) for run in reversed(record.runs))
    for machine in machines:
        sides = [[run for run in reversed(record.runs) if run.machine_name == machine] for record in (before, after)]
        if not all(sides):
            found.append(_one_sided(machine, sides, (before, after)))
            continue
        for first, second in _comparable(*sides) or [(sides[0][0], sides[1][0])]:
            place = f"on {machine} ({first.tier})"
            found.append(_figure(f"latency {place}", first, second, first.row.latency_ms, second.row.latency_ms))
            if first.energy_mj is not None and second.energy_mj is not None:
                found.append(_figure(f"energy {place}", first, second, first.energy_mj, second.energy_mj))
    return tuple(found)


def _comparable(firsts: list[DeviceRun], seconds: list[DeviceRun]) -> list[tuple[DeviceRun, DeviceRun]]:
    """Return the newest two comparable runs under each conditions, of runs that stand newest first."""
    pairs: list[tuple[DeviceRun, DeviceRun]] = []
    for first in firsts:
        if any(not compare_runs(first, seen).refusal for seen, _ in pairs):
            continue
        match = next((second for second in seconds if not compare_runs(first, second).refusal), None)
        if match is not None:
            pairs.append((first, match))
    return pairs


def _one_sided(
    machine: str, sides: list[list[DeviceRun]], records: tuple[ValidationRecord, ValidationRecord]
) -> ComparedFigure:
    """Return the latency on a device that only one of two artifacts was run on."""
    numbers = [runs[0].row.latency_ms if runs else None for runs in sides]
    missing, other = ("second", records[1]) if sides[0] else ("first", records[0])
    elsewhere = ", ".join(dict.fromkeys(run.machine_name for run in reversed(other.runs)))
    reason = f"the {missing} artifact was not validated there"
    if elsewhere:
        reason += f", only on {elsewhere}, and times of different devices are not comparable"
    return ComparedFigure(f"latency on {machine}", numbers[0], numbers[1], refusal=reason)


def _figure(
    name: str, before: DeviceRun, after: DeviceRun, first: Measurement | None, second: Measurement | None
) -> ComparedFigure:
    if first is None or second is None:
        return ComparedFigure(name, first, second, refusal="not measured in both runs")
    facts = (
        f"{fact} {before.machine.get(fact, 'unknown')} and {after.machine.get(fact, 'unknown')}"
        for fact in SPEED_FACTS
        if before.machine.get(fact) != after.machine.get(fact)
    )
    differences = ", ".join(part for part in (conditions_differ(first, second), *facts) if part)
    if differences:
        return ComparedFigure(name, first, second, refusal=f"measured under different conditions: {differences}")
    shared = [f"{words} {first.conditions[key]}" for key, words in _TOLD.items() if key in first.conditions]
    # One board may have two names, and two boards the same: only who named them knows.
    places = "" if before.on == after.on else f"on {before.on} and on {after.on}, which should be the same device"
    return ComparedFigure(
        name, first, second, note=", ".join(part for part in ("measured at different times", *shared, places) if part)
    )


def last_run_on(record: ValidationRecord, address: str) -> DeviceRun | None:
    """Return the latest run on the device that a user names like this."""
    return next((run for run in reversed(record.runs) if run.on == address), None)
