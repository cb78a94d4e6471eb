"""The validation record of an artifact: one entry for each run on a device, with all that makes it comparable."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.device.facts import State
from edgesmith.device.loadgen import LoadGenResult
from edgesmith.engine import EngineReport
from edgesmith.errors import MeasurementError
from edgesmith.files import write_atomically
from edgesmith.host.records import Tier
from edgesmith.ledger import LedgerRow, Measurement, OutputError
from edgesmith.measure.compare import ComparedFigure, conditions_differ

FILE_NAME = "validation.json"


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

    Runs of different power modes, clocks, runtimes, threads or shapes are not compared.
    """
    first, second = before.row.latency_ms, after.row.latency_ms
    if first is None or second is None:
        return ComparedFigure("latency", first, second, refusal="not measured in both runs")
    differences = conditions_differ(first, second)
    refusal = f"measured under different conditions: {differences}" if differences else ""
    note = "" if refusal else "measured at different times"
    return ComparedFigure("latency", first, second, refusal=refusal, note=note)


def last_run_on(record: ValidationRecord, address: str) -> DeviceRun | None:
    """Return the latest run on the device that a user names like this."""
    return next((run for run in reversed(record.runs) if run.on == address), None)
