"""`edgesmith plugin`: write a plugin of your own, and check any plugin before others use it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import show_line, write_json, write_table, write_text
from edgesmith.cli.settings import registry_of
from edgesmith.scaffold import KINDS, create_plugin

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith.testing.conformance import Check, CheckResult

EXAMPLE = "edgesmith plugin new my-method --kind method"
EXIT_FAILED = 2

_SHOWN = {"ok": "ok", "failed": "FAILED", "not-applicable": "n/a"}

group = typer.Typer(help="Write a plugin of your own, or check one.", no_args_is_help=True)


@group.command("new", epilog=f"Example: {EXAMPLE}")
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the distribution and of what it brings.", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", metavar="|".join(KINDS), help="What the plugin brings.")] = "method",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The project becomes a new folder NAME in here.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a complete project with a small working plugin, tests, and a workflow that runs them."""
    files = create_plugin(name, kind, out, taken=_names(registry_of(context)))
    if as_json:
        write_json({"directory": str(out / name), "files": [str(path) for path in files]})
        return
    write_text(str(out / name))
    show_line(f"Wrote {len(files)} files. Next, in that folder: python -m pip install --editable '.[test]' && pytest")


@group.command("check", epilog="Example: edgesmith plugin check my_plugin.py")
def check(
    context: typer.Context,
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME",
            help="A plugin file, an installed distribution, or the name of one method, target, metric, runner or lint.",
            show_default=False,
        ),
    ],
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", metavar="FILE", help="A further .onnx file to try a method on. May be repeated."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Repeat runs on two graphs only, in one process.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try a plugin on tiny models of every family. The exit code is 0 if all checks pass, and 2 if one fails."""
    registry = registry_of(context)
    from edgesmith.cli.progress import make_progress
    from edgesmith.model import Model
    from edgesmith.testing.conformance import conformance
    from edgesmith.testing.subject import find_subject

    subject, name = find_subject(plugin, registry)
    further = {path.stem: Model.load(path) for path in models or ()}
    checks = conformance(subject, name, models=further, thorough=not quick)
    with make_progress(silent=as_json) as progress:
        results = [(one, one()) for one in progress.track(checks, f"checking {plugin}")]
    if as_json:
        passed = all(result.status != "failed" for _, result in results)
        write_json({"plugin": plugin, "ok": passed, "checks": [_as_json(*each) for each in results]})
    else:
        _show(plugin, results)
    if any(result.status == "failed" for _, result in results):
        raise typer.Exit(EXIT_FAILED)


def _names(registry: "Registry") -> frozenset[str]:
    """Return the names of everything that is installed."""
    return frozenset(record.name for plugin in registry.plugins for record in plugin.records)


def _as_json(check: "Check", result: "CheckResult") -> dict[str, object]:
    return {
        "kind": check.kind,
        "record": check.record,
        "check": check.name,
        "asks": check.description,
        **asdict(result),
    }


def _show(plugin: str, results: "Sequence[tuple[Check, CheckResult]]") -> None:
    for title in dict.fromkeys(_title(check) for check, _ in results):
        own = [(check, result) for check, result in results if _title(check) == title]
        rows = [
            (check.name, _SHOWN[result.status], "see below" if result.status == "failed" else result.what)
            for check, result in own
        ]
        write_table(("check", "result", "what was seen"), rows, title=title)
    failures = [(check, result) for check, result in results if result.status == "failed"]
    for check, result in failures:
        write_text(f"{_title(check)}: {check.name}")
        for label, words in (("asked for", check.description), ("found", result.what), ("do", result.fix)):
            write_text(f"  {label:>9}  {words}")
    outcome = f"{len(failures)} of {len(results)} checks failed." if failures else f"all {len(results)} checks passed."
    write_text(f"{plugin}: {outcome}")


def _title(check: "Check") -> str:
    return f"{check.kind} {check.record}"
