"""What calibration data says about activations: the magnitude for the largest code, and what becomes zero."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.errors import DataError
from edgesmith.execution.observe import observe
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith_calibration.histogram import HistogramObserver
from edgesmith_calibration.observer import Array, Observer
from edgesmith_calibration.observers import MinMaxObserver
from edgesmith_calibration.ranges import estimate_range
from edgesmith_calibration.sources import DataSource
from edgesmith_quantization.arithmetic.float8 import Float8Format, flushed_share, smallest_error_peak
from edgesmith_quantization.options.fp8 import QuantizeFp8Options

_FLUSHED_SAMPLES = 4
"""Samples on which values that become zero are counted; a share needs few."""


def calibrate_peaks(
    model: ir.Model, names: Sequence[str], form: Float8Format, context: Context[QuantizeFp8Options]
) -> dict[str, float]:
    """Return for each named value the magnitude that the largest code should stand for.

    Raises:
        DataError: There is no data, or it makes a value NaN or infinite.
    """
    options = context.options

    def make_observer(name: str) -> MinMaxObserver | HistogramObserver:
        return MinMaxObserver(name) if options.range_estimator == "absmax" else HistogramObserver(name)

    data, remark = _data(model, context, options.samples)
    if remark:
        context.notes.remark(remark)
    observers = observe(
        model, names, data, make_observer, batch_size=1, threads=context.threads, progress=context.progress
    )
    return {name: _peak(observer, form, options) for name, observer in observers.items()}


def observe_flushed(
    model: ir.Model, scales: Mapping[str, float], form: Float8Format, context: Context[QuantizeFp8Options]
) -> dict[str, float]:
    """Return for each value the share, from 0 to 1, that is not zero and becomes zero under its scale."""
    data, _ = _data(model, context, min(context.options.samples, _FLUSHED_SAMPLES))
    observers = observe(
        model,
        list(scales),
        data,
        lambda name: _FlushedObserver(name, scales[name], form),
        batch_size=1,
        threads=context.threads,
    )
    return {name: observer.share for name, observer in observers.items()}


def _data(model: ir.Model, context: Context[QuantizeFp8Options], samples: int) -> tuple[DataSource, str]:
    if context.calibration is None:
        raise DataError(
            "there is no calibration data for quantize-fp8 in static mode",
            expected="a data source with at least one sample",
            why="scales of activations are taken from what the model computes on real inputs",
            fix="pass data with --data, or set the option mode to weight-only",
        )
    return without_padding(model, find_structure(model).attentions, context.calibration.take(samples))


def _peak(observer: MinMaxObserver | HistogramObserver, form: Float8Format, options: QuantizeFp8Options) -> float:
    if isinstance(observer, MinMaxObserver):
        return float(max(-observer.low, observer.high))
    if options.range_estimator == "mse":
        return smallest_error_peak(observer.histogram(), form)
    return estimate_range(observer, "percentile", symmetric=True, percentile=options.percentile).high


class _FlushedObserver(Observer):
    """Counts values that are not zero and get the code of zero."""

    def __init__(self, name: str, scale: float, form: Float8Format) -> None:
        super().__init__(name)
        self._scale, self._form, self._flushed = scale, form, 0.0

    def update(self, array: Array) -> None:
        """Add one batch of values."""
        self.count += array.size
        self._flushed += array.size * flushed_share(array.astype(np.float32, copy=False), self._scale, self._form)

    @property
    def share(self) -> float:
        """Share of the values seen, from 0 to 1."""
        return self._flushed / max(self.count, 1)
