"""SegmentedRun: data goes through a graph piece by piece, so that weights may change before the next piece runs.

Methods that treat one layer after another need the inputs of each layer as the layers before it make them *now*.
Running the whole prefix again for every layer takes time that grows with the square of the depth. Here every node runs
once: between two pieces only the values wait that a later piece reads.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.execution.observe import fixed_batch, no_data
from edgesmith.execution.reference import ReferenceSession

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Segment:
    stops: tuple[str, ...]
    """Values that the caller wants to see."""
    feeds: tuple[str, ...]
    """Values from before that its nodes read."""
    fetches: tuple[str, ...]
    """Values that its nodes make and somebody wants."""
    waiting: tuple[str, ...]
    """Values, made by now, that later segments read."""


class SegmentedRun:
    """Runs a graph on all samples from one group of values to the next.

    Args:
        model: The graph. Its initializers may get other numbers between two calls of `advance`; its nodes may not.
        stops: Groups of values to stop at, in the order of the data: what a later group needs may need what an earlier
            one holds, never the other way round.
        data: Every sample is read once, in order.
        scratch: Folder for the values that wait, where they take more than `memory_bytes`.
        batch_size: Samples per run; a graph with a fixed batch dimension keeps its own.
        threads: Threads used inside one operator.
        memory_bytes: Largest memory for values that wait between two segments.

    Raises:
        DataError: The data is empty.
        ModelError: The graph has no value of a name.
    """

    def __init__(
        self,
        model: ir.Model,
        stops: Sequence[Iterable[str]],
        data: "DataSource",
        *,
        scratch: Path,
        batch_size: int = 1,
        threads: int = 1,
        memory_bytes: int = 1 << 29,
    ) -> None:
        if not data:
            raise no_data()
        self._model, self._data = model, data
        self._batch_size, self._threads = fixed_batch(model) or batch_size, threads
        self._segments = deque(_segments(model.graph, [tuple(dict.fromkeys(names)) for names in stops]))
        self._store = _Store(scratch, memory_bytes)
        self._waiting: deque[Mapping[str, _Kept]] | None = None

    def advance(self) -> Iterator[dict[str, Array]]:
        """Run on to the next group of values and yield them, batch by batch. Must be read to its end.

        Raises:
            DataError: The data does not fit the graph.
            ModelError: A part of the graph does not load or run.
        """
        segment = self._segments.popleft()
        session: ReferenceSession | None = None
        results: deque[Mapping[str, _Kept]] = deque()
        store = self._store.next()
        for found in self._found(segment):
            if segment.fetches:
                feeds = {name: found[name].load() for name in segment.feeds if name in found}
                session = session or self._session(segment, feeds)
                found = {**found, **{name: _Kept(array) for name, array in session.run(feeds).items()}}
            yield {name: found[name].load() for name in segment.stops}
            results.append({name: store.keep(found[name]) for name in segment.waiting})
        self._waiting, self._store = results, store

    def _found(self, segment: _Segment) -> Iterator[Mapping[str, "_Kept"]]:
        """Yield what is there of each batch; it is let go as soon as the next one is asked for."""
        if self._waiting is None:
            for batch in self._data.batches(self._batch_size):
                yield {name: _Kept(np.asarray(array)) for name, array in batch.inputs.items()}
            return
        while self._waiting:
            yield self._waiting.popleft()

    def _session(self, segment: _Segment, feeds: Mapping[str, Array]) -> ReferenceSession:
        return piece_session(self._model, segment.feeds, segment.fetches, feeds, threads=self._threads)


def piece_session(
    model: ir.Model, feeds: Sequence[str], fetches: Sequence[str], arrays: Mapping[str, Array], *, threads: int = 1
) -> ReferenceSession:
    """Return a session that runs the part of a graph between some values and others.

    Args:
        model: The graph; it is not changed.
        feeds: Values that the part reads.
        fetches: Values that it makes.
        arrays: What the fed values hold in one run, for their types.
        threads: Threads used inside one operator.

    Raises:
        ModelError: The part does not load.
    """
    graph = ir.convenience.extract(model.graph, feeds, fetches)
    for value in graph.inputs:
        array = arrays.get(str(value.name))
        if array is None:  # the session says what the data lacks
            continue
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        # Batches may differ in length, and a shape that was inferred may be that of one example.
        value.shape = ir.Shape([None] * array.ndim)
    part = ir.Model(graph, ir_version=model.ir_version, functions=[*model.functions.values()])
    return ReferenceSession(part, optimization="all", threads=threads)


class _Kept:
    """An array, in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def nbytes(self) -> int:
        return int(self._array.nbytes)

    def load(self) -> Array:
        return self._array


