"""Scale and zero point of activations from what calibration data puts into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgesmith.data import required_data
from edgesmith.execution.observe import observe, run_count
from edgesmith.host.context import Context
from edgesmith_calibration.observers import HistogramObserver, MinMaxObserver, Observer
from edgesmith_calibration.power import PowerObserver
from edgesmith_calibration.ranges import estimate_range, quantization_parameters
from edgesmith_calibration.tails import TailObserver
from edgesmith_quantization.forms.static_form import ActivationCode, Placement
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.outliers import Outliers

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

_TAILS_FROM_PERCENTILE = 99.9
"""From here on it takes less to keep the outermost values than to count all of them."""


@dataclass(frozen=True, slots=True)
class ObservedRange:
    """What calibration data puts into one activation."""

    low: float
    high: float
    """Ends by the chosen estimator."""
    count: int = 0
    """Values seen."""
    mean_square: float = 0.0


def activation_codes(
    model: ir.Model, placement: Placement, outliers: Mapping[ir.Value, Outliers], context: Context[QuantizeInt8Options]
) -> dict[ir.Value, ActivationCode]:
    """Return scale and zero point of every placed value from the calibration data.

    Args:
        model: The float graph that holds the placed values.
        placement: Which values get a Q/DQ pair.
        outliers: Outliers by activation; its range is that of the other channels.
        context: Options, dialect and data.

    Raises:
        DataError: There is no data, or it makes a value NaN or infinite.
    """
    sources = {value: placement.range_source(value) for value in placement.values if value not in outliers}
    seen = observe_ranges(model, list(dict.fromkeys(sources.values())), context) if sources else {}
    found = {value: _code(seen[source], context) for value, source in sources.items()}
    # Without its outliers an activation has no rare values left that an estimator should cut off.
    return found | {value: _code(ObservedRange(each.low, each.high), context) for value, each in outliers.items()}


def _code(seen: ObservedRange, context: Context[QuantizeInt8Options]) -> ActivationCode:
    form = context.dialect.activation
    scale, zero_point = quantization_parameters(seen.low, seen.high, form.dtype, form.symmetric)
    return ActivationCode(np.float32(scale), np.asarray(zero_point, form.dtype), seen.count, seen.mean_square)


def observe_ranges(
    model: ir.Model, values: Sequence[ir.Value], context: Context[QuantizeInt8Options]
) -> dict[ir.Value, ObservedRange]:
    """Return the range of each value by the chosen estimator. Arguments and errors as in `activation_codes`."""
    options, data = context.options, calibration(context)
    updates = run_count(model, len(data), options.batch_size)
    observers = observe(
        model,
        sorted(str(value.name) for value in values),
        data,
        lambda name: PowerObserver(_estimator(name, options, updates)),
        batch_size=options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    found = {value: observers[str(value.name)] for value in values}
    return {
        value: ObservedRange(*_range(each.beside, context), each.count, each.mean_square)
        for value, each in found.items()
    }


def calibration(context: Context[QuantizeInt8Options]) -> "DataSource":
    """Return the samples to calibrate with.

    Raises:
        DataError: There are none.
    """
    data = required_data(
        context.calibration,
        "quantize-int8 in static mode",
        why="activation ranges are taken from what the model computes on real inputs",
        fix="set the option mode to dynamic",
    )
    return data.take(context.options.samples)


def _estimator(name: str, options: QuantizeInt8Options, updates: int) -> Observer:
    if options.range_estimator == "min-max":
        return MinMaxObserver(name)
    if options.range_estimator == "percentile" and options.percentile >= _TAILS_FROM_PERCENTILE:
        return TailObserver(name, percentile=options.percentile, updates=updates)
    return HistogramObserver(name)


def _range(observer: Observer, context: Context[QuantizeInt8Options]) -> tuple[float, float]:
    options, form = context.options, context.dialect.activation
    if isinstance(observer, TailObserver):
        return observer.range(options.percentile, symmetric=form.symmetric)
    if not isinstance(observer, MinMaxObserver | HistogramObserver):
        raise TypeError(type(observer).__name__)  # _estimator makes these three
    found = estimate_range(
        observer,
        options.range_estimator,
        dtype=form.dtype,
        symmetric=form.symmetric,
        percentile=options.percentile,
    )
    return found.low, found.high
