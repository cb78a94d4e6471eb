"""What the toolchain logs in the process of a plugin's code, such as whole tracebacks, for the run to log again.

It lies in a file that both share. So it is there however the process ends, and keeps no answer from the run.
"""

import json
import logging
from contextlib import suppress
from pathlib import Path

from edgesmith.isolation.folder import LOG_FILE

_TOOLCHAIN = logging.getLogger("edgesmith")
_LOGGER = logging.getLogger(__name__)

_LONGEST_TEXT = 1 << 16
_MOST_BYTES = 1 << 24
_MORE = "More than this was logged in the process of a plugin, and is not kept."


class Overheard(logging.FileHandler):
    """Writes down everything that is logged in this process from now on, a line of JSON each.

    Args:
        folder: What the run shares with this process.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOG_FILE, encoding="utf-8")
        self.setFormatter(_LevelAndText())
        self._full = False
        _TOOLCHAIN.setLevel(logging.DEBUG)
        _TOOLCHAIN.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless there were too many."""
        if self._full:
            return
        if self.stream and self.stream.tell() > _MOST_BYTES:
            self._full = True
            record = logging.makeLogRecord({"levelno": logging.WARNING, "msg": _MORE})
        super().emit(record)


class _LevelAndText(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # The end of a traceback says what was raised.
        return json.dumps([record.levelno, super().format(record)[-_LONGEST_TEXT:]])


class Transcript:
    """Reads what is written down in a folder, each line once."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / LOG_FILE
        self._read_bytes = 0

    def log_again(self) -> None:
        """Log in the run what was logged in the process since this was last asked."""
        # There is none of a process that ended before it could write, and the last line may be torn.
        with suppress(OSError), self._file.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read_bytes += len(line)
                with suppress(ValueError, TypeError):
                    level, text = json.loads(line)
                    _LOGGER.log(level, "%s", text)
