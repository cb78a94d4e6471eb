"""`edgesmith targets`: the installed devices and runtimes."""

from collections import Counter
from dataclasses import asdict

import typer

from edgesmith.cli.output import write_json, write_table, write_text
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
    facts = {
        target.name: f"measured by {target.runner}, tier {target.tier}, from {registry.distribution_of(target)}"
        for target in targets
    }
    # Most targets share these, and are told apart by the rest.
    ((usual, count),) = Counter(facts.values()).most_common(1) or (("", 0),)
    said = {name: "" if text == usual and count > 1 else f"\n{text}" for name, text in facts.items()}
    write_table(("target", "what it is"), [(target.name, target.summary + said[target.name]) for target in targets])
    if count > 1:
        write_text(f"Unless said otherwise: {usual}.")
