"""The command line: one file per command, thin over the library.

A command is a module of this package with a function `command` and an `EXAMPLE`; its name in `COMMANDS` makes it
available. A name of two words is a command of a group. Command modules are imported at every start, so they import
heavy packages inside functions only.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgesmith import __version__
from edgesmith.cli.interruption import Terminated, interruptions_arrive, terminations_interrupt
from edgesmith.cli.output import only_json_on_stdout, show_error, show_line
from edgesmith.cli.settings import GlobalOptions
from edgesmith.collector import collect_seldom
from edgesmith.errors import EdgesmithError

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    "compile",
    "validate",
    "inspect",
    "lint",
    "methods",
    "targets",
    "plugins",
    "plugin new",
    "plugin check",
    "compare",
    "report",
    "schema",
    "doctor",
)
"""Command modules in the order in which `--help` lists them."""

EXIT_UNEXPECTED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_INTERRUPTED = "Interrupted. Nothing is half written; the same command resumes."


def _exit_code(error: KeyboardInterrupt) -> int:
    return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED


class _Group(TyperGroup):
    """Turns refusals and Ctrl-C into one message and an exit code, for every command alike."""

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except EdgesmithError as error:
            show_error(error)
            raise typer.Exit(EXIT_REFUSED) from error
        except KeyboardInterrupt as error:
            show_line(_INTERRUPTED)
            raise typer.Exit(_exit_code(error)) from error


app = typer.Typer(
    name="edgesmith",
    cls=_Group,
    help="A trained network in, a measured artifact for one device out.",
    epilog="Example: edgesmith compile ./my-model --target onnx-cpu --recipe int8 --data texts.csv --out artifact",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgesmith {__version__}")
        raise typer.Exit


@app.callback()
def _configure(
    context: typer.Context,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Load only the plugins that ship with Edgesmith.")
    ] = False,
    disable: Annotated[
        list[str] | None,
        typer.Option(
            "--disable",
            metavar="NAME",
            help="Leave out the plugins of a distribution, or one entry point. May be repeated.",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load a plugin from a Python file. May be repeated."),
    ] = None,
    trace_plugins: Annotated[
        bool,
        typer.Option(
            "--trace-plugins",
            help="Print each call into a plugin, and whole tracebacks of its faults, on standard error.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = GlobalOptions(
        plugins=not no_plugins, disable=tuple(disable or ()), files=tuple(plugin or ()), trace=trace_plugins
    )


_plugin = typer.Typer(help="Write a plugin of your own, or check one.", no_args_is_help=True)
app.add_typer(_plugin, name="plugin")
_GROUPS = {"": app, "plugin": _plugin}

for _name in COMMANDS:
    _group, _, _word = _name.rpartition(" ")
    _module = import_module(f"edgesmith.cli.{_name.replace(' ', '_')}")
    _GROUPS[_group].command(_word, epilog=f"Example: {_module.EXAMPLE}")(_module.command)


def _results_apart(arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Keep JSON results free of what plugins print. Help is printed by others, so it is let through."""
    wanted = "--json" in arguments and "--help" not in arguments
    return only_json_on_stdout() if wanted else nullcontext()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    The code is 0 when the command did its work, 2 for an error that says what to do, faults of plugins that were
    contained among them, or a wrong call, 130 after Ctrl-C, 143 after SIGTERM, and 1 for any other fault, which is
    shown with a traceback.

    Args:
        arguments: The words behind the command's name. None takes those of the process, which ends with the command.
    """
    try:
        wanted = sys.argv[1:] if arguments is None else arguments
        seldom = collect_seldom(process_ends=arguments is None)
        with interruptions_arrive(), terminations_interrupt(), seldom, _results_apart(wanted):
            app(arguments, prog_name="edgesmith")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_UNEXPECTED if stop.code else 0
    except KeyboardInterrupt as error:
        show_line(_INTERRUPTED)
        return _exit_code(error)
    except Exception:  # noqa: BLE001  the outermost frame: whatever arrives here is a fault to be reported
        import traceback

        sys.stderr.write(traceback.format_exc())
        show_line(
            "This is a fault in Edgesmith or in a plugin. Please report it with the output of `edgesmith doctor`."
        )
        return EXIT_UNEXPECTED
    return 0
