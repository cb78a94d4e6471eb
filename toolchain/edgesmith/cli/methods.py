"""`edgesmith methods`: the installed compression methods."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_table
from edgesmith.cli.settings import registry_of

if TYPE_CHECKING:
    from edgesmith.host.records import MethodRecord

EXAMPLE = "edgesmith methods --json"


def command(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed methods: what they do, what they need, and what they promise."""
    registry = registry_of(context)
    methods = registry.methods()
    if as_json:
        write_json([{**asdict(method), "distribution": registry.distribution_of(method)} for method in methods])
        return
    rows = [
        (
            method.name,
            str(method.kind),
            _promise(method),
            _needs(method),
            method.summary,
            registry.distribution_of(method),
        )
        for method in methods
    ]
    write_table(("method", "kind", "guarantee", "needs", "what it does", "from"), rows)


def _promise(method: "MethodRecord") -> str:
    return f"{method.guarantee} {method.tolerance:g}" if method.tolerance else str(method.guarantee)


def _needs(method: "MethodRecord") -> str:
    needs = method.needs
    flags = [name for name in ("data", "labels", "gradients", "gpu") if getattr(needs, name)]
    return ", ".join([*flags, *needs.packages]) or "nothing"
