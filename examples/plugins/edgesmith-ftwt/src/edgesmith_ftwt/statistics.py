"""What calibration images say: how strongly filters respond, and what a predictor sees. A few numbers per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith import Context, Model
from edgesmith.execution.observe import observe
from edgesmith_calibration.observer import Observer, extremes
from edgesmith_calibration.sources import DataSource
from edgesmith_ftwt.blocks import Block
from edgesmith_ftwt.options import Options

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one block."""

    responses: Array
    """Largest magnitude of each filter's channel, [images, filters]."""
    pooled: Array
    """One number for each channel of the block's input, [images, channels]."""


class ChannelObserver(Observer):
    """Keeps for each image the mean, the largest and the largest absolute number of each channel."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._found: list[tuple[Array, Array, Array]] = []

    def update(self, array: NDArray[np.generic]) -> None:
        """Add images [images, channels, *places].

        Raises:
            DataError: A number is NaN or infinite.
        """
        flat = np.asarray(array, np.float32).reshape(*array.shape[:2], -1)
        extremes(flat, self.subject)
        self._found.append((flat.mean(axis=2), flat.max(axis=2), np.abs(flat).max(axis=2)))
        self.count += len(flat)

    def all(self, which: int) -> Array:
        """Return 0: means, 1: largest, 2: largest absolute numbers, [images, channels]."""
        self.require_values()
        return np.concatenate([each[which] for each in self._found])


def look(model: Model, blocks: Sequence[Block], data: DataSource, context: Context[Options]) -> Mapping[str, Seen]:
    """Return what each block, by name, does on the data in the network without any masks.

    Args:
        model: The network that the blocks were found in.
        blocks: Where to look.
        data: Calibration images.
        context: Options, threads and progress.
    """
    values = [str(value.name) for block in blocks for value in (block.source, block.gated)]
    found = observe(
        model.ir,
        list(dict.fromkeys(values)),
        data.take(context.options.samples),
        ChannelObserver,
        batch_size=4,
        threads=context.threads,
        progress=context.progress,
    )
    pooled = 1 if context.options.pool == "max" else 0
    return {
        block.name: Seen(found[str(block.gated.name)].all(2), found[str(block.source.name)].all(pooled))
        for block in blocks
    }
