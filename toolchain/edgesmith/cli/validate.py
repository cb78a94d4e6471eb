"""`edgesmith validate`: an artifact on the device itself."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import AsJson, DeviceSettings, registry_of

if TYPE_CHECKING:
    from edgesmith.device.record import DeviceRun
    from edgesmith.measure.comparable import ComparedFigure

EXAMPLE = "edgesmith validate artifact --on ssh://user@jetson --data texts.csv"


def command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact directory.", show_default=False)],
    on: Annotated[
        str,
        typer.Option("--on", help="Where to run: local, ssh://user@host[:port] or adb://serial.", show_default=False),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Samples to score, as for `edgesmith compile`. Default: random inputs."),
    ] = None,
    settings: DeviceSettings = None,
    loadgen: Annotated[
        str,
        typer.Option(
            "--loadgen",
            metavar="SCENARIO",
            help="Run MLPerf LoadGen too: SingleStream, MultiStream, Offline or Server.",
            show_default=False,
        ),
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was copied on the device.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an artifact where it will run: latency, outputs against the simulation, and the metric."""
    from contextlib import closing

    from edgesmith.cli.progress import make_progress
    from edgesmith.device.address import open_transport, parse_address
    from edgesmith.device.plan import ValidationPlan, parse_plan
    from edgesmith.device.record import append_run, compare_runs, last_run_on, load_record
    from edgesmith.device.validation import validate
    from edgesmith.report import render_report

    # Checked before anything is loaded or connected, so that a mistyped word answers at once.
    given = {"keep": keep} | ({"loadgen": loadgen} if loadgen else {})
    plan, address = parse_plan(ValidationPlan, settings or (), **given), parse_address(on)
    registry = registry_of(context)
    record = load_record(directory)
    with (
        make_progress(silent=as_json) as progress,
        closing(open_transport(address, directory=plan.directory, python=plan.python)) as transport,
    ):
        run = validate(directory, transport, registry, data=data, plan=plan, progress=progress)
    append_run(directory, run)
    render_report(directory, [section for _, section in registry.observers.extend_report(str(directory))])
    before = last_run_on(record, run.on)
    comparison = compare_runs(before, run) if before else None
    if as_json:
        write_json(json.loads(run.model_dump_json()) | {"against_last_run": _as_json(comparison)})
    else:
        _show(run, comparison)


def _as_json(comparison: "ComparedFigure | None") -> dict[str, object] | None:
    if comparison is None:
        return None
    return {"ratio": comparison.ratio, "refusal": comparison.refusal, "note": comparison.note}


def _show(run: "DeviceRun", comparison: "ComparedFigure | None") -> None:
    from edgesmith.report.validation import run_lines

    write_text(f"{run.row.stage} on {run.on}: tier {run.tier} ({run.reason}).")
    write_table(("figure", "value"), run_lines(run))
    if comparison is not None and comparison.ratio is not None:
        write_text(f"Latency against the last run there: {comparison.ratio:.2f} times, {comparison.note}.")
    elif comparison is not None:
        write_text(f"Not compared with the last run there: {comparison.refusal}.")
    for remark in run.remarks:
        write_text(remark)
