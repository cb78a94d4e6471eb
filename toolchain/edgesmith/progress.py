"""How long work reports itself. Methods see only the `Progress` protocol; who draws the bar is the caller's choice."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives the advance of long work."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged while showing how many are done and an estimate of the time left."""
        ...

    def stage(self, description: str) -> AbstractContextManager[None]:
        """Show that one piece of work of unknown length runs while the block is open."""
        ...


class SilentProgress:
    """Progress for tests, scripts and `--json`: shows nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged."""
        yield from items

    def stage(self, description: str) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return nullcontext()
