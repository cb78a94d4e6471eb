"""Ctrl-C that always arrives."""

import signal
import sys
import threading
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
            # A signal, and not `interrupt_main`, because it also ends a system call such as a sleep.
            main_thread = threading.main_thread().ident or 0
            timer = threading.Timer(_DELAY_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))
            timer.daemon = True
            timer.start()
        else:
            previous(dropped)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = previous
