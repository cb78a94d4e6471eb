"""What aggregation learns from calibration data, in memory that does not grow with it."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.observers import GramObserver, Observer

Array = NDArray[Any]
Float64 = NDArray[np.float64]


class TokenGramObserver(GramObserver):
    """Sum of X X^T over images, for tokens X [batch, tokens, channels] without the protected ones in front.

    Args:
        name: The tensor's name, used in errors.
        protected: Tokens at the front that are left out.
    """

    def __init__(self, name: str = "", protected: int = 0) -> None:
        super().__init__(name)
        self._protected = protected

    def update(self, array: Array) -> None:
        """Add a batch of images."""
        super().update(np.swapaxes(array[:, self._protected :], -1, -2))


class SampleObserver(Observer):
    """A uniform sample of the rows of a tensor (reservoir sampling), so that memory is bounded.

    Args:
        name: The tensor's name, used in errors.
        rows: Largest number of rows to hold.
        seed: Decides which are held.
        protected: Tokens at the front of each image that are left out.
        channels: First and last channel that are held; None for all.
    """

    def __init__(
        self, name: str = "", *, rows: int, seed: int, protected: int = 0, channels: tuple[int, int] | None = None
    ) -> None:
        super().__init__(name)
        self._limit, self._protected = rows, protected
        self._channels = slice(None) if channels is None else slice(*channels)
        self._generator = np.random.default_rng(seed)
        self._held: list[Array] = []

    def update(self, array: Array) -> None:
        """Add the rows of an array [batch, tokens, channels]."""
        tokens = array[:, self._protected :, self._channels]
        for row in tokens.reshape(-1, tokens.shape[-1]):
            if len(self._held) < self._limit:
                self._held.append(row.copy())
            else:
                place = int(self._generator.integers(self.count + 1))
                if place < self._limit:
                    self._held[place] = row.copy()
            self.count += 1

    def merge(self, other: Self) -> None:
        """Refuse: two samples are not one sample of all rows."""
        raise TypeError("samples of rows cannot be merged")

    @property
    def rows(self) -> Float64:
        """The rows held, float64 [rows, channels]."""
        self.require_values()
        return np.stack(self._held).astype(np.float64)
