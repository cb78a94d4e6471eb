"""Follows labelled channels from one axis through all relations of a graph."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from edgesmith.graph.couplings.relations import Axis, Positions, Product, Relation, Relations, Same

Labels = NDArray[np.int64]
"""For each position of an axis the channel that stands there, or -1."""

NONE = -1


class SplitError(Exception):
    """Channels of one axis reached a split into several axes; what can go are places on those instead."""

    def __init__(self, parts: tuple[Axis, ...]) -> None:
        super().__init__(parts)
        self.parts = parts


class Propagation:
    """The spread of one axis's channels over a graph.

    Each position of the seed starts as a channel of its own. A relation carries channels on to positions that had
    none, and joins the channels that meet at one position. When nothing changes any more, equal labels are what must
    go together.

    Args:
        relations: What the rules say about the graph.
        seed: The axis to start from.

    Raises:
        SplitError: The seed's channels are no atoms; the parts of a split are to be tried instead.
    """

    def __init__(self, relations: Relations, seed: Axis) -> None:
        self.labels: dict[Axis, Labels] = {}
        self.crossed: dict[Axis, None] = {}
        """Parts of products that were passed; each is a seed of its own."""
        self.tangled: dict[Axis, None] = {}
        """Axes on which two parts of a product turned out to depend on each other."""
        self._relations = relations
        self._roots = np.arange(relations.lengths[seed])
        self._queue: deque[Relation] = deque()
        self._waiting: set[int] = set()
        self._meet(seed, None, self._roots.copy())
        while self._queue:
            relation = self._queue.popleft()
            self._waiting.discard(id(relation))
            if isinstance(relation, Same):
                self._follow_same(relation)
            else:
                self._follow_product(relation)
        for axis, labels in self.labels.items():
            self.labels[axis] = self._current(labels)

    def _current(self, labels: Labels) -> Labels:
        return np.where(labels == NONE, NONE, self._roots[labels])

    def _join(self, first: Labels, second: Labels) -> None:
        """Make one channel of each pair."""
        while True:
            left, right = self._roots[first], self._roots[second]
            differs = left != right
            if not differs.any():
                return
            low, high = np.minimum(left, right)[differs], np.maximum(left, right)[differs]
            np.minimum.at(self._roots, high, low)
            while (self._roots[self._roots] != self._roots).any():
                self._roots = self._roots[self._roots]

    def _meet(
        self, axis: Axis, positions: Positions | None, incoming: Labels, relation: Relation | None = None
    ) -> None:
        """Bring labels to positions of an axis through a relation; go on from there if a position had none."""
        labels = self.labels.get(axis)
        # An axis of dynamic length repeats whatever period arrives first.
        length = len(incoming) if labels is None else len(labels)
        length = self._relations.lengths.get(axis, length)
        if positions is None and length != len(incoming):
            self.tangled.update(dict.fromkeys(relation.axes if relation else (axis,)))
            return
        if labels is None:
            labels = self.labels[axis] = np.full(length, NONE)
        where = slice(None) if positions is None else positions
        before = labels[where]
        fresh = (before == NONE) & (incoming != NONE)
        if fresh.any():
            places = np.arange(length)[where][fresh]
            labels[places] = incoming[fresh]
            for following in self._relations.touching.get(axis, ()):
                if id(following) not in self._waiting:
                    self._waiting.add(id(following))
                    self._queue.append(following)
        # A position that is listed twice took the last label; it now meets the others.
        met = labels[where]
        both = (met != NONE) & (incoming != NONE)
        self._join(met[both], incoming[both])

    def _follow_same(self, relation: Same) -> None:
        first, second = self.labels.get(relation.first), self.labels.get(relation.second)
        if first is not None:
            where = slice(None) if relation.first_positions is None else relation.first_positions
            self._meet(relation.second, relation.second_positions, first[where], relation)
        if second is not None:
            where = slice(None) if relation.second_positions is None else relation.second_positions
            self._meet(relation.first, relation.first_positions, second[where], relation)

    def _follow_product(self, relation: Product) -> None:
        lengths = [self._relations.lengths[part] for part in relation.parts]
        labelled = [index for index, part in enumerate(relation.parts) if part in self.labels]
        whole = self.labels.get(relation.whole)
        self.crossed.update(dict.fromkeys(relation.parts))
        if len(labelled) > 1:
            self.tangled.update(dict.fromkeys((relation.whole, *relation.parts)))
            return
        if labelled:
            index = labelled[0]
        else:
            if whole is None:
                return
            grid = self._current(whole).reshape(lengths)
            varying = [index for index in range(len(lengths)) if (grid != np.take(grid, [0], index)).any()]
            if len(varying) != 1:
                raise SplitError(relation.parts)
            index = varying[0]
        self._follow_part(relation, index, lengths)

    def _follow_part(self, relation: Product, index: int, lengths: list[int]) -> None:
        """Let one part of a product decide: each of its places is a slab of the whole."""
        part, size = relation.parts[index], int(np.prod(lengths))
        slabs = np.moveaxis(np.arange(size).reshape(lengths), index, 0).reshape(lengths[index], -1)
        if part in self.labels:
            spread = np.empty(size, np.int64)
            spread[slabs] = self.labels[part][:, None]
            self._meet(relation.whole, None, spread, relation)
        whole = self.labels.get(relation.whole)
        if whole is not None:
            for column in range(slabs.shape[1]):
                self._meet(part, None, whole[slabs[:, column]], relation)
            if part in self.labels:
                spread = np.empty(size, np.int64)
                spread[slabs] = self.labels[part][:, None]
                self._meet(relation.whole, None, spread, relation)
