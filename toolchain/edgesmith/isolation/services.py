"""The run's side of an isolated step: answers what its process asks for, which is data, progress and trials."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.isolation import faults
from edgesmith.isolation.batches import pack
from edgesmith.isolation.channel import Channel, Message
from edgesmith.isolation.request import SourceFacts

if TYPE_CHECKING:
    from edgesmith.host.context import Context
    from edgesmith.isolation.watchdog import Watchdog
    from edgesmith.model import Model
    from edgesmith_calibration.sources import Batch, DataSource

Answer = Message | Mapping[str, object]


class Services:
    """Answers one process.

    Args:
        context: What the step may use.
        folder: Where models are exchanged.
    """

    def __init__(self, context: "Context[Any]", folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._numbers = count()
        self._seconds_left: Callable[[], float] = lambda: math.inf
        self._sources: dict[int, DataSource] = {}
        self._readings: dict[int, Iterator[Batch]] = {}
        self._tracks: dict[int, Iterator[None]] = {}
        self._stages: dict[int, AbstractContextManager[None]] = {}
        self._answers: Mapping[str, Callable[..., Answer]] = {
            "count_samples": self._count_samples,
            "fingerprint": self._fingerprint,
            "select": self._select,
            "take": self._take,
            "read": self._read,
            "next_batch": self._next_batch,
            "open_track": self._open_track,
            "advance": self._advance,
            "open_stage": self._open_stage,
            "measures_latency": self._measures_latency,
            "lower": self._lower,
            "speedups": self._speedups,
        }

    def offer(self, source: "DataSource | None") -> SourceFacts | None:
        """Return how the process can ask for the samples of `source`."""
        if source is None:
            return None
        number = next(self._numbers)
        self._sources[number] = source
        return SourceFacts(number, source.description, source.has_labels)

    def serve(self, channel: Channel, watchdog: "Watchdog") -> Mapping[str, Any] | None:
        """Answer until the process says that it is done, and return what it says; None where it ends without that.

        Args:
            channel: The connection to the process.
            watchdog: Is told when Python and the toolchain are loaded there, and the step begins.
        """
        self._seconds_left = watchdog.seconds_left
        try:
            while (message := channel.receive()) is not None:
                call = message.content.get("call")
                if call == "done":
                    return message.content
                if call == "begin":
                    watchdog.begin()
                    continue
                channel.send(self._answer(str(call), message.content))
        except OSError:
            # The process ended while it was answered; whoever waits for it knows how.
            return None
        return None

    def close(self) -> None:
        """End what the process left open."""
        for number in (*self._tracks, *self._stages):
            self._close(number)

    def _answer(self, call: str, content: Mapping[str, Any]) -> Message:
        try:
            for number in content["left"]:
                self._close(number)
            answer = self._answers[call](**content["arguments"])
        except KeyboardInterrupt:
            raise
        except Exception as error:  # noqa: BLE001  raised again in the process, where the method would have met it
            return Message({"error": faults.to_json(error)})
        return answer if isinstance(answer, Message) else Message(answer)

    def _count_samples(self, source: int) -> Answer:
        return {"count": len(self._sources[source])}

    def _fingerprint(self, source: int) -> Answer:
        return {"fingerprint": self._sources[source].fingerprint}

    def _select(self, source: int, indices: list[int]) -> Answer:
        return self._offered(self._sources[source].select(indices))

    def _take(self, source: int, count: int) -> Answer:
        return self._offered(self._sources[source].take(count))

    def _offered(self, source: "DataSource") -> Answer:
        facts = self.offer(source)
        return {} if facts is None else {name: getattr(facts, name) for name in facts.__slots__}

    def _read(self, source: int, batch_size: int) -> Answer:
        number = next(self._numbers)
        self._readings[number] = self._sources[source].batches(batch_size)
        return {"number": number}

    def _next_batch(self, number: int) -> Answer:
        return pack(next(self._readings[number], None))

    def _open_track(self, description: str, total: int | None) -> Answer:
        number = next(self._numbers)
        steps = range(total) if total is not None else count()
        self._tracks[number] = (None for _ in self._context.progress.track(steps, description, total))
        next(self._tracks[number], None)
        return {"number": number}

    def _advance(self, number: int) -> Answer:
        next(self._tracks[number], None)
        return {}

    def _open_stage(self, description: str) -> Answer:
        number = next(self._numbers)
        self._stages[number] = self._context.progress.stage(description)
        self._stages[number].__enter__()
        return {"number": number}

    def _close(self, number: int) -> None:
        """Forget a source, a reading, a bar or a stage."""
        self._sources.pop(number, None)
        self._readings.pop(number, None)
        track = self._tracks.pop(number, None)
        if track is not None:
            track.close()  # type: ignore[attr-defined]
        stage = self._stages.pop(number, None)
        if stage is not None:
            stage.__exit__(None, None, None)

    def _measures_latency(self) -> Answer:
        return {"measures": self._context.trial is not None and self._context.trial.measures_latency}

    def _lower(self, model: str) -> Answer:
        if self._context.trial is None:
            return {}
        lowered = self._context.trial.lower(self._load(model))
        lowered.save(self._folder / f"{model}-lowered")
        return {"model": f"{model}-lowered"}

    def _speedups(self, models: list[str], baseline: str, max_seconds: float) -> Answer:
        if self._context.trial is None:
            return {}
        within_limit = min(max_seconds, self._seconds_left())
        tried = [self._load(model) for model in models]
        found = self._context.trial.speedups(tried, self._load(baseline), max_seconds=within_limit)
        return {"speedups": [one.model_dump(mode="json") for one in found]}

    def _load(self, name: str) -> "Model":
        from edgesmith.model import Model

        return Model.load(self._folder / name)
