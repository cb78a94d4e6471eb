"""`edgesmith lint`: what a target would reject or run slowly in a graph, before anything is compiled."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.completion import target_names
from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import AsJson, Source, isolation_of, registry_of, time_limit

if TYPE_CHECKING:
    from edgesmith.engine import EngineReport
    from edgesmith.host.lint import LintResult

EXAMPLE = "edgesmith lint model.onnx --target jetson-orin-nano"

EXIT_FINDINGS = 2


def command(
    context: typer.Context,
    source: Source,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Installed target, or a profile file of your own.",
            autocompletion=target_names,
        ),
    ],
    engine_layers: Annotated[
        Path | None,
        typer.Option("--engine-layers", metavar="FILE", help="Layers of the built engine: trtexec --exportLayerInfo."),
    ] = None,
    engine_times: Annotated[
        Path | None,
        typer.Option("--engine-times", metavar="FILE", help="Times of its layers: trtexec --exportProfile."),
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Ask each rule of a plugin that is not part of Edgesmith in a process of its own, within limits.",
        ),
    ] = False,
    time_limit_seconds: Annotated[float | None, time_limit("rule")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a graph against the rules of a target. The exit code is 0 without findings, and 2 with some."""
    from edgesmith.cli.progress import make_progress
    from edgesmith.host.targets import find_target

    registry = registry_of(context)
    isolation = isolation_of(isolate, time_limit_seconds, None)
    record, device = find_target(registry, target)
    with make_progress(silent=as_json) as progress:
        from edgesmith.api import load_source
        from edgesmith.engine import read_description
        from edgesmith.host.building import check_target, explain_engine
        from edgesmith.host.lint import Finding, LintResult, run_lints
        from edgesmith.pipeline import Workshop
        from edgesmith.store import Store

        model = load_source(source, Workshop(registry, Store(), progress, 1))
        with progress.stage("checking the rules"):
            results = tuple(run_lints(registry, record, model, device.dialect, isolation=isolation))
            verdict = check_target(record, device, model)
            if verdict.status == "refuse":
                hazard = f"{record.name} refuses this graph: {verdict.reason}."
                refusal = Finding(hazard, "Until that is changed nothing is compiled from it.", verdict.nodes)
                results = (LintResult("refused", refusal), *results)
        engine = None
        if engine_layers is not None:
            times = read_description(engine_times) if engine_times is not None else ""
            engine = explain_engine(record, device, model, read_description(engine_layers), times)
    if as_json:
        _write_json(results, engine)
    else:
        _show(record.name, results, engine)
    if results or (engine is not None and engine.findings):
        raise typer.Exit(EXIT_FINDINGS)


def _write_json(results: "tuple[LintResult, ...]", engine: "EngineReport | None") -> None:
    """Write the list of findings; with an engine, an object with that list and the engine."""
    findings = [{"lint": result.lint, **asdict(result.finding)} for result in results]
    write_json(findings if engine is None else {"findings": findings, "engine": engine.model_dump(mode="json")})


def _show(target: str, results: "tuple[LintResult, ...]", engine: "EngineReport | None") -> None:
    rows = [(result.lint, result.finding.hazard, result.finding.fix, result.finding.nodes) for result in results]
    if engine is not None:
        rows += [(one.rule, one.hazard, one.fix, one.layers) for one in engine.findings]
    if rows:
        texts = [(rule, f"{hazard} {fix}\n{', '.join(names)}".strip()) for rule, hazard, fix, names in rows]
        write_table(("rule", "what it found"), texts)
    else:
        write_text(f"No findings for {target}.")
    if engine is not None:
        write_table(("engine", ""), list(engine.lines()))
