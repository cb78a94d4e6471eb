"""`edgesmith plugins`: what is installed, and what of it is broken."""

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgesmith.cli.output import write_json, write_table
from edgesmith.cli.settings import AsJson, registry_of

if TYPE_CHECKING:
    from edgesmith.host.plugin import Plugin

EXAMPLE = "edgesmith plugins --json"


def command(
    context: typer.Context,
    retry: Annotated[
        bool, typer.Option("--retry", help="Import again, apart from this process, what broke its process before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins and what they bring, by name; broken ones with their error. --json says all of it."""
    registry = registry_of(context, retry=retry)
    if as_json:
        write_json(
            {
                "plugins": [_describe(plugin) for plugin in registry.plugins],
                "broken": [asdict(tombstone) for tombstone in registry.tombstones],
            }
        )
        return
    rows = [(f"{plugin.label} [{plugin.entry_point}]", "ok", _summary(plugin)) for plugin in registry.plugins]
    rows += [
        (f"{tombstone.label} [{tombstone.entry_point}]", "broken", f"{tombstone.stage}: {tombstone.error}")
        for tombstone in registry.tombstones
    ]
    write_table(("plugin", "status", "brings"), rows)


def _describe(plugin: "Plugin") -> dict[str, object]:
    from edgesmith.host.registry import WORDS

    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "entry_point": plugin.entry_point,
        "hooks": list(plugin.hooks),
        "records": [
            {"type": WORDS[type(record)], **asdict(record), "distribution": plugin.label} for record in plugin.records
        ],
    }


def _summary(plugin: "Plugin") -> str:
    from edgesmith.host.registry import WORDS

    names = defaultdict(list)
    for record in plugin.records:
        names[WORDS[type(record)]].append(record.name)
    parts = [f"{word}{'s' if len(found) > 1 else ''} {', '.join(found)}" for word, found in sorted(names.items())]
    return "\n".join(parts) or "observers" if plugin.hooks else "nothing"
