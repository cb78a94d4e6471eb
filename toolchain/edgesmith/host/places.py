"""Where in a plugin's own code a call was. A crash deep in a library says nothing to who wrote the call to it."""

import inspect
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

Frame = tuple[str, int]
"""File and line."""


def home_of(module_name: str) -> tuple[str, ...]:
    """Return the files and folders that hold a plugin's code, by one of its modules: its package, or its one file."""
    module = sys.modules.get(module_name.partition(".")[0])
    folders = tuple(getattr(module, "__path__", ()))
    file = getattr(module, "__file__", None)
    return folders or ((file,) if file else ())


def own_frame(frames: Iterable[Frame], home: Sequence[str]) -> Frame | None:
    """Return the last of `frames` (outermost first) that lies in `home`; the last one where none does."""
    frames = tuple(frames)
    own = [frame for frame in frames if any(_lies_in(frame[0], place) for place in home)]
    return (own or frames or (None,))[-1]


def definition_of(function: object) -> Frame | None:
    """Return where a function is defined, or None where Python does not know."""
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else None


def show_frame(frame: Frame | None) -> str:
    """Return " at my_plugin.py:19", or nothing."""
    return f" at {Path(frame[0]).name}:{frame[1]}" if frame is not None else ""


def _lies_in(file: str, place: str) -> bool:
    return file == place or file.startswith(place.rstrip(os.sep) + os.sep)
