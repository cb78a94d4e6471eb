"""This machine as a device: commands are processes of their own, files are copied."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgesmith.device import faults
from edgesmith.device.transport import COMMAND_SECONDS, Finished, Transport, command_line

_NOT_FOUND = 127


class LocalTransport(Transport):
    """Runs commands on this machine.

    Args:
        base: Directory in which the working directory is made; empty takes the system's for temporary files.
        python: The Python interpreter to use.
    """

    is_local = True

    def __init__(self, base: str, python: str) -> None:
        super().__init__("local", base or tempfile.gettempdir(), python)

    def run(self, words: Sequence[str], *, timeout_seconds: float = COMMAND_SECONDS) -> Finished:
        """Run a command and wait for its end."""
        try:
            done = subprocess.run(
                list(words), capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise faults.took_too_long(self.address, command_line(words), timeout_seconds) from error
        except OSError as error:
            return Finished(_NOT_FOUND, "", str(error))
        return Finished(done.returncode, done.stdout, done.stderr)

    def push(self, local: Path, remote: str) -> None:
        """Copy a file."""
        self._copy(local, Path(remote))

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file."""
        self._copy(Path(remote), local)

    def reconnect(self) -> None:
        """There is no connection to lose."""

    def close(self) -> None:
        """There is no connection to end."""

    def _copy(self, source: Path, destination: Path) -> None:
        try:
            shutil.copyfile(source, destination)
        except OSError as error:
            raise faults.not_copied(self.address, str(destination), error.strerror or str(error)) from error
