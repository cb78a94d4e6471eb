"""Options that several commands have: the global ones, with the registry that they ask for, and isolation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgesmith.cli.output import show_line

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith.isolation.limits import Isolation


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


def isolation_of(wanted: bool, time_limit_seconds: float | None, memory_limit_mib: int | None) -> "Isolation | None":
    """Return the limits of isolated steps, or None where nothing asks for isolation."""
    from edgesmith.isolation.limits import Isolation

    if not wanted and time_limit_seconds is None and memory_limit_mib is None:
        return None
    if time_limit_seconds is None:
        return Isolation(memory_limit_mib=memory_limit_mib)
    return Isolation(time_limit_seconds, memory_limit_mib)
