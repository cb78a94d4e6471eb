"""Options that several commands have: the global ones, with the registry that they ask for, and isolation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesmith.cli.output import show_line

if TYPE_CHECKING:
    from edgesmith.device.plan import DevicePlan
    from edgesmith.host.registry import Registry
    from edgesmith.isolation.limits import Isolation

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A Hugging Face directory or hub id, or an .onnx file.", show_default=False),
]


DeviceSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="How to run on the device: runtime, threads and others, as listed in docs/targets/validation.md.",
    ),
]


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What stands before the command on the command line."""

    plugins: bool = True
    disable: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    trace: bool = False


def registry_of(context: typer.Context, *, retry: bool = False) -> "Registry":
    """Return the registry that the global options of this call ask for.

    Args:
        context: The call.
        retry: Whether to try again to import what broke its process before.
    """
    from edgesmith.host.loader import load_registry

    options = context.ensure_object(GlobalOptions)
    if options.trace:
        _show_tracebacks(context)
    return load_registry(
        plugins=options.plugins,
        disable=options.disable,
        files=options.files,
        trace=show_line if options.trace else None,
        retry=retry,
    )


class _Shown(logging.Handler):
    """Writes log records where the command line writes everything that is no result."""

    def emit(self, record: logging.LogRecord) -> None:
        show_line(self.format(record))


def _show_tracebacks(context: typer.Context) -> None:
    """Show what the toolchain logs of faults in plugins, with their tracebacks, until the command ends."""
    logger, handler = logging.getLogger("edgesmith"), _Shown()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    context.call_on_close(lambda: logger.setLevel(level))
    context.call_on_close(lambda: logger.removeHandler(handler))


def time_limit(what: str) -> Any:
    """Return the option `--time-limit-seconds` of a command that isolates one `what` at a time."""
    return typer.Option("--time-limit-seconds", help=f"Longest time for one {what}; implies --isolate. Default: 3600.")


def isolation_of(wanted: bool, time_limit_seconds: float | None, memory_limit_mib: int | None) -> "Isolation | None":
    """Return the limits of isolated steps, or None where nothing asks for isolation."""
    from edgesmith.isolation.limits import Isolation

    if not wanted and time_limit_seconds is None and memory_limit_mib is None:
        return None
    if time_limit_seconds is None:
        return Isolation(memory_limit_mib=memory_limit_mib)
    return Isolation(time_limit_seconds, memory_limit_mib)


def device_of(on: str, settings: Sequence[str]) -> "DevicePlan":
    """Return how models run on the device that `--on` names; an address that names none is refused."""
    from edgesmith.device.address import parse_address
    from edgesmith.device.plan import DevicePlan, parse_plan
    from edgesmith.errors import RecipeError

    if on:
        parse_address(on)
    elif settings:
        raise RecipeError(
            "--set says how to run on a device, and no device is named.",
            expected="--on with a device beside --set",
            why="A setting that nothing follows would be taken for one that holds.",
            fix="Add --on DEVICE, or leave --set out. Options of methods stand in the recipe.",
        )
    return parse_plan(DevicePlan, settings)
