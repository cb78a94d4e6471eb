"""The global options, and the registry that they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgesmith.cli.output import show_line

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands before the command on the command line."""

    plugins: bool = True
    disable: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    trace: bool = False


def registry_of(context: typer.Context) -> "Registry":
    """Return the registry that the global options of this call ask for."""
    from edgesmith.host.loader import load_registry

    settings = context.ensure_object(Settings)
    return load_registry(
        plugins=settings.plugins,
        disable=settings.disable,
        files=settings.files,
        trace=show_line if settings.trace else None,
    )
