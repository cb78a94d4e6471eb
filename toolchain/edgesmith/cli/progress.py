"""Progress bars on standard error, with an estimate of the time left. Silent where nobody watches."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

T = TypeVar("T")


class RichProgress:
    """Shows each piece of long work as a bar, nested work below it.

    Args:
        bars: The running rich display to draw on.
    """

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged while a bar shows how many are done and the time left."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        task = self._bars.add_task(description, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    @contextmanager
    def stage(self, description: str) -> Iterator[None]:
        """Show a pulsing bar with the time that has passed while the block is open."""
        task = self._bars.add_task(description, total=None)
        try:
            yield
        finally:
            self._bars.remove_task(task)


@contextmanager
def make_progress(*, silent: bool = False) -> Iterator[Progress]:
    """Open a progress display that vanishes at the end.

    Args:
        silent: Show nothing, as `--json` asks. Nothing is shown either when standard error is not a terminal.
    """
    if silent or not sys.stderr.isatty():
        yield SilentProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        yield RichProgress(bars)
