"""Scale and zero point of activations from what calibration data puts into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgesmith.data import required_data
from edgesmith.execution.observe import observe, run_count
from edgesmith.graph.edit import constant_scalar
from edgesmith.host.context import Context
from edgesmith.host.dialect import TensorFormat
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
LARGEST_HEADROOM = 2.0
"""Codes of 16 bits reach up to so many times as far as anything that calibration saw."""
HEADROOM_DB = 75.0
"""Ratio of signal to rounding noise that an activation of 16 bits must keep to get that room."""


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
    found = {value: activation_code(seen[source], context) for value, source in sources.items()}
    # Without its outliers an activation has no rare values left that an estimator should cut off.
    return found | {
        value: activation_code(ObservedRange(each.low, each.high), context) for value, each in outliers.items()
    }


def activation_code(seen: ObservedRange, context: Context[QuantizeInt8Options]) -> ActivationCode:
    """Return scale and zero point of a range in the form of the dialect."""
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
        lambda name: PowerObserver(_estimator(name, options, context.dialect.activation, updates)),
        batch_size=options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    found = {value: observers[str(value.name)] for value in values}
    seen = {
        value: ObservedRange(*_range(each.beside, context), each.count, each.mean_square)
        for value, each in found.items()
    }
    if context.dialect.activation.bits == 8:
        return seen
    return {value: with_headroom(value, each, context.dialect.activation.bits) for value, each in seen.items()}


def with_headroom(value: ir.Value, seen: ObservedRange, bits: int) -> ObservedRange:
    """Return a range with room for what calibration did not see, where codes are fine enough to give some away.

    What saturates costs more than a coarser step, until the step is what costs: a few values that reach far beyond all
    others leave no room. A Clip bounds what is behind it, and runtimes leave it to codes only where these end there.

    Args:
        value: The activation.
        seen: Its range, and the mean of its squares.
        bits: Bits of its code.
    """
    step = (seen.high - seen.low) / (2**bits - 1)
    if step == 0:
        return seen
    spare = np.sqrt(seen.mean_square / (step**2 / 12)) / 10 ** (HEADROOM_DB / 20)
    factor = float(np.clip(spare, 1.0, LARGEST_HEADROOM))
    low, high = seen.low * factor, seen.high * factor
    producer = value.producer()
    if producer is not None and producer.op_type == "Clip" and producer.domain == "":
        bottom, top = [constant_scalar(bound) for bound in (*producer.inputs[1:3], None, None)][:2]
        low = low if bottom is None else max(low, float(bottom))
        high = high if top is None else min(high, float(top))
    return replace(seen, low=low, high=high)


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


def _estimator(name: str, options: QuantizeInt8Options, form: TensorFormat, updates: int) -> Observer:
    if options.range_estimator == "min-max" or form.bits == 16:
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
        # With 16 bits a step is so short that saturation is what costs: nothing is cut off.
        "min-max" if form.bits == 16 else options.range_estimator,
        dtype=form.dtype,
        symmetric=form.symmetric,
        percentile=options.percentile,
    )
    return found.low, found.high
