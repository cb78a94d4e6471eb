"""Streams calibration data through a graph and keeps statistics of chosen values, never the values themselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import DataError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.progress import Progress, SilentProgress
from edgesmith_calibration.observers import Observer

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

ObserverT = TypeVar("ObserverT", bound=Observer)


def observe(
    model: ir.Model,
    values: Sequence[str],
    data: "DataSource",
    make_observer: Callable[[str], ObserverT],
    *,
    batch_size: int = 8,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, ObserverT]:
    """Return one observer per value name, updated with what the value held on every batch of `data`.

    Memory is that of running the model on one batch, plus the observers. The graph is never changed.

    Args:
        model: The graph that computes the values.
        values: Names of graph inputs or of values computed in the main graph.
        data: Calibration data; every sample is used once, in order.
        make_observer: Returns a fresh observer for a value name.
        batch_size: Samples per run; a graph with a fixed batch dimension keeps its own.
        threads: Threads used inside one operator.
        progress: Told about every batch.

    Raises:
        DataError: The data is empty, does not fit the inputs, or makes a value NaN or infinite (named in the message).
        ModelError: The graph does not load or run, or has no value of that name.
    """
    progress = progress or SilentProgress()
    observers = {name: make_observer(name) for name in values}
    inputs = {value.name for value in model.graph.inputs}
    taps = [name for name in observers if name not in inputs]
    # Values are the same at every level up to rounding, and calibration time is mostly the model's own.
    session = ReferenceSession(model, taps=taps, optimization="all", threads=threads)
    total = run_count(model, len(data), batch_size)
    if total == 0:
        raise no_data()
    for batch in progress.track(data.batches(fixed_batch(model) or batch_size), "calibrating", total):
        _update(observers, session, {name: batch.inputs[name] for name in batch.inputs if name in inputs})
    return observers


def run_count(model: ir.Model, samples: int, batch_size: int) -> int:
    """Return how many runs `observe` makes for that many samples."""
    return -(-samples // (fixed_batch(model) or batch_size))


def _update(observers: Mapping[str, ObserverT], session: ReferenceSession, feeds: Mapping[str, NDArray[Any]]) -> None:
    results = session.run(feeds)
    for name, observer in observers.items():
        # Taken out of the results, so that each array is released as soon as it has been seen.
        observer.update(results.pop(name) if name in results else feeds[name])


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
