"""Beta-Rank: a filter's weights times the ratio of standard deviations of what it gives and what it reads.

The ratio is that of a standardised regression coefficient. Source: arXiv 2304.07461, section 3. The paper and its
published code use ratios that are inverse to each other; with input over output a dead filter ranks highest, so output
over input is the default.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_pruning.statistics.rows import kernel_of, padded, steps

Float64 = NDArray[np.float64]
Array = NDArray[np.floating]
Direction = Literal["out_over_in", "in_over_out"]

FAINTEST = 1e-6
"""Deviations up to this count as none: at such places there is no ratio."""


def beta_rank(
    weight: Array, output_deviation: Float64, input_deviation: Float64, direction: Direction = "out_over_in"
) -> Float64:
    """Return R_k = mean|W_k| * mean over places of s_out / s_in (or its inverse), scaled to 0..1, [filters].

    Args:
        weight: [filters, channels per group, *kernel].
        output_deviation: Standard deviation of each output over images, before normalization, [filters, places].
        input_deviation: Standard deviation of each window over images and its numbers, [groups, places].
        direction: Which deviation is divided by which.
    """
    filters = len(output_deviation)
    inputs = np.repeat(input_deviation, filters // len(input_deviation), axis=0)
    numerator, denominator = (output_deviation, inputs) if direction == "out_over_in" else (inputs, output_deviation)
    known = (inputs > FAINTEST) & (denominator > FAINTEST)
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=known)
    rank = np.abs(weight).reshape(filters, -1).mean(axis=1, dtype=np.float64)
    rank *= ratios.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    span = rank.max() - rank.min()
    return np.asarray((rank - rank.min()) / span) if span > 0 else np.zeros_like(rank)


class DeviationObserver:
    """Adds up, in float64, what the two standard deviations of a convolution need.

    Args:
        node: The Conv.
    """

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._groups = node.attributes.get_int("group", 1)
        self._inputs = np.zeros((2, 1, 1))
        self._outputs = np.zeros((2, 1, 1))
        self._images = 0

    def update(self, inputs: Array, outputs: Array) -> Self:
        """Add images.

        Args:
            inputs: What the convolution reads, [images, channels, *places].
            outputs: What it gives, [images, filters, *places], all batches of one size.

        Raises:
            DataError: The images have another size than those before.
        """
        images = outputs.astype(np.float64).reshape(*outputs.shape[:2], -1)
        if self._images and images.shape[1:] != self._outputs.shape[1:]:
            raise DataError(
                f"{self._node.name} gives images of different sizes",
                expected="calibration images of one size",
                why="Beta-Rank compares each place over images",
                fix="resize the images, or choose another score",
            )
        self._outputs = self._outputs + np.stack([images.sum(axis=0), np.square(images).sum(axis=0)])
        self._inputs = self._inputs + self._window_sums(inputs.astype(np.float64))
        self._images += len(outputs)
        return self

    def _window_sums(self, inputs: Float64) -> Float64:
        """Return the mean over each window of x and of x^2, summed over images, [2, groups, places]."""
        kernel = kernel_of(self._node)
        rank = len(kernel)
        grouped = inputs.reshape(len(inputs), self._groups, -1, *inputs.shape[2:])
        powers = [padded(self._node, power.mean(axis=2), kernel) for power in (grouped, np.square(grouped))]
        strides, dilations = steps(self._node, rank)
        extents = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
        places = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
        sums = []
        for power in powers:
            windows = sliding_window_view(power, extents, axis=tuple(range(2, 2 + rank)))[places]
            sums.append(windows.mean(axis=tuple(range(-rank, 0))).sum(axis=0).reshape(self._groups, -1))
        return np.stack(sums)

    @property
    def output_deviation(self) -> Float64:
        """Standard deviation of each output at each place over images, [filters, places]."""
        return _deviation(self._outputs, self._images)

    @property
    def input_deviation(self) -> Float64:
        """Standard deviation over images, channels and places of each window, [groups, places]."""
        return _deviation(self._inputs, self._images)


def over_atoms(ranks: Sequence[Float64], positions: Sequence[Sequence[Sequence[int]]], atoms: int) -> Float64:
    """Return the mean rank of each atom over all filters that it holds in all convolutions, [atoms].

    Args:
        ranks: One array of ranks for each convolution.
        positions: For each convolution the filters of each atom.
        atoms: Number of atoms.
    """
    total, count = np.zeros(atoms), np.zeros(atoms)
    for rank, places in zip(ranks, positions, strict=True):
        for atom, held in enumerate(places):
            total[atom] += rank[list(held)].sum()
            count[atom] += len(held)
    return np.asarray(total / np.maximum(count, 1))


def _deviation(sums: Float64, count: int) -> Float64:
    mean, square = sums / max(count, 1)
    return np.asarray(np.sqrt(np.maximum(square - np.square(mean), 0.0)))
