"""The method `quantize-int8`: 8-bit integers for MatMul, Gemm and Conv in the dialect of the target."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from edgesmith.errors import RecipeError, StepError
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import raise_opset
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import Dialect
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_quantization.finding.activation_width import WIDE_OPSET, width_problem, with_chosen_width
from edgesmith_quantization.finding.attention_products import find_attention_products
from edgesmith_quantization.finding.candidates import Candidate, find_candidates, why_none
from edgesmith_quantization.finding.isolation import without_isolated_convolutions
from edgesmith_quantization.finding.protected_layers import find_protected, marked
from edgesmith_quantization.forms.dynamic_form import write_dynamic
from edgesmith_quantization.forms.outlier_form import add_outlier_products, clip_outliers
from edgesmith_quantization.forms.protected_form import divide_protected
from edgesmith_quantization.forms.static_form import ActivationCode, Placement, place, write_static
from edgesmith_quantization.forms.weights import WeightStore
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.repair.bias_correction import correct_biases
from edgesmith_quantization.repair.convolution_repair import repair_convolutions
from edgesmith_quantization.repair.outliers import Outliers
from edgesmith_quantization.repair.product_repair import repair
from edgesmith_quantization.repair.smoothing import Float64
from edgesmith_quantization.statistics.activation_grams import activation_grams
from edgesmith_quantization.statistics.activation_ranges import activation_codes
from edgesmith_quantization.statistics.output_error import close_enough, measured
from edgesmith_quantization.statistics.range_shrinking import shrink_ranges
from edgesmith_quantization.step_errors import nothing_to_do


class QuantizeInt8(Method[QuantizeInt8Options]):
    """Rounds weights to int8 and activations to the dialect's 8 or 16 bits, so that products run in integers.

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
        try:
            graph = marked(model, options).graph
        except RecipeError as error:
            return Verdict.refuse(str(error))
        candidates = find_candidates(graph, dialect, options, notes)
        if not candidates:
            return Verdict.skip(f"no product can be quantized ({why_none(graph, notes)})")
        if options.mode == "static" and not context.calibration:
            return Verdict.refuse("static mode needs calibration data; pass it with --data, or set mode to dynamic")
        return Verdict.ok(nodes=tuple(candidate.name for candidate in candidates))

    def apply(self, model: Model, context: Context[QuantizeInt8Options]) -> Model:
        """Return the quantized model.

        Raises:
            ModelError: The graph has no equal form in the opset that writes activations of 16 bits.
            DataError: Static mode without calibration data, or data that makes an activation infinite or NaN.
            RecipeError: The protection is missing, or was made for another model.
            StepError: Nothing can be quantized.
        """
        result = model.clone()
        context = with_chosen_width(result.graph, context)
        options, dialect = context.options, context.dialect
        if dialect.activation.bits == 16:
            raise_opset(result.ir, WIDE_OPSET)
        protected = find_protected(result, options)
        protected.mark(result.graph)
        candidates = find_candidates(result.graph, dialect, options, context.notes)
        if not candidates:
            raise _nothing_to_do(result.graph, context.notes)
        repaired = repair(result.ir, candidates, context)
        convolutions = repair_convolutions(result.ir, candidates, context)
        if repaired.changed or convolutions.changed:
            candidates = find_candidates(result.graph, dialect, options, context.notes)
        # Before layers are divided: what is added to them in float says nothing about who could read their codes.
        candidates = without_isolated_convolutions(result.graph, candidates, dialect, context.notes)
        division = divide_protected(result, protected, [each.name for each in candidates])
        if protected.split:
            chosen = {each.node for each in candidates}
            found = find_candidates(result.graph, dialect, options, Notes())
            candidates = tuple(each for each in found if each.node in chosen)
        outliers = repaired.outliers_of(candidates)
        if options.mode == "dynamic":
            candidates = _write_dynamic(result, candidates, outliers, context)
        else:
            candidates = _write_static(result, candidates, outliers, {**repaired.means, **convolutions.means}, context)
        result = division.finish([each.name for each in candidates], context.notes)
        common_passes.RemoveUnusedNodesPass()(result.ir)
        context.notes.remark(_summary(candidates, options.mode, dialect.activation.bits))
        return result


def _write_static(
    model: Model,
    candidates: Sequence[Candidate],
    outliers: Mapping[ir.Value, Outliers],
    means: Mapping[str, Float64],
    context: Context[QuantizeInt8Options],
) -> tuple[Candidate, ...]:
    """Write Q/DQ pairs, and return the candidates that are quantized."""
    dialect = context.dialect
    attention = tuple(find_attention_products(model.ir, context.options)) if context.options.attention else ()
    placement = place(model.graph, candidates, dialect, attention)
    codes: Mapping[ir.Value, ActivationCode] = activation_codes(model.ir, placement, outliers, context)
    candidates = _require(close_enough(model.ir, candidates, codes, outliers, context), model.graph, context.notes)
    placement = place(model.graph, candidates, dialect, attention)
    codes = _shrunk(model, candidates, placement, codes, outliers, context)
    grams = activation_grams(model.ir, candidates, context)
    editor = GraphEditor(model.graph)
    add_outlier_products(editor, candidates, outliers, {value: codes[value].limits for value in outliers})
    scales = {value: code.scale for value, code in codes.items()} if dialect.bias == "int32" else {}
    store = _store(editor, candidates, context, scales, grams)
    candidates = correct_biases(editor, candidates, store, means)
    write_static(editor, candidates, placement, codes, store, dialect)
    for node in attention:
        context.notes.skipped.pop(node_name(node), None)
    if attention:
        context.notes.remark(f"Quantized both inputs of {len(attention)} products of attention.")
    return tuple(candidates)


