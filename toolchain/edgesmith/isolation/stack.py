"""What a process was doing when a signal ended it, as `faulthandler` wrote it down."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from edgesmith.host.places import own_frame, show_frame

_LOGGER = logging.getLogger(__name__)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>\S+)', re.MULTILINE)


def place_in(stack: Path, home: Sequence[str]) -> str:
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
