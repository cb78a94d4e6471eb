"""Streams calibration data through a graph and keeps statistics of chosen values, never the values themselves."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import DataError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.progress import Progress, SilentProgress
from edgesmith_calibration.observers import Observer

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

ObserverT = TypeVar("ObserverT", bound=Observer)
Feeds = Mapping[str, NDArray[Any]]

_OBSERVED_BYTES = 24 * 2**20
"""Samples run together as long as the values observed of them stay below this. Small networks gain a fifth by it."""


def observe(
    model: ir.Model,
    values: Sequence[str],
    data: "DataSource",
    make_observer: Callable[[str], ObserverT],
    *,
    batch_size: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, ObserverT]:
    """Return one observer per value name, updated with what the value held on every sample of `data`.

    Memory is that of running the model on one batch, plus the observers. The graph is never changed, and what only
    its outputs need is not computed.

    Args:
        model: The graph that computes the values.
        values: Names of graph inputs or of values computed in the main graph.
        data: Calibration data; every sample is used once, in order.
        make_observer: Returns a fresh observer for a value name, which shares nothing with others that an update
            changes: several are updated at a time.
        batch_size: Samples per run. None runs the first sample alone, and then as many neighbours of equal shapes
            together as keep the observed values small. A graph with a fixed batch dimension keeps its own.
        threads: Threads used inside one operator, and for the observers.
        progress: Told about every batch, or about every sample where `batch_size` is None.

    Raises:
        DataError: The data is empty, does not fit the inputs, or makes a value NaN or infinite (named in the message).
        ModelError: The graph does not load or run, or has no value of that name.
    """
    progress = progress or SilentProgress()
    size = fixed_batch(model) or batch_size
    total = run_count(model, len(data), batch_size)
    if total == 0:
        raise no_data()
    with ThreadPoolExecutor(threads) as workers:
        stream = _Stream(model, {name: make_observer(name) for name in values}, threads, workers)
        _feed(stream, data, size, progress, total)
    return stream.observers


def _feed(stream: "_Stream[ObserverT]", data: "DataSource", size: int | None, progress: Progress, total: int) -> None:
    """Run all samples: `size` at a time, or without one as many neighbours as keep the observed values small."""
    pending: list[Feeds] = []
    room = 1
    for batch in progress.track(data.batches(size or 1), "calibrating", total):
        feeds = {name: array for name, array in batch.inputs.items() if name in stream.inputs}
        if pending and (len(pending) == room or _shapes(feeds) != _shapes(pending[0])):
            used = stream.run(pending)
            room = 1 if size else max(1, len(pending) * _OBSERVED_BYTES // max(used, 1))
            pending = []
        pending.append(feeds)
    stream.run(pending)


def run_count(model: ir.Model, samples: int, batch_size: int | None) -> int:
    """Return how many runs `observe` makes for that many samples; where it sets their size, how many it could make."""
    return -(-samples // (fixed_batch(model) or batch_size or 1))


class _Stream(Generic[ObserverT]):
    """A session that computes the values, and the observers that see them."""

    def __init__(
        self, model: ir.Model, observers: dict[str, ObserverT], threads: int, workers: ThreadPoolExecutor
    ) -> None:
        self.observers = observers
        self._workers = workers
        self.inputs = {value.name for value in model.graph.inputs}
        taps = [name for name in observers if name not in self.inputs]
        # Values are the same at every level up to rounding, and calibration time is mostly the model's own.
        self._session = ReferenceSession(
            model, taps=taps, only_taps=bool(taps), optimization="all", threads=threads, pool=True
        )

    def run(self, samples: list[Feeds]) -> int:
        """Run samples of equal shapes together, show the values to their observers, and return the bytes of these."""
        first = samples[0]
        feeds = first if len(samples) == 1 else {name: np.concatenate([s[name] for s in samples]) for name in first}
        results = self._session.run(feeds)

        def show(name: str) -> int:
            # Taken out of the results, so that each array is released as soon as it has been seen.
            array = results.pop(name) if name in results else feeds[name]
            self.observers[name].update(array)
            return array.nbytes

        # Observers pass over large arrays outside the interpreter's lock, and each belongs to one value.
        return sum(self._workers.map(show, self.observers))


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def fixed_batch(model: ir.Model) -> int | None:
    """Return the batch size that the graph's inputs are bound to, or None if it is free."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[0], int):
            return value.shape[0]
    return None


def no_data() -> DataError:
    """Return the error for a source without samples."""
    return DataError(
        "the calibration data has no samples",
        expected="at least one sample",
        why="ranges of activations are taken from what the model computes on real inputs",
        fix="pass calibration data that is not empty",
    )
