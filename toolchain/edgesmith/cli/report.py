"""`edgesmith report`: write an artifact's HTML report again."""

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.output import write_json, write_text
from edgesmith.cli.settings import AsJson, registry_of

EXAMPLE = "edgesmith report artifact"


def command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Artifact directory.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of an artifact again from its ledger, for example with a newer Edgesmith."""
    from edgesmith.ledger import load_ledger
    from edgesmith.report import render_report

    # Plugins are asked about artifacts only.
    load_ledger(directory)
    sections = registry_of(context).observers.extend_report(str(directory))
    path = render_report(directory, [section for _, section in sections])
    if as_json:
        write_json({"report": str(path)})
    else:
        write_text(str(path))
