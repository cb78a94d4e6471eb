"""What a step asks of the run, over a line in one process: nothing is kept too long, nothing is asked at a bad time."""

import gc
import math
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
import pytest

from edgesmith.host.context import Context
from edgesmith.isolation.channel import Channel, Message
from edgesmith.isolation.remote import RemoteProgress, RemoteSource, RemoteTrial, Run
from edgesmith.isolation.request import SourceFacts
from edgesmith.isolation.services import Services
from edgesmith.testing import fake_dialect, tiny_mlp
from edgesmith_calibration.sources import ArraySource, DataSource

SAMPLES = np.arange(24, dtype=np.float32).reshape(12, 2)


class Kept(ArraySource):
    """Remembers which selections are alive."""

    def __init__(self) -> None:
        super().__init__({"x": SAMPLES})
        self.alive: WeakSet[DataSource] = WeakSet()

    def select(self, indices: object) -> DataSource:
        selection = super().select(indices)
        self.alive.add(selection)
        return selection


class Timing:
    """A trial that says how long it was given, and how often it was asked whether there are times."""

    def __init__(self) -> None:
        self.max_seconds: list[float] = []
        self.asked = 0

    @property
    def measures_latency(self) -> bool:
        self.asked += 1
        return True

    def speedups(self, models: object, baseline: object, *, max_seconds: float) -> tuple[()]:
        self.max_seconds.append(max_seconds)
        return ()


class Shown:
    """Writes down what a run shows, and when it ends."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def track(self, items: Iterable[object], description: str, total: int | None = None) -> Iterator[object]:
        with self.stage(description):
            for item in items:
                yield item
                self.events.append("one more")

    @contextmanager
    def stage(self, description: str) -> Iterator[None]:
        self.events.append(description)
        try:
            yield
        finally:
            self.events.append(f"end of {description}")


class Line:
    """A step and its run, with a thread between them."""

    def __init__(self, folder: Path) -> None:
        self.source, self.trial, self.shown = Kept(), Timing(), Shown()
        ours, theirs = socket.socketpair()
        self.channel = Channel(theirs, takes_arrays=True)
        self.run = Run(self.channel, folder)
        context = Context(None, fake_dialect(), folder, self.source, trial=self.trial, progress=self.shown)
        services = Services(context, folder)
        self.facts: SourceFacts = services.offer(self.source)
        watchdog = SimpleNamespace(begin=lambda: None, seconds_left=lambda: 7.5)
        listening = Channel(ours, takes_arrays=False)
        self.thread = Thread(target=services.serve, args=(listening, watchdog), daemon=True)
        self.thread.start()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.channel.send(Message({"call": "done"}))
    line.thread.join()
    line.channel.close()


def test_selections_that_are_used_no_more_are_forgotten(line: Line) -> None:
    source = RemoteSource(line.run, line.facts)
    for first in range(10):
        (batch,) = source.select([first, first + 1]).batches(2)
        assert np.array_equal(batch.inputs["x"], SAMPLES[first : first + 2])
    gc.collect()
    assert len(source) == 12
    assert not line.source.alive


def test_a_selection_outlives_what_it_was_made_of(line: Line) -> None:
    selection = RemoteSource(line.run, line.facts).select([1, 2, 3, 4]).select([0, 2])
    gc.collect()
    assert len(selection) == 2
    (batch,) = selection.batches(8)
    assert np.array_equal(batch.inputs["x"], SAMPLES[[1, 3]])


def test_a_reading_collected_in_the_middle_of_a_question_waits_for_the_next(line: Line) -> None:
    source = RemoteSource(line.run, line.facts)
    reading = source.batches(1)
    next(reading)
    cycle: list[object] = [reading]
    cycle.append(cycle)
    del reading, cycle
    send = line.channel.send

    def collect_and_send(message: Message) -> None:
        gc.collect()
        send(message)

    line.channel.send = collect_and_send  # type: ignore[method-assign]
    counted: list[int] = []
    asking = Thread(target=lambda: counted.append(len(source)), daemon=True)
    asking.start()
    # It either waits for itself forever or is done at once.
    asking.join(20)
    assert counted == [12]


def test_bars_and_stages_end_before_the_next_begins(line: Line) -> None:
    progress = RemoteProgress(line.run)
    with progress.stage("a stage"):
        assert list(progress.track(range(3), "a bar")) == [0, 1, 2]
    assert list(progress.track(iter("xy"), "another")) == ["x", "y"]
    with progress.stage("the last"):
        pass
    assert line.shown.events == [
        *("a stage", "a bar", "one more", "one more", "one more", "end of a bar", "end of a stage"),
        *("another", "one more", "one more", "end of another", "the last"),
    ]


def test_the_run_is_asked_for_times_when_the_step_asks(line: Line) -> None:
    trial = RemoteTrial(line.run)
    assert line.trial.asked == 0
    assert trial.measures_latency and line.trial.asked == 1


@pytest.mark.parametrize(("asked", "given"), [(1e9, 7.5), (math.inf, 7.5), (2.0, 2.0)])
def test_a_trial_ends_within_the_limit_of_the_step(line: Line, asked: float, given: float) -> None:
    model = tiny_mlp()
    RemoteTrial(line.run).speedups([model], model, max_seconds=asked)
    assert line.trial.max_seconds == [given]
