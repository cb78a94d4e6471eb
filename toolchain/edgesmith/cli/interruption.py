"""Ctrl-C that always arrives."""

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
