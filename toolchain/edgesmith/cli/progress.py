"""Progress bars on standard error, with an estimate of the time left. Silent where nobody watches.

Commands import this module when they run, so that listings do not pay for the bars.
"""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from edgesmith.progress import Progress, SilentProgress

T = TypeVar("T")


class _Count(MofNCompleteColumn):
    """Shows "3/12", and nothing for work of unknown length."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """Shows "0:01:20 left", and nothing for work of unknown length."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task).append(" left")


class RichProgress:
    """Shows each piece of long work as a bar, nested work below it.

    Args:
        bars: The running rich display to draw on.
    """

    def __init__(self, bars: Bars) -> None:
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
    description = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), description, BarColumn(), _Count(), TimeElapsedColumn(), _Left())
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        yield RichProgress(bars)
