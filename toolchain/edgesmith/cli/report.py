"""`edgesmith report`: write an artifact's HTML report again."""

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.output import write_json, write_text

EXAMPLE = "edgesmith report artifact"


def command(
    directory: Annotated[Path, typer.Argument(help="Artifact directory.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the HTML report of an artifact again from its ledger, for example with a newer Edgesmith."""
    from edgesmith.report import render_report

    path = render_report(directory)
    if as_json:
        write_json({"report": str(path)})
    else:
        write_text(str(path))
