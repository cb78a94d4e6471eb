"""The global options, and the registry that they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgesmith.cli.output import show_line

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What stands before the command on the command line."""

    plugins: bool = True
    disable: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    trace: bool = False


def registry_of(context: typer.Context) -> "Registry":
    """Return the registry that the global options of this call ask for."""
    from edgesmith.host.loader import load_registry

    options = context.ensure_object(GlobalOptions)
    return load_registry(
        plugins=options.plugins,
        disable=options.disable,
        files=options.files,
        trace=show_line if options.trace else None,
    )
