"""`edgesmith plugin check`: any plugin, tried before others use it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_table, write_text
from edgesmith.cli.settings import AsJson, isolation_of, registry_of, time_limit

if TYPE_CHECKING:
    from edgesmith.testing.conformance import Check, CheckResult

EXAMPLE = "edgesmith plugin check my_plugin.py"
EXIT_FAILED = 2

_SHOWN = {"ok": "ok", "failed": "FAILED", "not-applicable": "n/a"}


def command(
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
        typer.Option(
            "--model", metavar="FILE", help="A model of yours (.onnx) to try a method on as well. May be repeated."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Repeat runs on two graphs only, in one process.")] = False,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate", help="Run methods in processes of their own, so that one that hangs or crashes is reported."
        ),
    ] = False,
    time_limit_seconds: Annotated[float | None, time_limit("call")] = None,
    as_json: AsJson = False,
) -> None:
    """Try a plugin on tiny models of every family. The exit code is 0 if all checks pass, and 2 if one fails."""
    isolation = isolation_of(isolate, time_limit_seconds, None)
    registry = registry_of(context)
    from edgesmith.cli.progress import make_progress
    from edgesmith.model import Model
    from edgesmith.testing.conformance import conformance
    from edgesmith.testing.subject import find_subject

    subject, name = find_subject(plugin, registry)
    further = {str(path): Model.load(path) for path in models or ()}
    checks = conformance(subject, name, models=further, thorough=not quick, isolation=isolation)
    with make_progress(silent=as_json) as progress:
        results = [(one, one()) for one in progress.track(checks, f"checking {plugin}")]
    if as_json:
        passed = all(result.status != "failed" for _, result in results)
        write_json({"plugin": plugin, "ok": passed, "checks": [_as_json(*each) for each in results]})
    else:
        _show(plugin, results)
    if any(result.status == "failed" for _, result in results):
        raise typer.Exit(EXIT_FAILED)


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
    write_text(f"{plugin}: {_outcome(results)}")


def _outcome(results: "Sequence[tuple[Check, CheckResult]]") -> str:
    """Return how many checks failed, passed, and had nothing to check."""
    count = Counter(result.status for _, result in results)
    words = [f"{count['failed']} failed"] if count["failed"] else []
    words.append(f"{count['ok']} {'check' if count['ok'] == 1 else 'checks'} passed")
    if count["not-applicable"]:
        words.append(f"{count['not-applicable']} had nothing to check")
    return f"{', '.join(words)}."


def _title(check: "Check") -> str:
    return f"{check.kind} {check.record}"
