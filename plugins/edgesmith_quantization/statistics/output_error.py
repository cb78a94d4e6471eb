"""How far an integer product is from the float one on rows that calibration saw, and which products are too far."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.observe import observe
from edgesmith.host.context import Context
from edgesmith_quantization.arithmetic.rounding import Float, dequantize, quantize, symmetric_scale
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.forms.static_form import ActivationCode
from edgesmith_quantization.forms.weights import constant_array
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.outliers import Outliers
from edgesmith_quantization.statistics.activation_ranges import ObservedRange, activation_code, calibration
from edgesmith_quantization.statistics.row_sample import RowObserver


def output_sqnr_db(rows: Float, rounded_rows: Float, weight: Float, rounded_weight: Float) -> float:
    """Return the signal-to-noise ratio of a rounded product in decibels; infinite where nothing is lost.

    Args:
        rows: Activations, [rows, channels].
        rounded_rows: The same after rounding.
        weight: [channels, outputs].
        rounded_weight: The same after rounding.
    """
    exact = rows @ weight
    noise = float(np.square(exact - rounded_rows @ rounded_weight, dtype=np.float64).sum())
    signal = float(np.square(exact, dtype=np.float64).sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def close_enough(
    model: ir.Model,
    candidates: Sequence[Candidate],
    codes: Mapping[ir.Value, ActivationCode],
    outliers: Mapping[ir.Value, Outliers],
    context: Context[QuantizeInt8Options],
) -> tuple[Candidate, ...]:
    """Return the candidates without the matrix products whose own output keeps less than `minimum_sqnr_db`.

    Each product is measured by itself, on a sample of the rows that the float graph hands it. Those left out get their
    measured error as the reason. If none is close enough, all are left out.

    Args:
        model: The float graph that holds the candidates.
        candidates: All products that could be quantized.
        codes: Scale and zero point by activation; one that is not there gets those of its own rows, as at run time.
        outliers: Outliers by activation, whose peaks are added in float.
        context: Options and data.
    """
    least = context.options.minimum_sqnr_db
    matrices = measured(candidates, context.options)
    if least is None or not matrices or not context.calibration:
        return tuple(candidates)
    observers = observe(
        model,
        list(dict.fromkeys(str(candidate.activation.name) for candidate in matrices)),
        calibration(context),
        RowObserver,
        batch_size=context.options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    far = set()
    for candidate in matrices:
        activation = candidate.activation
        rows = observers[str(activation.name)].rows
        found_outliers = outliers.get(activation)
        code = codes.get(activation) or _own_code(rows, found_outliers, context)
        rounded = _rounded(rows, code, found_outliers)
        weight = constant_array(candidate.weight)
        matrix = weight if candidate.channel_axis == 1 else weight.T
        found = output_sqnr_db(rows, rounded, matrix, _rounded_weight(matrix, context))
        if found < least:
            far.add(candidate)
            context.notes.skip(candidate.name, f"its output would keep {found:.1f} dB, less than {least:g}")
    return tuple(candidate for candidate in candidates if candidate not in far)


def measured(candidates: Sequence[Candidate], options: QuantizeInt8Options) -> tuple[Candidate, ...]:
    """Return the products whose own output has to keep `minimum_sqnr_db`: none where no such ratio is asked for."""
    if options.minimum_sqnr_db is None:
        return ()
    return tuple(candidate for candidate in candidates if candidate.node.op_type != "Conv")


def _rounded(rows: Float, code: ActivationCode, outliers: Outliers | None) -> Float:
    """Return the rows as an integer product sees them, with the peaks of outlier channels put back."""
    scale = np.asarray(code.scale)
    rounded = dequantize(quantize(rows, scale, code.zero_point), scale, code.zero_point)
    if outliers is not None:
        chosen = rows[:, outliers.channels]
        rounded[:, outliers.channels] += chosen - np.clip(chosen, *code.limits)
    return rounded


def _own_code(rows: Float, outliers: Outliers | None, context: Context[QuantizeInt8Options]) -> ActivationCode:
    low, high = (float(rows.min()), float(rows.max())) if outliers is None else (outliers.low, outliers.high)
    return activation_code(ObservedRange(low, high), context)


def _rounded_weight(matrix: Float, context: Context[QuantizeInt8Options]) -> Float:
    """Return a weight [channels, outputs] rounded to nearest in the form that the options ask for."""
    options = context.options
    axis = 1 if options.per_channel and context.dialect.weight.granularity == "channel" else None
    scale = symmetric_scale(matrix, 63 if options.reduce_range else 127, axis)
    zero_point: NDArray[np.int8] = np.zeros(scale.shape, np.int8)
    return dequantize(quantize(matrix, scale, zero_point, axis), scale, zero_point, axis)
