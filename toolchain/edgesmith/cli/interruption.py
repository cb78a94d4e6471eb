"""Ctrl-C that always arrives, and a termination that ends a command in the same way."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DELAY_SECONDS = 0.05
"""Long enough for the code that dropped the interruption, a destructor or a callback, to have ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as from `kill`, `timeout` or a container that stops.

    A KeyboardInterrupt, which everything lets through that contains faults of plugins.
    """


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """Raise Terminated on SIGTERM, so that what is half written is removed, as on Ctrl-C.

    Nothing changes where the signal is ignored or handled already, and in threads, which receive no signals.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise Terminated


@contextmanager
def interruptions_arrive() -> Iterator[None]:
    """Raise KeyboardInterrupt again where Python dropped it.

    A signal that comes while a destructor or a callback of C code runs is raised there, and Python can only print it
    and go on. The program would then run to its end as if nobody had pressed Ctrl-C.
    """
    previous = sys.unraisablehook

    def raise_again(dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # A threading.Timer would have this function wait until it runs, and on a busy machine go off in that time:
            # what is raised in here is dropped for good.
            leaving = threading.Event()
            _thread.start_new_thread(_interrupt, (leaving,))
            leaving.set()
        else:
            previous(dropped)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _interrupt(leaving: threading.Event) -> None:
    """Interrupt the main thread soon after an event.

    By a signal, and not by `interrupt_main`, because it also ends a system call such as a sleep.
    """
    leaving.wait()
    time.sleep(_DELAY_SECONDS)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