class _Spilled(_Kept):
    """An array in a file. It is read anew each time."""

    def __init__(self, array: Array, path: Path) -> None:
        self._path, self._dtype, self._shape = path, array.dtype, array.shape
        with path.open("ab") as stream:
            self._offset = stream.tell()
            stream.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")

    @property
    def nbytes(self) -> int:
        return int(np.prod(self._shape)) * self._dtype.itemsize

    def load(self) -> Array:
        flat = np.fromfile(self._path, np.uint8, self.nbytes, offset=self._offset)
        return flat.view(self._dtype).reshape(self._shape)


class _Store:
    """Keeps arrays: the first in memory, up to a limit, the others in one file that goes with the store."""

    def __init__(self, folder: Path, memory_bytes: int, number: int = 0) -> None:
        self._folder, self._limit, self._number = folder, memory_bytes, number
        self._used = 0
        self._path = folder / f"waiting-{id(self):x}-{number}.bin"

    def keep(self, kept: _Kept) -> _Kept:
        """Return the same array, kept until the store after the next one is made."""
        if self._used + kept.nbytes <= self._limit:
            self._used += kept.nbytes
            return kept if not isinstance(kept, _Spilled) else _Kept(kept.load())
        return _Spilled(kept.load(), self._path)

    def next(self) -> "_Store":
        """Return an empty store for the next segment."""
        return _Store(self._folder, self._limit, self._number + 1)

    def __del__(self) -> None:
        self._path.unlink(missing_ok=True)


def _segments(graph: ir.Graph, stops: Sequence[tuple[str, ...]]) -> Iterator[_Segment]:
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    reads = {node: read_values(node) for node in graph}
    constant = constant_nodes(graph, reads)
    targets = [[_find(values, name) for name in names] for names in stops]
    needed = [_ancestors(each, reads) for each in targets]
    remaining = set().union(*needed)
    for index, names in enumerate(stops):
        nodes = needed[index] & remaining
        remaining -= nodes
        made = {value for node in nodes for value in node.outputs}
        feeds = {value for node in nodes - constant for value in reads[node] if value not in made}
        later = {value for node in remaining for value in reads[node]}
        later |= {value for each in targets[index + 1 :] for value in each}
        waiting = [value for value in later if varies(value, constant) and value.producer() not in remaining]
        fetched = (made & set(waiting)) | (made & set(targets[index]))
        yield _Segment(
            names,
            feeds=_names(value for value in feeds if varies(value, constant)),
            fetches=_names(fetched),
            waiting=_names(waiting),
        )


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(sorted(str(value.name) for value in values))


def varies(value: ir.Value, constant: set[ir.Node]) -> bool:
    """Return whether a value depends on an input, given the nodes that depend on none."""
    producer = value.producer()
    return producer not in constant if producer is not None else value.const_value is None


def constant_nodes(graph: ir.Graph, reads: Mapping[ir.Node, set[ir.Value]]) -> set[ir.Node]:
    """Return the nodes that depend on no input: each segment that needs them computes them itself."""
    constant: set[ir.Node] = set()
    for node in graph:
        if not any(varies(value, constant) for value in reads[node]):
            constant.add(node)
    return constant


def _ancestors(values: Iterable[ir.Value], reads: Mapping[ir.Node, set[ir.Value]]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(reads[node])
    return found


def read_values(node: ir.Node) -> set[ir.Value]:
    """Return what a node reads of the graph it stands in, bodies of control flow included."""
    found = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            inner = [each for body in bodies for each in ir.traversal.RecursiveGraphIterator(body)]
            read = {value for each in inner for value in each.inputs if value is not None}
            found |= {value for value in read if value.graph is node.graph}
    return found


def _find(values: Mapping[str, ir.Value], name: str) -> ir.Value:
    if name not in values:
        raise ModelError(
            f"the graph has no value named {name!r}",
            expected="the name of a value computed in the main graph",
            why="the run should stop there",
            fix="list the graph's values with `edgesmith inspect`",
        )
    return values[name]
