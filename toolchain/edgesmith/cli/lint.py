"""`edgesmith lint`: what a target would reject or run slowly in a graph, before anything is compiled."""

from dataclasses import asdict
from typing import Annotated

import typer

from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import registry_of

EXAMPLE = "edgesmith lint model.onnx --target jetson-orin-nano"

EXIT_FINDINGS = 2


def command(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A Hugging Face directory or hub id, or an .onnx file.", show_default=False)
    ],
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="Installed target, or a profile file of your own.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a graph against the rules of a target. The exit code is 0 without findings, and 2 with some."""
    from edgesmith.cli.progress import make_progress
    from edgesmith.host.targets import find_target

    registry = registry_of(context)
    record, device = find_target(registry, target)
    with make_progress(silent=as_json) as progress:
        from edgesmith.api import load_source
        from edgesmith.host.lint import run_lints
        from edgesmith.pipeline import Workshop
        from edgesmith.store import Store

        model = load_source(source, Workshop(registry, Store(), progress, 1))
        with progress.stage("checking the rules"):
            results = tuple(run_lints(registry, record, model, device.dialect))
    if as_json:
        write_json([{"lint": result.lint, **asdict(result.finding)} for result in results])
    elif results:
        rows = [
            (result.lint, f"{result.finding.hazard} {result.finding.fix}\n{', '.join(result.finding.nodes)}".strip())
            for result in results
        ]
        write_table(("rule", "what it found"), rows)
    else:
        write_text(f"No findings for {record.name}.")
    if results:
        raise typer.Exit(EXIT_FINDINGS)
