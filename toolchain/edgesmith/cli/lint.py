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
    from edgesmith.host.interfaces import Target
    from edgesmith.host.lint import LintResult
    from edgesmith.host.records import TargetRecord
    from edgesmith.host.registry import Registry
    from edgesmith.isolation.limits import Isolation
    from edgesmith.model import Model

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
    """Check a graph against the rules of a target. The exit code is 2 with findings, and 0 with none or notes only."""
    from edgesmith.cli.progress import make_progress

    registry = registry_of(context)
    isolation = isolation_of(isolate, time_limit_seconds, None)
    record, device = _find_device(registry, target, isolation)
    with make_progress(silent=as_json) as progress:
        from edgesmith.api import load_source
        from edgesmith.engine import read_description
        from edgesmith.host.building import explain_engine
        from edgesmith.host.lint import run_lints
        from edgesmith.pipeline import Workshop
        from edgesmith.store import Store

        model = load_source(source, Workshop(registry, Store(), progress, 1))
        with progress.stage("checking the rules"):
            found = tuple(run_lints(registry, record, model, device.dialect, isolation=isolation))
            results = (*_refusals(registry, record, device, model, found), *found)
        engine = None
        if engine_layers is not None:
            times = read_description(engine_times) if engine_times is not None else ""
            engine = explain_engine(record, device, model, read_description(engine_layers), times)
    if as_json:
        _write_json(results, engine)
    else:
        _show(record.name, results, engine)
    if any(not each.finding.is_note for each in results) or (engine is not None and engine.findings):
        raise typer.Exit(EXIT_FINDINGS)


def _find_device(registry: "Registry", target: str, isolation: "Isolation | None") -> "tuple[TargetRecord, Target]":
    """Return the target, which is asked in a process of its own where that is wanted."""
    from edgesmith.host.targets import find_target

    record, device = find_target(registry, target)
    if isolation is not None:
        from edgesmith.isolation.target import apart

        device = apart(registry, record, device, isolation)
    return record, device


def _refusals(
    registry: "Registry", record: "TargetRecord", device: "Target", model: "Model", found: "tuple[LintResult, ...]"
) -> "tuple[LintResult, ...]":
    """Return that the target refuses the graph, or that its check failed; nothing where its own rules say the same."""
    from edgesmith.errors import TargetError
    from edgesmith.host.building import check_target
    from edgesmith.host.lint import Finding, LintResult

    try:
        verdict = check_target(record, device, model)
    except TargetError as error:
        return (LintResult("refused", Finding(error.what, error.fix)),)
    if verdict.status != "refuse":
        return ()
    # A stranger's rule may name the same nodes for another reason.
    owner = registry.plugin_of(record).distribution
    own = {lint.name for lint in registry.lints() if registry.plugin_of(lint).distribution == owner}
    named = {node for each in found if each.lint in own and not each.finding.is_note for node in each.finding.nodes}
    if verdict.nodes and named.issuperset(verdict.nodes):
        return ()
    hazard = f"{record.name} refuses this graph: {verdict.reason}."
    return (
        LintResult("refused", Finding(hazard, "Until that is changed nothing is compiled from it.", verdict.nodes)),
    )


def _write_json(results: "tuple[LintResult, ...]", engine: "EngineReport | None") -> None:
    """Write the list of findings; with an engine, an object with that list and the engine."""
    findings = [{"lint": result.lint, **asdict(result.finding)} for result in results]
    write_json(findings if engine is None else {"findings": findings, "engine": engine.model_dump(mode="json")})


def _show(target: str, results: "tuple[LintResult, ...]", engine: "EngineReport | None") -> None:
    rows = []
    for result in results:
        found = result.finding
        rows.append((f"{result.lint} (note)" if found.is_note else result.lint, found.hazard, found.fix, found.nodes))
    if engine is not None:
        rows += [(one.rule, one.hazard, one.fix, one.layers) for one in engine.findings]
    if rows:
        texts = [(rule, f"{hazard} {fix}\n{', '.join(names)}".strip()) for rule, hazard, fix, names in rows]
        write_table(("rule", "what it found"), texts)
    else:
        write_text(f"No findings for {target}.")
    if engine is not None:
        write_table(("engine", ""), list(engine.lines()))
