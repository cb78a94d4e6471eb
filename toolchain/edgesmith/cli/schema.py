"""`edgesmith schema`: what a recipe may contain, for editors and for people."""

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.output import show_line, write_json
from edgesmith.cli.settings import registry_of

EXAMPLE = "edgesmith schema --out recipe.schema.json"


def command(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The schema is always JSON; accepted for symmetry.")] = False,
) -> None:
    """Print the JSON schema of recipes, with the options of every installed method.

    Put `# yaml-language-server: $schema=recipe.schema.json` at the head of a recipe and the editor completes it.
    """
    schema = registry_of(context).schema()
    if out is None:
        write_json(schema)
        return
    import json

    from edgesmith.files import write_atomically

    write_atomically(out, (json.dumps(schema, indent=2) + "\n").encode())
    show_line(f"Wrote {out}")
