"""Spares Python's garbage collector what will stay anyway.

ONNX, onnxscript and SymPy make over 100 000 objects that live as long as the process. Each full collection walks over
all of them, and so do the last ones, when the process ends: a tenth of the time that a small model takes.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# The system takes all memory back at the end, and what else must be cleaned up has finalizers that run by themselves.
atexit.register(gc.freeze)


@contextmanager
def spare_what_exists() -> Iterator[None]:
    """Leave the objects that exist by now out of collections until the block, or the decorated function, ends.

    What is made inside is collected as usual, and afterwards everything is again. Inside another such block, or in a
    process that froze objects itself, nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
