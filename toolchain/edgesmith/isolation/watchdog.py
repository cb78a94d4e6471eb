"""Watches the process of a step from a thread, and ends it when it takes more time or memory than it may."""

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Self

import psutil

from edgesmith.isolation.limits import Isolation

_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 2.0
_FREE_SHARE = 0.9
_MIB = 1 << 20


class Watchdog:
    """Ends `process` when a limit is reached. Use as a context manager; at its end the process is gone in any case.

    Args:
        process: Leader of a process group of its own.
        isolation: The limits.
        hang_up: Called once the process is gone, since processes that it started may hold its end of the connection.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", isolation: Isolation, hang_up: Callable[[], None] = lambda: None
    ) -> None:
        self._process = process
        self._hang_up = hang_up
        self._family: set[psutil.Process] = set()
        self._seconds = isolation.time_limit_seconds
        self.memory_mib = isolation.memory_limit_mib or _most_of_what_is_free_mib()
        self.reason = ""
        """Which limit was reached; empty if none was."""
        self._start = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edgesmith-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._kill()
        self._process.wait()

    def begin(self) -> None:
        """Count the time from now: the step begins, and what came before was not its own."""
        self._start = time.monotonic()

    def rest(self) -> None:
        """Count no time until `begin`: nothing is asked of the process."""
        self._start = math.inf

    def seconds_left(self) -> float:
        """Return how long the step may still take."""
        return max(0.0, self._start + self._seconds - time.monotonic())

    @property
    def exit_code(self) -> int:
        """The return code of a process that has ended, negative for a signal."""
        return self._process.returncode or 0

    def await_end(self) -> None:
        """Give a process that no longer speaks a moment to end, so that it is known how it ended."""
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.reason = self.reason or "closed its connection to the run"

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_SECONDS) and self._process.poll() is None:
            # Children of a process that has just ended are no longer its own: who was seen stays known while it runs.
            seen = self._family | _family_of(self._process.pid)
            self._family = {member for member in seen if member.is_running()}
            if self.seconds_left() == 0:
                self._end(f"did not end within {self._seconds:g} s")
            elif (used_mib := _used_bytes(self._family, self.memory_mib * _MIB) / _MIB) > self.memory_mib:
                self._end(f"took {used_mib:.0f} MiB of memory, and may take {self.memory_mib}")
        if not self._done.is_set():
            self._hang_up()

    def _end(self, reason: str) -> None:
        self.reason = reason
        # The first signal lets the process write down where it was; the second needs no consent.
        _signal_group(self._process, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        self._kill()
        self._hang_up()
        self._done.set()

    def _kill(self) -> None:
        """End the process, its group, and what left the group but not the family."""
        _signal_group(self._process, signal.SIGKILL)
        for member in self._family:
            with suppress(psutil.Error):
                member.kill()


def _most_of_what_is_free_mib() -> int:
    # Imported here: a limit that is given needs none of the packages behind it, and imports of plugins have one.
    from edgesmith.execution.handover import free_bytes

    return max(1, int(free_bytes() * _FREE_SHARE / _MIB))


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _family_of(number: int) -> set[psutil.Process]:
    """Return a process and the processes that it started; nothing where it has ended."""
    try:
        process = psutil.Process(number)
        return {process, *process.children(recursive=True)}
    except psutil.Error:
        return set()


def _used_bytes(family: Collection[psutil.Process], enough: int) -> int:
    """Return the memory of all processes together. Above `enough`, what they share counts once, where that is known.

    Finding out takes long for large processes. Resident memory is known at once and never less.
    """
    resident = _sum(family, lambda member: member.memory_info().rss)
    if resident <= enough:
        return resident
    return _sum(family, lambda member: (found := member.memory_full_info(), getattr(found, "pss", found.rss))[1])


def _sum(family: Collection[psutil.Process], bytes_of: Callable[[psutil.Process], int]) -> int:
    total = 0
    for member in family:
        with suppress(psutil.Error):
            total += int(bytes_of(member))
    return total
