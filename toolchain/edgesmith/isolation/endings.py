"""How a process ended, in words: the limit or the signal that ended it, and what it was doing then."""

import logging
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from edgesmith.host.places import own_frame, show_frame
from edgesmith.isolation.folder import STACK_FILE
from edgesmith.isolation.watchdog import Watchdog

_LOGGER = logging.getLogger(__name__)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>\S+)', re.MULTILINE)


def describe_ending(watchdog: Watchdog, work: str, folder: Path, home: Sequence[str]) -> str:
    """Return how and where a process ended before its `work` was done.

    Args:
        watchdog: What watched the process.
        work: What it was to do, such as "the step".
        folder: Where it wrote its stack when a signal ended it.
        home: Files and folders of the plugin's code.
    """
    return f"{watchdog.reason or manner(watchdog.exit_code, work)}{_place_in(folder / STACK_FILE, home)}"


def manner(code: int, work: str) -> str:
    """Return how a process with this return code, negative for a signal, ended before its `work` was done."""
    if code >= 0:
        return f"ended its process with code {code} before {work} was done"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _place_in(stack: Path, home: Sequence[str]) -> str:
    """Return where in a plugin's own code a process was, or nothing where that is not known.

    Such as ", in apply at my_plugin.py:19", or ", at my_plugin.py:19" outside every function.

    Args:
        stack: The file that the process wrote.
        home: Files and folders of the plugin's code. Where no call is in them, the innermost of all is shown.
    """
    try:
        text = stack.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    _LOGGER.debug("%s holds\n%s", stack.name, text)
    # Of the calls of one thread the innermost is written first.
    functions = {(one["file"], int(one["line"])): one["function"] for one in reversed(list(_FRAME.finditer(text)))}
    frame = own_frame(functions, home)
    if frame is None:
        return ""
    # Code outside every function is called <module>.
    function = "" if functions[frame].startswith("<") else f" in {functions[frame]}"
    return f",{function}{show_frame(frame)}"
