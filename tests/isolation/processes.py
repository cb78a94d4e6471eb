"""Plugins that do odd things with processes, and what became of a process."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from edgesmith.isolation.watchdog import Watchdog

T = TypeVar("T")
HEAD = """
import sys
import edgesmith
from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl

@hookimpl
def register_methods():
    return [MethodRecord(name="odd", version="1.0", summary="Odd.", entry=f"{__name__}:Odd", kind=Kind.GRAPH,
        options="edgesmith.host.options:NoOptions", guarantee=Guarantee.LOSSY)]

class Odd(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
"""


def plugin(folder: Path, body: str) -> Path:
    """Write a plugin file whose method does `body` in apply."""
    path = folder / "odd_plugin.py"
    path.write_text(HEAD + "".join(f"        {line}\n" for line in body.splitlines()))
    return path


def awaited(look: Callable[[], T]) -> T:
    """Return what `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(psutil.Error, OSError):
            if found := look():
                return found
        time.sleep(0.02)
    pytest.fail("there was nothing to be seen")


def let_time_run_out_at(sign: Path, monkeypatch: pytest.MonkeyPatch, *, seconds_left: float = 0.0) -> None:
    """Have a watchdog see `seconds_left` once a plugin has made the file `sign`, and remove it.

    How fast the machine is does not matter then. The limit itself stays, for a plugin that never makes the file. The
    file must be there at two looks: before the first one, processes may have been listed that it says nothing about.
    """
    seconds_by_clock, looks = Watchdog.seconds_left, 0

    def shown(watchdog: Watchdog) -> float:
        nonlocal looks
        looks = looks + 1 if sign.exists() else 0
        if looks < 2:
            return seconds_by_clock(watchdog)
        sign.unlink()
        return seconds_left

    monkeypatch.setattr(Watchdog, "seconds_left", shown)


def ends(process: psutil.Process) -> bool:
    """Return whether a process ends. Where nobody waits for it, a zombie is all that stays."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def named_in(path: Path) -> list[psutil.Process]:
    """Return the processes whose numbers a plugin wrote into a file, as far as they are still there."""
    numbers = [int(number) for number in path.read_text().split()]
    assert numbers
    return [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
