"""The method `quantize-int8`: 8-bit integers for MatMul, Gemm and Conv in the dialect of the target."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.errors import DataError, StepError
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import Dialect
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_quantization.candidates import Candidate, find_candidates, unmatched_names
from edgesmith_quantization.dynamic_form import write_dynamic
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.static_form import ActivationCode, Placement, place, write_static
from edgesmith_quantization.weights import WeightStore

_TAILS_FROM_PERCENTILE = 99.9
"""From here on it takes less to keep the outermost values than to count all of them."""


class QuantizeInt8(Method[QuantizeInt8Options]):
    """Rounds weights to int8 and activations to the dialect's 8-bit format, so that products run in integers.

    Static mode takes activation ranges from calibration data and writes Q/DQ pairs. Dynamic mode computes them at run
    time. Products of two activations, weights of other types and regions that are quantized already stay as they are,
    each with its reason in the notes.
    """

    def check(self, model: Model, context: Context[QuantizeInt8Options]) -> Verdict:
        """Return whether there is something to quantize, and the data that static mode needs."""
        options, dialect = context.options, context.dialect
        problem = _form_problem(options, dialect) or unmatched_names(model.graph, options)
        if problem:
            return Verdict.refuse(problem)
        notes = Notes()
        candidates = find_candidates(model.graph, dialect, options, notes)
        if not candidates:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(notes.skipped.items())[:3])
            return Verdict.skip(f"no product can be quantized ({reasons or 'the graph has none'})")
        if options.mode == "static" and (context.calibration is None or len(context.calibration) == 0):
            return Verdict.refuse("static mode needs calibration data; pass it with --data, or set mode to dynamic")
        return Verdict.ok(nodes=tuple(candidate.name for candidate in candidates))

    def apply(self, model: Model, context: Context[QuantizeInt8Options]) -> Model:
        """Return the quantized model.

        Raises:
            DataError: Static mode without calibration data, or data that makes an activation infinite or NaN.
            StepError: Nothing can be quantized.
        """
        options, dialect = context.options, context.dialect
        result = model.clone()
        candidates = find_candidates(result.graph, dialect, options, context.notes)
        if not candidates:
            raise _nothing_to_do(context.notes)
        editor = GraphEditor(result.graph)
        per_channel = options.per_channel and dialect.weight.granularity == "channel"
        if options.mode == "dynamic":
            store = WeightStore(editor, candidates, per_channel=per_channel, reduce_range=options.reduce_range)
            write_dynamic(editor, candidates, store)
        else:
            placement = place(result.graph, candidates, dialect)
            codes = _activation_codes(model, placement, context)
            scales = {value: code.scale for value, code in codes.items()} if dialect.bias == "int32" else {}
            store = WeightStore(
                editor,
                candidates,
                per_channel=per_channel,
                reduce_range=options.reduce_range,
                activation_scales=scales,
            )
            write_static(editor, candidates, placement, codes, store, dialect)
        common_passes.RemoveUnusedNodesPass()(result.ir)
        context.notes.remark(_summary(candidates, options.mode))
        return result


def _form_problem(options: QuantizeInt8Options, dialect: Dialect) -> str:
    """Return why the dialect has no form for these options, or an empty string."""
    if options.mode == "dynamic" and not dialect.dynamic:
        return f"{dialect.name} has no fast form for ranges computed at run time; set mode to static"
    if dialect.weight.dtype != "int8" or not dialect.weight.symmetric:
        return f"{dialect.name} stores weights as {dialect.weight.dtype}; this method writes symmetric int8"
    if options.mode == "static" and dialect.activation.dtype not in ("int8", "uint8"):
        return f"{dialect.name} stores activations as {dialect.activation.dtype}; this method writes 8 bits"
    return ""


def _activation_codes(
    model: Model, placement: Placement, context: Context[QuantizeInt8Options]
) -> dict[ir.Value, ActivationCode]:
    """Return scale and zero point of every placed value from the calibration data."""
    from edgesmith_calibration.ranges import quantization_parameters

    sources = {value: placement.range_source(value) for value in placement.values}
    ranges = _observe(model, sorted({str(source.name) for source in sources.values()}), context)
    activation = context.dialect.activation
    codes = {}
    for value, source in sources.items():
        low, high = ranges[str(source.name)]
        scale, zero_point = quantization_parameters(low, high, activation.dtype, activation.symmetric)
        codes[value] = ActivationCode(np.float32(scale), np.asarray(zero_point, activation.dtype))
    return codes


def _observe(
    model: Model, names: Sequence[str], context: Context[QuantizeInt8Options]
) -> dict[str, tuple[float, float]]:
    """Return the range of each named value by the chosen estimator."""
    from edgesmith.execution.observe import observe, run_count
    from edgesmith_calibration.observers import HistogramObserver, MinMaxObserver
    from edgesmith_calibration.ranges import estimate_range
    from edgesmith_calibration.tails import TailObserver

    options, data, form = context.options, context.calibration, context.dialect.activation
    if data is None:
        raise _no_data()
    data = data.take(options.samples)
    updates = run_count(model.ir, len(data), options.batch_size)

    def make_observer(name: str) -> MinMaxObserver | HistogramObserver | TailObserver:
        if options.range_estimator == "min-max":
            return MinMaxObserver(name)
        if options.range_estimator == "percentile" and options.percentile >= _TAILS_FROM_PERCENTILE:
            return TailObserver(name, percentile=options.percentile, updates=updates)
        return HistogramObserver(name)

    def find_range(observer: MinMaxObserver | HistogramObserver | TailObserver) -> tuple[float, float]:
        if isinstance(observer, TailObserver):
            return observer.range(options.percentile, symmetric=form.symmetric)
        found = estimate_range(
            observer,
            options.range_estimator,
            dtype=form.dtype,
            symmetric=form.symmetric,
            percentile=options.percentile,
        )
        return found.low, found.high

    observers = observe(
        model.ir,
        names,
        data,
        make_observer,
        batch_size=options.batch_size,
        threads=context.threads,
        progress=context.progress,
    )
    return {name: find_range(observer) for name, observer in observers.items()}


def _no_data() -> DataError:
    return DataError(
        "there is no calibration data for quantize-int8 in static mode",
        expected="a data source with at least one sample",
        why="activation ranges are taken from what the model computes on real inputs",
        fix="pass data with --data, or set the option mode to dynamic",
    )


def _summary(candidates: Sequence[Candidate], mode: str) -> str:
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.node.op_type] = counts.get(candidate.node.op_type, 0) + 1
    parts = ", ".join(f"{count} {operator}" for operator, count in sorted(counts.items()))
    return f"Quantized {parts} to 8 bits ({mode})."


def _nothing_to_do(notes: Notes) -> StepError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(notes.skipped.items())[:3])
    return StepError(
        f"quantize-int8 found nothing to quantize ({reasons or 'the graph has no product with a constant weight'})",
        expected="at least one MatMul, Gemm or Conv with a constant float weight",
        why="the step would change nothing",
        fix="remove the step from the recipe, or widen the options operators and skip",
    )
