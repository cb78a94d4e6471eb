"""The step's side: data, progress and trials of the run, asked for over the channel."""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from edgesmith.isolation import faults
from edgesmith.isolation.batches import unpack
from edgesmith.isolation.channel import Channel, Message
from edgesmith.isolation.request import SourceFacts
from edgesmith_calibration.sources import Batch, DataSource

if TYPE_CHECKING:
    from edgesmith.ledger import Measurement
    from edgesmith.model import Model

T = TypeVar("T")


class Run:
    """The run, from the process of a step.

    Args:
        channel: The connection to it.
        folder: Where models are exchanged.
    """

    def __init__(self, channel: Channel, folder: Path) -> None:
        self._channel = channel
        self._lock = Lock()
        self._numbers = count()
        self._left: deque[int] = deque()
        self.folder = folder

    def ask(self, call: str, **arguments: object) -> Message:
        """Return the run's answer.

        Raises:
            EdgesmithError: The run refused, as it would have refused without isolation.
            RunError: The run failed.
        """
        with self._lock:
            left = [self._left.popleft() for _ in range(len(self._left))]
            self._channel.send(Message({"call": call, "arguments": arguments, "left": left}))
            answer = self._channel.receive()
        if answer is None:
            raise SystemExit("the run is gone")
        if "error" in answer.content:
            raise faults.from_json(answer.content["error"])
        return answer

    def leave(self, number: int) -> None:
        """Say with the next question that a source, a reading, a bar or a stage is used no more.

        Nothing is sent now: a generator may be finalized at any moment, also while this thread asks something.
        """
        self._left.append(number)

    def hand_over(self, model: "Model") -> str:
        """Save a model where the run finds it, and return its name."""
        name = f"model-{next(self._numbers)}"
        model.save(self.folder / name)
        return name


class RemoteSource(DataSource):
    """A data source of the run."""

    def __init__(self, run: Run, facts: SourceFacts) -> None:
        self._run = run
        self._number = facts.number
        weakref.finalize(self, run.leave, facts.number).atexit = False
        self.description = facts.description
        self.has_labels = facts.has_labels

    def __len__(self) -> int:
        return int(self._run.ask("count_samples", source=self._number).content["count"])

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the content."""
        return str(self._run.ask("fingerprint", source=self._number).content["fingerprint"])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order, as the run's source does."""
        number = self._run.ask("read", source=self._number, batch_size=batch_size).content["number"]
        try:
            while (batch := unpack(self._run.ask("next_batch", number=number))) is not None:
                yield batch
        finally:
            self._run.leave(number)

    def select(self, indices: ArrayLike) -> DataSource:
        """Return the samples at `indices`."""
        positions = np.asarray(indices).tolist()
        return self._offered(self._run.ask("select", source=self._number, indices=positions))

    def take(self, count: int) -> DataSource:
        """Return the first `count` samples."""
        return self._offered(self._run.ask("take", source=self._number, count=count))

    def _offered(self, answer: Message) -> DataSource:
        return RemoteSource(self._run, SourceFacts(**answer.content))


class RemoteProgress:
    """Shows the advance of the step where the run shows its own."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged while the run shows how many are done."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        number = self._run.ask("open_track", description=description, total=total).content["number"]
        try:
            for item in items:
                yield item
                self._run.ask("advance", number=number)
        finally:
            self._run.leave(number)

    @contextmanager
    def stage(self, description: str) -> Iterator[None]:
        """Have the run show that work of unknown length is under way."""
        number = self._run.ask("open_stage", description=description).content["number"]
        try:
            yield
        finally:
            self._run.leave(number)


class RemoteTrial:
    """Has the run lower and time models."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def measures_latency(self) -> bool:
        """Whether there are times. The run is asked, since a result that depends on the answer is stored as such."""
        return bool(self._run.ask("measures_latency").content["measures"])

    def lower(self, model: "Model") -> "Model":
        """Return `model` lowered; see `edgesmith.host.trial.Trial`."""
        from edgesmith.model import Model

        answer = self._run.ask("lower", model=self._run.hand_over(model))
        return Model.load(self._run.folder / answer.content["model"])

    def speedups(
        self, models: "Sequence[Model]", baseline: "Model", *, max_seconds: float = 30.0
    ) -> "tuple[Measurement, ...]":
        """Return speed-ups of all `models`; see `edgesmith.host.trial.Trial`."""
        from edgesmith.ledger import Measurement

        names = [self._run.hand_over(model) for model in models]
        answer = self._run.ask(
            "speedups", models=names, baseline=self._run.hand_over(baseline), max_seconds=max_seconds
        )
        return tuple(Measurement.model_validate(one) for one in answer.content["speedups"])
