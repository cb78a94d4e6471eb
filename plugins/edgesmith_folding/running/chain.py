"""BlockChain: one session for each block, so that any blocks can be left out without a new graph."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.segments import constant_nodes, piece_session, read_values, varies
from edgesmith_folding.finding.places import Place

Arrays = Mapping[str, NDArray[Any]]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Piece:
    place: Place | None
    """The block that it is; None for what stands between blocks."""
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


class BlockChain:
    """Runs a graph with some of its blocks left out: their output is then their input.

    Args:
        model: The graph; it is not changed.
        places: Its blocks; those with an obstacle run as part of what stands around them.
        threads: Threads used inside one operator.
    """

    def __init__(self, model: ir.Model, places: Sequence[Place], *, threads: int = 1) -> None:
        self._model, self._threads = model, threads
        self._outputs = [str(value.name) for value in model.graph.outputs]
        self._pieces = _pieces(model.graph, [place for place in places if not place.obstacle])
        self._sessions: dict[int, ReferenceSession] = {}

    def run(
        self, inputs: Arrays, removed: Collection[int] = (), positions: NDArray[np.intp] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs without some blocks. Caches that blocks hand out go with them.

        Args:
            inputs: One array for each input of the graph.
            removed: Numbers of the blocks to leave out.
            positions: Tokens that the part behind the last block is computed for, where it reads nothing but the
                stream; None for all.

        Raises:
            DataError: The data does not fit the graph.
            ModelError: A part of the graph does not load or run.
        """
        return self._finish(dict(inputs), 0, removed, positions)

    def run_without_each(
        self,
        inputs: Arrays,
        removed: Collection[int],
        tried: Collection[int],
        positions: NDArray[np.intp] | None = None,
    ) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield the outputs without one block more, for each block to try. What stands before it runs once for all.

        Args:
            inputs: One array for each input of the graph.
            removed: Numbers of the blocks that are left out in any case.
            tried: Numbers of the blocks to try.
            positions: As for `run`.

        Raises:
            DataError: The data does not fit the graph.
            ModelError: A part of the graph does not load or run.
        """
        values = dict(inputs)
        for index, piece in enumerate(self._pieces):
            number = None if piece.place is None else piece.place.number
            if number is not None and number in tried and number not in removed:
                yield number, self._finish(dict(values), index, {*removed, number}, positions)
            self._advance(values, index, removed)

    def run_with_each(
        self,
        inputs: Arrays,
        others: Callable[[int], Iterable[tuple[Key, ir.Model]]],
        positions: NDArray[np.intp] | None = None,
    ) -> Iterator[tuple[Key, dict[str, NDArray[Any]]]]:
        """Yield the outputs with one block as another graph has it. What stands before it runs once for all.

        Args:
            inputs: One array for each input of the graph.
            others: Returns for the number of a block the graphs to take it from, each with a key. They are read before
                the next one is asked for.
            positions: As for `run`.

        Raises:
            DataError: The data does not fit the graph.
            ModelError: A part of the graph does not load or run.
        """
        values = dict(inputs)
        for index, piece in enumerate(self._pieces):
            feeds = {name: values[name] for name in piece.feeds if name in values}
            for key, other in () if piece.place is None else others(piece.place.number):
                session = piece_session(other, piece.feeds, piece.fetches, feeds, threads=self._threads)
                yield key, self._finish(values | session.run(feeds), index + 1, (), positions)
            self._advance(values, index, ())

    def _finish(
        self,
        values: dict[str, NDArray[Any]],
        start: int,
        removed: Collection[int],
        positions: NDArray[np.intp] | None = None,
    ) -> dict[str, NDArray[Any]]:
        for index in range(start, len(self._pieces)):
            piece = self._pieces[index]
            last = index == len(self._pieces) - 1 and piece.place is None and len(piece.feeds) == 1
            if last and positions is not None and values[piece.feeds[0]].ndim == 3:
                values[piece.feeds[0]] = values[piece.feeds[0]][:, positions]
            self._advance(values, index, removed)
        return {name: values[name] for name in self._outputs if name in values}

    def _advance(self, values: dict[str, NDArray[Any]], index: int, removed: Collection[int]) -> None:
        piece = self._pieces[index]
        if piece.place is not None and piece.place.number in removed:
            values[piece.place.block.output] = values[piece.place.block.input]
            return
        feeds = {name: values[name] for name in piece.feeds if name in values}
        if index not in self._sessions:
            self._sessions[index] = piece_session(self._model, piece.feeds, piece.fetches, feeds, threads=self._threads)
        values.update(self._sessions[index].run(feeds))


def _pieces(graph: ir.Graph, places: Sequence[Place]) -> list[_Piece]:
    """Cut a graph into blocks and what stands before, between and behind them, in an order in which they can run."""
    nodes = list(graph)
    order = {node: index for index, node in enumerate(nodes)}
    places = sorted(places, key=lambda place: max(order[node] for node in place.nodes))
    owner = {node: 2 * index + 1 for index, place in enumerate(places) for node in place.nodes}
    reads = {node: read_values(node) for node in nodes}
    constant = constant_nodes(graph, reads)
    level: dict[ir.Node, int] = {}
    for node in nodes:
        producers = [value.producer() for value in reads[node]]
        before = max((level.get(producer, 0) for producer in producers if producer is not None), default=0)
        # What reads a block runs behind it: with even numbers, between two blocks.
        level[node] = owner.get(node, before + before % 2)
    wanted_at: dict[ir.Value, set[int]] = {value: {-1} for value in graph.outputs}
    for node in nodes:
        for value in reads[node]:
            wanted_at.setdefault(value, set()).add(level[node])
    pieces = []
    for number in range(2 * len(places) + 1):
        inside = {node for node in nodes if level[node] == number and node not in constant}
        made = {value for node in inside for value in node.outputs}
        feeds = {value for node in inside for value in reads[node] if value not in made and varies(value, constant)}
        wanted = {value for value in made if wanted_at.get(value, set()) - {number}}
        place = places[number // 2] if number % 2 else None
        if wanted:
            pieces.append(_Piece(place, _names(feeds), _names(wanted)))
    return pieces


def _names(values: Collection[ir.Value]) -> tuple[str, ...]:
    return tuple(sorted(str(value.name) for value in values))
