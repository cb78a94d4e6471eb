"""Ctrl-C at a moment when Python can only drop it still ends the command."""

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from edgesmith.cli.interruption import interruptions_arrive


class Interrupted:
    """Receives Ctrl-C while it is destroyed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def listening() -> Iterator[None]:
    """Take Ctrl-C, which a shell has what it starts in its background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_an_interruption_inside_a_destructor_is_raised_again() -> None:
    reached = []
    with interruptions_arrive(), pytest.raises(KeyboardInterrupt):
        victim = Interrupted()
        del victim
        reached.append("the destructor dropped it")
        time.sleep(60)
    assert reached == ["the destructor dropped it"]


def test_other_dropped_errors_go_where_they_went_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __del__(self) -> None:
            raise ValueError("dropped")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_type))
    with interruptions_arrive():
        victim = Faulty()
        del victim
    assert seen == [ValueError]
