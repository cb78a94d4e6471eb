"""`edgesmith plugin new`: a plugin project that works as it is."""

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.output import show_line, write_json, write_text
from edgesmith.cli.settings import AsJson, registry_of
from edgesmith.scaffold import KINDS, create_plugin

EXAMPLE = "edgesmith plugin new my-method --kind method"


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the distribution and of what it brings.", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", metavar="|".join(KINDS), help="What the plugin brings.")] = "method",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The project becomes a new folder NAME in here.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a complete project with a small working plugin, tests, and a workflow that runs them."""
    installed = registry_of(context).plugins
    taken = {record.name for plugin in installed for record in plugin.records}
    files = create_plugin(name, kind, out, taken=taken)
    if as_json:
        write_json({"directory": str(out / name), "files": [str(path) for path in files]})
        return
    write_text(str(out / name))
    show_line(f"Wrote {len(files)} files. Next, in that folder: python -m pip install --editable '.[test]' && pytest")
