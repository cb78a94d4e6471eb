"""Watches the process of a step from a thread, and ends it when it takes more time or memory than it may."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Self

import psutil

from edgesmith.execution.handover import free_bytes
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
    """

    def __init__(self, process: "subprocess.Popen[bytes]", isolation: Isolation) -> None:
        self._process = process
        self._seconds = isolation.time_limit_seconds
        self.memory_mib = isolation.memory_limit_mib or max(1, int(free_bytes() * _FREE_SHARE / _MIB))
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
        _signal_group(self._process, signal.SIGKILL)
        self._process.wait()

    def begin(self) -> None:
        """Count the time from now: the step begins, and what came before was not its own."""
        self._start = time.monotonic()

    def await_end(self) -> None:
        """Give a process that no longer speaks a moment to end, so that it is known how it ended."""
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.reason = self.reason or "closed its connection to the run"

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            used_mib = _resident_bytes(self._process.pid) / _MIB
            if time.monotonic() - self._start > self._seconds:
                self._end(f"did not end within {self._seconds:g} s")
            elif used_mib > self.memory_mib:
                self._end(f"took {used_mib:.0f} MiB of memory, and may take {self.memory_mib}")

    def _end(self, reason: str) -> None:
        self.reason = reason
        # The first signal lets the process write down where it was; the second needs no consent.
        _signal_group(self._process, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        _signal_group(self._process, signal.SIGKILL)
        self._done.set()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _resident_bytes(number: int) -> int:
    """Return the resident memory of a process and of the processes that it started; 0 where it has ended."""
    try:
        process = psutil.Process(number)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        with suppress(psutil.Error):
            total += int(member.memory_info().rss)
    return total
