"""`edgesmith schema`: what a recipe or a data description may contain, for editors and for people."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesmith.cli.output import show_line, write_json
from edgesmith.cli.settings import registry_of

EXAMPLE = "edgesmith schema --out recipe.schema.json"


def command(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="The schema of data descriptions instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The schema is always JSON; accepted for symmetry.")] = False,
) -> None:
    """Print the JSON schema of recipes, with the options of every installed method.

    Put `# yaml-language-server: $schema=recipe.schema.json` at the head of a recipe and the editor completes it.
    """
    schema = _data_schema() if data else registry_of(context).schema()
    if out is None:
        write_json(schema)
        return
    import json

    from edgesmith.files import write_atomically

    write_atomically(out, (json.dumps(schema, indent=2) + "\n").encode())
    show_line(f"Wrote {out}")


def _data_schema() -> dict[str, Any]:
    from edgesmith_calibration.spec import DataSpec

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **DataSpec.model_json_schema()}
