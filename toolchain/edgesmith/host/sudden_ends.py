"""Tells a later command in whose code a run ended without a word.

A plugin that calls `os._exit` or crashes in native code takes the run with it, and nobody is left to say so. So a note
lies in a folder while such code runs, locked by the run. Locks go with their process: a note without one was left.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from edgesmith.host.plugin import Plugin
from edgesmith.own_code import OWN_DISTRIBUTION
from edgesmith.store import default_store_directory

_FOLDER = "under-way"
_LONGEST_NOTE = 1000
_UNFINISHED = ".new"
_FINISHED_IN_SECONDS = 60


@contextmanager
def noted(plugin: Plugin, words: str) -> Iterator[None]:
    """Leave a note while code of a plugin runs in this process; none for Edgesmith's own.

    Args:
        plugin: Whose code it is.
        words: What runs, such as "step 2, method odd 1.0 from my-plugin 0.3".
    """
    with ExitStack() as stack:
        # Without a place for notes the work is done all the same.
        with suppress(OSError):
            if plugin.distribution != OWN_DISTRIBUTION:
                stack.enter_context(_note(default_store_directory() / _FOLDER, words))
        yield


@contextmanager
def _note(folder: Path, words: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / secrets.token_hex(8)
    unfinished = path.with_suffix(_UNFINISHED)
    writer = os.getpid()
    with unfinished.open("x", encoding="utf-8", errors="backslashreplace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(words)
            file.flush()
            # Locked before others see it.
            unfinished.rename(path)
        except OSError:
            # Such as on a file system without locks.
            unfinished.unlink(missing_ok=True)
            raise
        try:
            yield
        finally:
            # A forked worker that leaves through here has ended nothing but itself.
            if os.getpid() == writer:
                with suppress(OSError):
                    path.unlink()


def sudden_ends() -> tuple[str, ...]:
    """Return what ran when runs ended without a word, and forget it."""
    found = []
    with suppress(OSError):
        for path in sorted((default_store_directory() / _FOLDER).iterdir()):
            # A note of a run that is still there cannot be locked. On NFS only what may be written to can be.
            with suppress(OSError), path.open("r+b") as file:
                if path.suffix and _is_young(file):
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                words = file.read(_LONGEST_NOTE).decode(errors="replace")
                path.unlink()
                if not path.suffix:
                    found.append(words)
    return tuple(found)


def _is_young(file: IO[bytes]) -> bool:
    """Return whether a file was changed so lately that somebody may be about to lock it."""
    return time.time() - os.fstat(file.fileno()).st_mtime < _FINISHED_IN_SECONDS
