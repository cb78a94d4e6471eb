"""Starts the processes that run plugins' code."""

import socket
import subprocess
import sys
from pathlib import Path


def start_child(module: str, folder: Path, *, silent: bool = False) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Return a process that runs `module` with a connection and a folder, and our end of the connection.

    Args:
        module: A module of this package that is run as a program.
        folder: Where requests and models are exchanged.
        silent: Whether what it prints is dropped.

    Raises:
        OSError: No process can be started.
    """
    # What a plugin prints must not mix with what the command line prints as JSON.
    shown = sys.__stderr__.fileno() if sys.__stderr__ and not silent else subprocess.DEVNULL
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(folder)],
                pass_fds=(theirs.fileno(),),
                # Nothing is written to it: it is closed when the run ends, however that happens.
                stdin=subprocess.PIPE,
                stdout=shown,
                stderr=subprocess.DEVNULL if silent else None,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return process, ours
