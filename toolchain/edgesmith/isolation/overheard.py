"""What the toolchain logs in the process of a plugin's code, such as whole tracebacks, for the run to log again."""

import logging
from collections.abc import Iterable

_TOOLCHAIN = logging.getLogger("edgesmith")
_LOGGER = logging.getLogger(__name__)

Lines = list[tuple[int, str]]
"""Level and text of each."""


class Overheard(logging.Handler):
    """Keeps everything that is logged in this process from now on."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: Lines = []
        _TOOLCHAIN.setLevel(logging.DEBUG)
        _TOOLCHAIN.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append((record.levelno, self.format(record)))

    def take(self) -> Lines:
        """Return what has been logged since this was last asked."""
        taken, self._lines = self._lines, []
        return taken


def log_again(lines: Iterable[tuple[int, str]]) -> None:
    """Log in the run what was logged in the process."""
    for level, text in lines:
        _LOGGER.log(level, "%s", text)
