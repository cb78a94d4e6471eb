"""Sets that grow together: what belongs to whom once ties between pairs are known (union-find)."""

from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class DisjointSets(Generic[ItemT]):
    """Items in sets, each at first in one of its own. Items compare by equality and are hashable."""

    def __init__(self) -> None:
        self._parents: dict[ItemT, ItemT] = {}

    def root(self, item: ItemT) -> ItemT:
        """Return the item that stands for the set of `item`: the same for all members of one set."""
        while (parent := self._parents.get(item, item)) != item:
            # Each step shortens the way for those who ask later.
            self._parents[item] = item = self._parents.get(parent, parent)
        return item

    def join(self, first: ItemT, second: ItemT) -> None:
        """Make one set of the sets of two items."""
        self._parents[self.root(first)] = self.root(second)
