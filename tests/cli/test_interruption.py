"""Ctrl-C at a moment when Python can only drop it still ends the command."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesmith.cli.interruption import interruptions_arrive, terminations_interrupt


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


TERMINATED = """
import signal, sys
import edgesmith.host.loader as loader
from edgesmith.cli import main
from edgesmith.files import replace_directory

def terminated(**_):
    with replace_directory(sys.argv[1]) as partial:
        (partial / "half").write_text("half")
        signal.raise_signal(signal.SIGTERM)
    raise SystemExit(0)

loader.load_registry = terminated
sys.exit(main(["methods"]))
"""


def test_a_termination_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(tmp_path / "artifact")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "Nothing is half written" in done.stderr
    assert list(tmp_path.iterdir()) == []


STARTING = """
import signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from edgesmith.__main__ import main
sys.exit(main())
"""


def test_an_interruption_while_the_command_starts_shows_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "Interrupted. Nothing was begun.\n"


def test_who_handles_terminations_already_goes_on_doing_so() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with terminations_interrupt():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
