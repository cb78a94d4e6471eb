"""What calibration data says about activations: the magnitude for the largest code, and what becomes zero."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.data import required_data
from edgesmith.execution.observe import observe
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith_calibration.histogram import HistogramObserver
from edgesmith_calibration.observer import Array, Observer
from edgesmith_calibration.observers import MinMaxObserver
from edgesmith_calibration.ranges import estimate_range
from edgesmith_calibration.sources import DataSource
from edgesmith_quantization.arithmetic.float8 import Float, Float8Format, smallest_error_peak
from edgesmith_quantization.options.fp8 import QuantizeFp8Options

_COUNTED_SAMPLES = 4
"""Samples whose magnitudes are counted, for the share that becomes zero: a share needs few."""
_DROPPED_BITS = 20
"""Bits of a float32 that do not tell bins apart: the exponent and 3 bits of the mantissa do, 8 bins to an octave."""
_BINS = 1 << 31 - _DROPPED_BITS


def magnitude_counts(values: Float) -> NDArray[np.int64]:
    """Return how many magnitudes fall into each bin between floats that share exponent and leading mantissa bits."""
    bits = np.abs(values).reshape(-1).view(np.uint32) >> _DROPPED_BITS
    return np.bincount(bits, minlength=_BINS)


def share_below(counts: NDArray[np.int64], limit: float) -> float:
    """Return which share of the counted values is below `limit` and not zero, interpolated within a bin.

    Values below the smallest normal number of float32 count as zeros.
    """
    bits = int(np.float32(limit).view(np.uint32))
    index, inside = bits >> _DROPPED_BITS, (bits & (1 << _DROPPED_BITS) - 1) / (1 << _DROPPED_BITS)
    first = int(np.finfo(np.float32).tiny.view(np.uint32)) >> _DROPPED_BITS
    below = float(counts[first:index].sum()) + inside * float(counts[index] if index >= first else 0)
    return below / max(int(counts.sum()), 1)


class MagnitudeObserver(Observer):
    """The magnitude for the largest code, by the chosen estimator, and counts of the magnitudes of a few samples."""

    def __init__(self, name: str, form: Float8Format, options: QuantizeFp8Options) -> None:
        super().__init__(name)
        self._form, self._options = form, options
        self._range = MinMaxObserver(name) if options.range_estimator == "absmax" else HistogramObserver(name)
        self._left = _COUNTED_SAMPLES
        self._counts = np.zeros(_BINS, np.int64)

    def update(self, array: Array) -> None:
        """Add the values of one sample.

        Raises:
            DataError: One is NaN or infinite.
        """
        self._range.update(array)
        self.count += array.size
        if self._left > 0:
            self._counts += magnitude_counts(np.ascontiguousarray(array, np.float32))
            self._left -= 1

    @property
    def peak(self) -> float:
        """Magnitude that the largest code should stand for."""
        return _peak(self._range, self._form, self._options)

    def flushed(self, scale: float) -> float:
        """Return the share of the counted values that becomes zero under a scale, without those that are zero."""
        return share_below(self._counts, scale * self._form.smallest / 2)


def observe_magnitudes(
    model: ir.Model, names: Sequence[str], form: Float8Format, context: Context[QuantizeFp8Options]
) -> dict[str, MagnitudeObserver]:
    """Return for each named value what one pass over the calibration data sees of its magnitudes.

    Raises:
        DataError: There is no data, or it makes a value NaN or infinite.
    """
    data, remark = _data(model, context, context.options.samples)
    if remark:
        context.notes.remark(remark)
    return observe(
        model,
        names,
        data,
        lambda name: MagnitudeObserver(name, form, context.options),
        batch_size=1,
        threads=context.threads,
        progress=context.progress,
    )


def _data(model: ir.Model, context: Context[QuantizeFp8Options], samples: int) -> tuple[DataSource, str]:
    data = required_data(
        context.calibration,
        "quantize-fp8 in static mode",
        why="scales of activations are taken from what the model computes on real inputs",
        fix="set the option mode to weight-only",
    )
    return without_padding(model, find_structure(model).attentions, data.take(samples))


def _peak(observer: MinMaxObserver | HistogramObserver, form: Float8Format, options: QuantizeFp8Options) -> float:
    if isinstance(observer, MinMaxObserver):
        return float(max(-observer.low, observer.high))
    if options.range_estimator == "mse":
        return smallest_error_peak(observer.histogram(), form)
    return estimate_range(observer, "percentile", symmetric=True, percentile=options.percentile).high
