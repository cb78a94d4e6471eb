"""`edgesmith targets`: the installed devices and runtimes."""

from dataclasses import asdict

import typer

from edgesmith.cli.output import write_json, write_table
from edgesmith.cli.settings import AsJson, registry_of

EXAMPLE = "edgesmith targets"


def command(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """List the installed targets: what they are, what measures them, and how much such a number proves (its tier)."""
    registry = registry_of(context)
    targets = registry.targets()
    if as_json:
        write_json([{**asdict(target), "distribution": registry.distribution_of(target)} for target in targets])
        return
    rows = [
        (
            target.name,
            f"{target.summary}\nmeasured by {target.runner}, tier {target.tier}, "
            f"from {registry.distribution_of(target)}",
        )
        for target in targets
    ]
    write_table(("target", "what it is"), rows)
