"""Spares Python's garbage collector what will stay anyway.

ONNX, onnxscript and SymPy make over 100 000 objects that live as long as the process, and each full collection walks
over all of them. The collections at the end of a process are left alone: they close files that are held in a cycle.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spare_what_exists() -> Iterator[None]:
    """Leave the objects that exist by now out of collections until the block, or the decorated function, ends.

    What is made inside is collected as usual, and afterwards everything is again, also where an exception ends the
    block. Inside another such block, or in a process that froze objects itself, nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    try:
        gc.freeze()
        yield
    finally:
        gc.unfreeze()
