"""Calls code of a plugin outside of steps. An exception there is one error that names whose code it was.

Faults are caught as BaseException (a plugin may call `sys.exit`); only Ctrl-C and errors of the family pass through.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgesmith.errors import EdgesmithError
from edgesmith.host.places import home_of, own_frame, show_frame

if TYPE_CHECKING:
    from edgesmith.model import Model

_LOGGER = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


def call_plugin(
    work: Callable[[], ResultT],
    what: str,
    kind: type[EdgesmithError],
    *,
    module: str,
    passing: tuple[type[BaseException], ...] = (),
) -> ResultT:
    """Return what `work` returns.

    Args:
        work: Calls the plugin.
        what: How errors name what is called, such as "Target mine 1.0: its build".
        kind: Type of the error for a crash.
        module: Name of a module of the plugin, to say where in its code the crash was.
        passing: Further exceptions that are not the plugin's fault.

    Raises:
        EdgesmithError: It crashed, or refused with an error of its own.
    """
    innocent: tuple[type[BaseException], ...] = (EdgesmithError, KeyboardInterrupt, *passing)
    try:
        return work()
    except innocent:
        raise
    except BaseException as error:
        log_traceback(what, error)
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
        place = show_frame(own_frame([frame for frame in frames if frame[0] != __file__], home_of(module)))
        raise plugin_fault(kind, what, f"crashed with {first_words(error)}{place}") from error


def log_traceback(what: str, error: BaseException) -> None:
    """Log all of a fault that an error shows the gist of. `edgesmith --trace-plugins` prints it."""
    _LOGGER.debug("%s: the whole traceback", what, exc_info=error)


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Contain imports of a plugin's code: it finds standard input at its end, and Ctrl-C says what it interrupted.

    Every command imports plugins, so a question asked there would hold every command.
    """
    standard_input = sys.stdin
    try:
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            sys.stdin = nothing
            yield
    except KeyboardInterrupt:
        _LOGGER.warning("interrupted while importing %s", what)
        raise
    finally:
        sys.stdin = standard_input


def plugin_fault(kind: type[EdgesmithError], what: str, problem: str) -> EdgesmithError:
    """Return the error for what a plugin did outside of a step."""
    return kind(
        f"{what} {problem}",
        expected="a plugin that does what its record says, and refuses the rest with an EdgesmithError",
        why="The run cannot go on without its answer. Steps that are done are kept.",
        fix="Report it to the author of the plugin, with what --trace-plugins prints, or go without it.",
    )


def first_words(error: BaseException) -> str:
    """Return type and first line of an exception."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def sketch(model: "Model") -> Hashable:
    """Return what changes when somebody edits the graph of `model`. Contents of weights are not looked at."""
    graph = model.graph
    return (
        tuple((value.name, id(value.const_value)) for value in graph.initializers.values()),
        tuple((value.name, value.dtype, str(value.shape)) for value in (*graph.inputs, *graph.outputs)),
        tuple(
            (
                (node.name, node.domain, node.op_type),
                tuple(id(value) for value in (*node.inputs, *node.outputs)),
                tuple((name, id(attribute)) for name, attribute in node.attributes.items()),
            )
            for node in graph.all_nodes()
        ),
    )
