"""Metrics whose code runs in a process of its own: one for all that a run makes, fed with arrays."""

import json
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from edgesmith.errors import MeasurementError
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.places import home_of
from edgesmith.isolation import faults
from edgesmith.isolation.channel import Array, Channel, Message
from edgesmith.isolation.endings import describe_ending
from edgesmith.isolation.folder import REQUEST_FILE
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.metric_child import LABELS, OUTPUT, REFERENCE
from edgesmith.isolation.overheard import Transcript
from edgesmith.isolation.starting import start_child
from edgesmith.isolation.watchdog import Watchdog
from edgesmith_calibration.metrics import Metric

if TYPE_CHECKING:
    from edgesmith.host.records import MetricRecord
    from edgesmith.host.registry import Registry


class IsolatedMetrics:
    """Makes metrics that live in one process. Use as a context manager; at its end the process is gone.

    Args:
        registry: Where the metric comes from.
        record: Its record.
        author: How errors name it.
        isolation: Limits; the time is that of one call.
    """

    def __init__(self, registry: "Registry", record: "MetricRecord", author: str, isolation: Isolation) -> None:
        self.kind: type[Metric] = registry.load(record)
        self._plugin, self._name = registry.plugin_of(record), registry.qualified_name(record)
        self._author, self._isolation = author, isolation
        self._stack = ExitStack()
        self._numbers = count()
        self._left: deque[int] = deque()
        self._ended: MeasurementError | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self) -> Metric:
        """Return a fresh metric."""
        return _RemoteMetric(self, next(self._numbers))

    def ask(self, call: str, number: int, arrays: Mapping[str, Array] | None = None) -> Mapping[str, Any]:
        """Return the answer of the process.

        Raises:
            MeasurementError: The metric failed, or its process ended.
        """
        if self._ended is not None:
            raise self._ended
        if self._process is None:
            self._start()
        left = [self._left.popleft() for _ in range(len(self._left))]
        self._watchdog.begin()
        try:
            self._channel.send(Message({"call": call, "number": number, "left": left}, arrays or {}))
            answer = self._channel.receive()
        except OSError:
            answer = None
        self._watchdog.rest()
        if answer is None:
            self._ended = self._end()
            self._transcript.log_again()
            raise self._ended
        self._transcript.log_again()
        if "error" in answer.content:
            raise faults.from_json(answer.content["error"])
        return answer.content

    def leave(self, number: int) -> None:
        """Say with the next question that a metric is used no more."""
        self._left.append(number)

    def _start(self) -> None:
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="edgesmith-metric-")))
        self._transcript = Transcript(self._folder)
        request = {
            "import_path": sys.path,
            "plugin": asdict(PluginOrigin.of(self._plugin)),
            "metric": self._name,
            "author": self._author,
        }
        (self._folder / REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
        self._process, ours = start_child("edgesmith.isolation.metric_child", self._folder)
        self._channel = Channel(ours, takes_arrays=False)
        self._stack.callback(self._channel.close)
        self._watchdog = self._stack.enter_context(Watchdog(self._process, self._isolation, self._channel.hang_up))
        if self._process.stdin is not None:
            self._stack.enter_context(self._process.stdin)

    def _end(self) -> MeasurementError:
        self._watchdog.await_end()
        home = home_of(self._plugin.module.__name__)
        return MeasurementError(
            f"{self._author}: {describe_ending(self._watchdog, 'it had answered', self._folder, home)}",
            expected=f"a metric that answers within {self._isolation.time_limit_seconds:g} s, in "
            f"{self._watchdog.memory_mib} MiB of memory, and leaves its process alone",
            why="A stage without a score cannot be judged. Steps that are done are kept.",
            fix="Raise --time-limit-seconds or --memory-limit-mib if it needs more. Otherwise choose another metric, "
            "or report it to the author of the plugin.",
        )


class _RemoteMetric(Metric):
    def __init__(self, metrics: IsolatedMetrics, number: int) -> None:
        self._metrics, self._number = metrics, number
        metrics.ask("make", number)
        weakref.finalize(self, metrics.leave, number).atexit = False

    def update(self, outputs: Mapping[str, Array], labels: Any = None, reference: Any = None) -> None:
        arrays = {f"{OUTPUT}{name}": array for name, array in outputs.items()}
        arrays |= {f"{REFERENCE}{name}": array for name, array in (reference or {}).items()}
        self._metrics.ask("update", self._number, arrays if labels is None else {**arrays, LABELS: labels})

    def result(self) -> float:
        return float(self._metrics.ask("result", self._number)["value"])