def _shrunk(
    model: Model,
    candidates: Sequence[Candidate],
    placement: Placement,
    codes: Mapping[ir.Value, ActivationCode],
    outliers: Mapping[ir.Value, Outliers],
    context: Context[QuantizeInt8Options],
) -> dict[ir.Value, ActivationCode]:
    """Return the codes of what is placed, with finer steps where that brings outputs closer.

    Outliers have theirs. What products read whose own output was found close enough stays as they were measured.
    """
    if not context.options.range_shrinking:
        return dict(codes)
    readers = {candidate.node for candidate in candidates} | {*placement.carried, *placement.attention}
    kept = {placement.range_source(each.activation) for each in measured(candidates, context.options)}
    free = [value for value in placement.values if placement.range_source(value) not in kept]
    searched = {value: codes[value] for value in free if value not in outliers}
    return {**codes, **shrink_ranges(model, placement, searched, readers, context)}


def _write_dynamic(
    model: Model,
    candidates: Sequence[Candidate],
    outliers: Mapping[ir.Value, Outliers],
    context: Context[QuantizeInt8Options],
) -> tuple[Candidate, ...]:
    """Write integer products with ranges computed at run time, and return the candidates that are quantized."""
    candidates = _require(close_enough(model.ir, candidates, {}, outliers, context), model.graph, context.notes)
    grams = activation_grams(model.ir, candidates, context)
    editor = GraphEditor(model.graph)
    ranges = {value: (np.float32(each.low), np.float32(each.high)) for value, each in outliers.items()}
    add_outlier_products(editor, candidates, outliers, ranges)
    clip_outliers(editor, candidates, ranges)
    write_dynamic(editor, candidates, _store(editor, candidates, context, {}, grams))
    return tuple(candidates)


def _require(candidates: tuple[Candidate, ...], graph: ir.Graph, notes: Notes) -> tuple[Candidate, ...]:
    if not candidates:
        raise _nothing_to_do(graph, notes)
    return candidates


def _store(
    editor: GraphEditor,
    candidates: Sequence[Candidate],
    context: Context[QuantizeInt8Options],
    activation_scales: Mapping[ir.Value, np.float32],
    grams: Mapping[str, NDArray[np.float64]],
) -> WeightStore:
    options = context.options
    return WeightStore(
        editor,
        candidates,
        per_channel=options.per_channel and context.dialect.weight.granularity == "channel",
        reduce_range=options.reduce_range,
        activation_scales=activation_scales,
        grams=grams,
    )


def _form_problem(options: QuantizeInt8Options, dialect: Dialect) -> str:
    """Return why the dialect has no form for these options, or an empty string."""
    if not dialect.operators:
        return dialect.refusals.get("int8") or f"{dialect.name} executes no operator in integers"
    if options.mode == "dynamic" and not dialect.dynamic:
        return f"{dialect.name} has no fast form for ranges computed at run time; set mode to static"
    if dialect.weight.dtype != "int8" or not dialect.weight.symmetric:
        return f"{dialect.name} stores weights as {dialect.weight.dtype}; this method writes symmetric int8"
    if options.mode == "static" and dialect.activation.dtype not in ("int8", "uint8"):
        return f"{dialect.name} stores activations as {dialect.activation.dtype}; this method writes 8 bits"
    width = width_problem(options, dialect)
    if width:
        return width
    if options.attention and options.mode == "dynamic":
        return "the option attention needs ranges from calibration data; set mode to static"
    if options.attention and not dialect.attention_products:
        return f"{dialect.name} computes the products of attention in float; set attention to false"
    return ""


def _summary(candidates: Sequence[Candidate], mode: str, activation_bits: int) -> str:
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.node.op_type] = counts.get(candidate.node.op_type, 0) + 1
    parts = ", ".join(f"{count} {operator}" for operator, count in sorted(counts.items()))
    widths = "8 bits" if activation_bits == 8 else f"8 bits, with activations of {activation_bits}"
    return f"Quantized {parts} to {widths} ({mode})."


def _nothing_to_do(graph: ir.Graph, notes: Notes) -> StepError:
    return nothing_to_do(
        "quantize-int8",
        why_none(graph, notes),
        expected="at least one MatMul, Gemm or Conv with a constant float weight",
        options="operators, only and skip",
    )
