"""Spares Python's garbage collector what will stay anyway.

ONNX, onnxscript and SymPy make over 100 000 objects that live as long as the process, and each full collection walks
over all of them. The collections at the end of a process close files that are held in a cycle, so they leave out only
what is there before a plugin is imported or a file is opened.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_GROWTH = 1.25
"""Where Python holds so many times the memory blocks that it held, a full collection is due. Each takes 0.1 s or more;
to count objects, as `gc.get_freeze_count` does, takes a third of that."""

_SELDOM = (10_000, 10, 10)
"""Thresholds with which a compile of MobileNetV2 takes about a twentieth less CPU time. Higher ones save little more,
and let memory grow where a step tries many plans."""


class _State:
    """What one block leaves for the next."""

    inside = False
    """Whether a block has begun and not ended."""
    process_ends = False
    """Whether the process has nothing to do behind the present block of `collect_seldom`."""
    fewest_blocks = 0
    """Memory blocks that Python held when a block began: the fewest since the last full collection of `_freeze`."""


@contextmanager
def spare_what_exists() -> Iterator[None]:
    """Leave the objects that exist by now out of collections until the block, or the decorated function, ends.

    What is made inside is collected as usual, and afterwards everything is again, also where an exception ends the
    block. Inside another such block, or in a process that froze objects itself, nothing changes.
    """
    if _State.inside or gc.get_freeze_count():
        yield
        return
    try:
        _State.inside = True
        _freeze()
        yield
    finally:
        _State.inside = False
        gc.unfreeze()


@contextmanager
def collect_seldom(*, process_ends: bool = False) -> Iterator[None]:
    """Let collections wait for more objects until the block ends.

    For the command line: a library leaves the thresholds of its process alone.

    Args:
        process_ends: Whether the process has nothing to do behind the block, so that `import_spared` may freeze.
    """
    before = gc.get_threshold()
    try:
        gc.set_threshold(*_SELDOM)
        _State.process_ends = process_ends
        yield
    finally:
        _State.process_ends = False
        gc.set_threshold(*before)


def import_spared(*modules: str) -> None:
    """Import modules. In a process that ends with its command, all that exists then stays out of later collections.

    That holds for those at the end of the process, too, which take half a second for what SymPy, ONNX and onnxscript
    make. So call it before plugins are imported: an open file in a cycle among what is frozen would lose its end.
    """
    spare = _State.process_ends and gc.isenabled()
    if spare:
        gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        if spare:
            gc.freeze()
            gc.enable()


def _freeze() -> None:
    """Freeze all objects, behind a full collection where many have come since the last one.

    Python does not count what was frozen as new, so the garbage of one block after another would wait for a collection
    that hardly ever comes. Graphs are cycles and hold weights.
    """
    if sys.getallocatedblocks() > _GROWTH * _State.fewest_blocks > 0:
        gc.collect()
        _State.fewest_blocks = 0
    blocks = sys.getallocatedblocks()
    _State.fewest_blocks = min(_State.fewest_blocks or blocks, blocks)
    gc.freeze()
