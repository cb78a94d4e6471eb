"""Tries imports in a process of their own: which of them end it, never end, or take all memory."""

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgesmith.errors import PluginError
from edgesmith.isolation.endings import describe_ending
from edgesmith.isolation.folder import REQUEST_FILE
from edgesmith.isolation.import_child import Import
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.starting import start_child
from edgesmith.isolation.watchdog import Watchdog

__all__ = ["Import", "ImportAnswer", "try_imports"]

LIMITS = Isolation(time_limit_seconds=30, memory_limit_mib=4096)
"""For each import, unless the environment gives others.

One that only says what there is takes milliseconds; one of all of torch, seconds and 1 GiB.
"""
_CHILD = "edgesmith.isolation.import_child"


@dataclass(frozen=True, slots=True)
class ImportAnswer:
    """What became of an import."""

    fault: str
    """How it broke its process; empty where it did not, whatever it raised."""
    names: tuple[str, ...] | None = None
    """Names of the records that the plugin brought; None where it did not load."""


def try_imports(imports: Sequence[Import], homes: Sequence[Sequence[str]]) -> tuple[ImportAnswer | None, ...]:
    """Return what became of each import, in order. One process does all; where it ends, the next one goes on.

    None stands for what could not be asked, since no process can be started.

    Args:
        imports: What to import.
        homes: For each, the files and folders of the plugin's code, to say where it was.
    """
    answers: list[ImportAnswer] = []
    while len(answers) < len(imports):
        found = _answers(imports[len(answers) :], homes[len(answers) :])
        if len(found) > 1 and found[-1].fault:
            # What the imports before it hold or started may have done it: ask again, with none before it.
            del found[-1]
        if not found:
            return (*answers, *(None for _ in imports[len(answers) :]))
        answers += found
    return tuple(answers)


def _answers(imports: Sequence[Import], homes: Sequence[Sequence[str]]) -> list[ImportAnswer]:
    """Return the answers of one process, the last of which may be its end; nothing where it did not begin."""
    limits = _limits()
    with ExitStack() as stack:
        try:
            folder = Path(
                stack.enter_context(TemporaryDirectory(prefix="edgesmith-imports-", ignore_cleanup_errors=True))
            )
            request = {"import_path": sys.path, "imports": [asdict(one) for one in imports]}
            (folder / REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
            # What is printed at import is printed again where the host imports it.
            process, ours = start_child(_CHILD, folder, silent=True)
        except OSError:
            return []
        stack.enter_context(ours)
        answers: list[ImportAnswer] = []
        begun = 0
        with process.stdin, Watchdog(process, limits, partial(_hang_up, ours)) as watchdog:  # type: ignore[union-attr]
            # The limit is for imports; how long the process takes to start is not theirs.
            watchdog.rest()
            for message in _messages(ours):
                if message:
                    names = message["names"]
                    answers.append(ImportAnswer(message["fault"], None if names is None else tuple(names)))
                else:
                    begun += 1
                    watchdog.begin()
            if begun > len(answers):
                watchdog.await_end()
        if begun > len(answers):
            answers.append(ImportAnswer(describe_ending(watchdog, "the import", folder, homes[len(answers)])))
        return answers


def _limits() -> Isolation:
    seconds, mib = os.environ.get("EDGESMITH_IMPORT_SECONDS"), os.environ.get("EDGESMITH_IMPORT_MIB")
    try:
        return Isolation(
            float(seconds) if seconds else LIMITS.time_limit_seconds, int(mib) if mib else LIMITS.memory_limit_mib
        )
    except ValueError as error:
        raise PluginError(
            f"the limits for imports cannot be read: {error}",
            expected="a number of seconds in EDGESMITH_IMPORT_SECONDS, a whole number in EDGESMITH_IMPORT_MIB",
            why="They say when the import of a plugin is given up.",
            fix="Correct the variable, or unset it for the default.",
        ) from error


def _messages(end: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what the process says, until it ends or a plugin writes something else into its connection."""
    with suppress(ValueError, RecursionError):
        # Bytes, since a text reader decodes many lines at once, and would lose sound ones with one that is not UTF-8.
        for line in end.makefile("rb"):
            message = json.loads(line)
            if not isinstance(message, dict) or message.keys() not in (set(), {"fault", "names"}):
                return
            yield message


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
