"""Streams: how far runs of blocks turn the residual stream on calibration data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.segments import SegmentedRun
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.finding.places import Place, runs
from edgesmith_folding.scores.directions import angular_distance, block_influence, last_shown


@dataclass(frozen=True, slots=True)
class Streams:
    """Reads the residual stream of a graph on calibration data."""

    model: ir.Model
    data: DataSource
    scratch: Path
    batch_size: int = 1
    threads: int = 1
    causal: bool = False
    """Whether only the last token has seen all others, and which one that is, is known."""
    mask: str | None = None
    """Name of the input that is 0 at padding, [samples, positions]; None where there is none."""

    def influences(self, places: Sequence[Place]) -> dict[int, float]:
        """Return the block influence of each block, mean over all tokens."""
        totals, tokens = np.zeros(len(places)), np.zeros(len(places))
        for values in self._values(places):
            for index, place in enumerate(places):
                turned = block_influence(
                    _channels_last(values[place.block.input], place), _channels_last(values[place.block.output], place)
                )
                totals[index] += turned.sum()
                tokens[index] += turned.size
        means = totals / np.maximum(tokens, 1)
        return {place.number: float(mean) for place, mean in zip(places, means, strict=True)}

    def distances(self, places: Mapping[int, Place], lengths: Iterable[int]) -> dict[tuple[int, ...], float]:
        """Return the angular distance over each run of so many blocks, for each of some lengths, mean over samples.

        It is that of the last token that is not padding where later tokens are not seen, and of all tokens elsewhere.
        """
        starts = [tuple(range(first, first + length)) for length in lengths for first in places]
        whole = [run for run in starts if set(run) <= set(places) and len(runs(run, places)) == 1]
        totals = dict.fromkeys(whole, 0.0)
        samples = 0
        seen = () if self.mask is None else (self.mask,)
        for values in self._values([places[number] for run in whole for number in run], *seen):
            mask = None if self.mask is None else values[self.mask]
            ends = [(run, places[run[0]], places[run[-1]]) for run in whole]
            for run, first, last in ends:
                before = _channels_last(values[first.block.input], first)
                after = _channels_last(values[last.block.output], last)
                if self.causal and before.ndim == 3:
                    before, after = last_shown(before, mask), last_shown(after, mask)
                angles = angular_distance(before, after)
                totals[run] += float(angles.reshape(len(angles), -1).mean(axis=1).sum())
            samples += len(next(iter(values.values()))) if values else 0
        return {run: total / max(samples, 1) for run, total in totals.items()}

    def _values(self, places: Sequence[Place], *inputs: str) -> Iterable[Mapping[str, NDArray[np.floating]]]:
        names = [name for place in places for name in (place.block.input, place.block.output)]
        if not names:
            return []
        run = SegmentedRun(
            self.model,
            [[*names, *inputs]],
            self.data,
            scratch=self.scratch,
            batch_size=self.batch_size,
            threads=self.threads,
        )
        return run.advance()


def _channels_last(array: NDArray[np.floating], place: Place) -> NDArray[np.floating]:
    return np.moveaxis(array, 1, -1) if place.convolutional else array
