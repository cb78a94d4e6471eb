"""The method `quantize-weights`: weights in 8, 4 or 2 bits that are dequantized before they are multiplied."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from edgesmith.errors import RecipeError, StepError
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import raise_opset
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites, leave_alone
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import ACTIVATIONS_KEY, MINIMUM_SQNR_KEY, Dialect, WeightFormat
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import Selection, unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.mapped import WeightFile
from edgesmith.model import Model
from edgesmith_quantization.arithmetic.blocks import (
    BlockCodes,
    BlockGrid,
    dequantize_blocks,
    fit_blocks,
    half_grid,
    round_blocks,
    round_to_grid,
)
from edgesmith_quantization.arithmetic.offset_blocks import fit_offset_blocks
from edgesmith_quantization.arithmetic.rounding import Float
from edgesmith_quantization.arithmetic.second_order import output_error, refit_scales, round_second_order
from edgesmith_quantization.arithmetic.tiles import all_finite
from edgesmith_quantization.finding.block_sizes import fitting_size, size_obstacle
from edgesmith_quantization.finding.protected_layers import ProtectedLayers, find_protected, marked
from edgesmith_quantization.forms.protected_form import divide_protected
from edgesmith_quantization.forms.weight_form import BLOCK_OPSET, CHANNEL_OPSET, write_weight
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.statistics.gram_passes import Gram, with_grams
from edgesmith_quantization.step_errors import first_reasons, no_form, nothing_to_do


class QuantizeWeights(Method[QuantizeWeightsOptions]):
    """Rounds weights to few bits in blocks or channels; activations stay in float in the graph.

    Each weight is stored once, whoever reads it: a table that an embedding and a head share gets one set of codes and
    scales. Weights are taken one by one, so that memory holds one of them in float at a time.
    """

    def check(self, model: Model, context: Context[QuantizeWeightsOptions]) -> Verdict:
        """Return whether there is something to quantize, and a form for it in the dialect of the target."""
        options = context.options
        problem = _form_problem(options, context.dialect) or _unmatched(model, options)
        if problem:
            return Verdict.refuse(problem)
        notes = Notes()
        try:
            graph = marked(model, options).graph
        except RecipeError as error:
            return Verdict.refuse(str(error))
        sites = _sites(graph, context, notes)
        if not sites:
            return Verdict.skip(f"no weight can be quantized ({_reasons(notes)})")
        if options.needs.data and not context.calibration:
            return Verdict.refuse(
                "second-order rounding needs calibration data; pass it with --data, or set rounding to mse"
            )
        return Verdict.ok(nodes=tuple(node_name(node) for site in sites for node in site.nodes))

    def apply(self, model: Model, context: Context[QuantizeWeightsOptions]) -> Model:
        """Return the model with quantized weights.

        Raises:
            DataError: Second-order rounding without calibration data, or data that makes an activation infinite or NaN.
            ModelError: The graph cannot be raised to the opset that the format needs.
            RecipeError: The protection is missing, or was made for another model.
            StepError: Nothing can be quantized, or the target has no such format.
        """
        options = context.options
        problem = _form_problem(options, context.dialect)
        if problem:
            raise no_form("quantize-weights", problem)
        result = model.clone()
        raise_opset(result.ir, _needed_opset(options, context.dialect))
        protected = find_protected(result, options)
        protected.mark(result.graph)
        sites = _sites(result.graph, context, context.notes)
        if not sites:
            raise _nothing_to_do(context.notes)
        taken = [node_name(node) for site in sites for node in site.nodes]
        division = divide_protected(result, protected, taken)
        # The system keeps the files of weights for as long as the result uses them.
        with TemporaryDirectory(dir=context.scratch) as folder:
            editor = GraphEditor(result.graph, weights=WeightFile(Path(folder)))
            written = _write(editor, result, sites, protected, context)
        if not written:
            raise _nothing_to_do(context.notes)
        _allow_rounded_inputs(written, options)
        result = division.finish([node_name(node) for site in written for node in site.nodes], context.notes)
        common_passes.RemoveUnusedNodesPass()(result.ir)
        context.notes.remark(_summary(written, options, context.dialect))
        return result


def _write(
    editor: GraphEditor,
    model: Model,
    sites: Sequence[WeightSite],
    protected: ProtectedLayers,
    context: Context[QuantizeWeightsOptions],
) -> list[WeightSite]:
    """Write the codes of all weights that are finite, one after another; return these."""
    options, written = context.options, []
    grams: Iterable[tuple[WeightSite, Gram | None]]
    if options.needs.data:
        grams = with_grams(model.ir.clone(), sites, context)
    else:
        grams = ((site, None) for site in context.progress.track(sites, "rounding", len(sites)))
    for site, gram in grams:
        gram = _apart(gram, protected.inputs(site))
        if all_finite(site.rows()):
            write_weight(editor, site, _round_by_output(site, gram, options, context.dialect))
            written.append(site)
        else:
            leave_alone(site, "its weight holds NaN or infinity", context.notes.skip)
    return written


def _apart(gram: Gram | None, inputs: NDArray[np.int64]) -> Gram | None:
    """Return the Gram matrix as if protected inputs had nothing to do with others: their zeros take up no errors."""
    if gram is None or not len(inputs):
        return gram
    apart, own = gram.copy(), gram[inputs, inputs]
    apart[inputs], apart[:, inputs] = 0, 0
    apart[inputs, inputs] = own
    return apart


def _unmatched(model: Model, options: QuantizeWeightsOptions) -> str:
    """Return which patterns name no node, or an empty string."""
    kept = unmatched_names(model.graph, Selection(skip=options.float_inputs))
    return unmatched_names(model.graph, options) or kept.replace("option skip", "option float_inputs")


def _allow_rounded_inputs(sites: Sequence[WeightSite], options: QuantizeWeightsOptions) -> None:
    """Mark the products whose inputs a target may round to 8 bits, and what their outputs must keep."""
    kept = Selection(skip=options.float_inputs)
    for node in (node for site in sites for node in site.readers):
        if options.activations == "int8" and not kept.obstacle(node_name(node)):
            node.metadata_props[ACTIVATIONS_KEY] = "int8"
            if options.minimum_sqnr_db is not None:
                node.metadata_props[MINIMUM_SQNR_KEY] = str(options.minimum_sqnr_db)


def _round(site: WeightSite, options: QuantizeWeightsOptions, dialect: Dialect) -> BlockCodes:
    """Return the codes nearest to the weight."""
    bits, size, symmetric = _bits(site, options), _block_size(site, options, dialect), _symmetric(options, dialect)
    if _has_offsets(site, options, dialect):
        weight = np.ascontiguousarray(site.rows(), np.float32)
        grid = _grid(weight, bits, size, site, options, dialect)
        return BlockCodes(round_to_grid(weight, grid), grid.scale, grid.zero_point, bits, grid.block_size)
    return round_blocks(site.rows(), bits, size, symmetric, "none" if options.rounding == "nearest" else "mse")


def _round_by_output(
    site: WeightSite, gram: Gram | None, options: QuantizeWeightsOptions, dialect: Dialect
) -> BlockCodes:
    """Return codes of least output error; of least squared error of the weight where `gram` is None."""
    if gram is None:
        return _round(site, options, dialect)
    weight = np.ascontiguousarray(site.rows(), np.float32)
    bits = _bits(site, options)
    grid = _grid(weight, bits, _block_size(site, options, dialect), site, options, dialect)
    rounded = round_second_order(
        weight,
        gram,
        grid,
        damping=options.damping,
        descending=options.descending,
        refit=None if options.descending else lambda part: _grid(part, bits, part.shape[1], site, options, dialect),
    )
    refitted = refit_scales(weight, gram, rounded, damping=options.damping)
    return _in_half(weight, gram, rounded, refitted) if site.weight.dtype == ir.DataType.FLOAT16 else refitted


def _in_half(weight: Float, gram: Gram, rounded: BlockCodes, refitted: BlockCodes) -> BlockCodes:
    """Return `refitted` with float16 scales, or `rounded`, which has such already, where they lose too much."""
    stored = replace(refitted, scale=refitted.scale.astype(np.float16).astype(np.float32))
    errors = [output_error(weight, dequantize_blocks(each), gram) for each in (stored, rounded)]
    return stored if errors[0] <= errors[1] else rounded


def _grid(
    weight: Float, bits: int, size: int | None, site: WeightSite, options: QuantizeWeightsOptions, dialect: Dialect
) -> BlockGrid:
    """Return the grid of a weight or a part of it, with scales that the type of the weight holds."""
    if size is not None and _has_offsets(site, options, dialect):
        grid = fit_offset_blocks(weight, bits, size)
    else:
        grid = fit_blocks(weight, bits, size, _symmetric(options, dialect), "mse")
    return half_grid(grid) if site.weight.dtype == ir.DataType.FLOAT16 else grid


def _has_offsets(site: WeightSite, options: QuantizeWeightsOptions, dialect: Dialect) -> bool:
    """Return whether the blocks of a weight get offsets: not tables, which are selected from, nor shorter blocks."""
    size = _block_size(site, options, dialect)
    return options.offsets and size is not None and not site.gathers and site.shape[site.input_axis] % size == 0


def _bits(site: WeightSite, options: QuantizeWeightsOptions) -> int:
    return (options.table_bits or options.bits) if site.gathers else options.bits


def _block_size(site: WeightSite, options: QuantizeWeightsOptions, dialect: Dialect) -> int | None:
    """Return the block size of a weight, or None for one scale per output channel."""
    return fitting_size(site, options.block_size, _format(_bits(site, options), options, dialect))


def _sites(graph: ir.Graph, context: Context[QuantizeWeightsOptions], notes: Notes) -> list[WeightSite]:
    """Return the weights that can be quantized; one that no block size of the target divides is left alone."""
    options, found = context.options, []
    for site in find_weight_sites(graph, options.obstacle, notes.skip, operators=options.operators):
        form = _format(_bits(site, options), options, context.dialect)
        obstacle = size_obstacle(site, options.block_size, form, context.dialect.name)
        if obstacle:
            leave_alone(site, obstacle, notes.skip)
        else:
            found.append(site)
    return found


def _symmetric(options: QuantizeWeightsOptions, dialect: Dialect) -> bool:
    """Return whether codes stand around 0: as the options say, or else as the dialect does for all their bits."""
    if options.symmetric is not None:
        return options.symmetric
    formats = [dialect.weight_format(f"uint{bits}") for bits in _used_bits(options)]
    return not all(form is not None and not form.symmetric for form in formats)


def _used_bits(options: QuantizeWeightsOptions) -> tuple[int, ...]:
    tables = options.table_bits if "Gather" in options.operators else None
    return tuple(dict.fromkeys((options.bits, tables or options.bits)))


def _format(bits: int, options: QuantizeWeightsOptions, dialect: Dialect) -> WeightFormat | None:
    return dialect.weight_format(f"{'int' if _symmetric(options, dialect) else 'uint'}{bits}")


def _form_problem(options: QuantizeWeightsOptions, dialect: Dialect) -> str:
    """Return why the dialect has no form for these options and what would work, or an empty string."""
    for bits in _used_bits(options):
        problem = _format_problem(bits, options, dialect)
        if problem:
            return problem
    return ""


def _format_problem(bits: int, options: QuantizeWeightsOptions, dialect: Dialect) -> str:
    refused = dialect.refusals.get(f"int{bits}")
    if refused:
        return f"{dialect.name} takes no int{bits}: {refused}"
    form = _format(bits, options, dialect)
    if form is None:
        taken = ", ".join(dict.fromkeys(each.dtype for each in dialect.weight_only))
        return f"{dialect.name} stores no weights of {bits} bits so; it takes {taken or 'no weights of few bits'}"
    if options.symmetric is False and form.symmetric:
        return f"{dialect.name} takes no zero points for {bits} bits; leave the option symmetric out, or set it to true"
    if options.offsets and not form.offsets:
        return f"{dialect.name} adds no offsets to blocks; set the option offsets to false"
    if options.block_size is not None and options.block_size not in form.block_sizes:
        sizes = ", ".join(map(str, form.block_sizes))
        return (
            f"{dialect.name} has no blocks of {options.block_size} for {bits} bits; block_size may be {sizes or 'none'}"
        )
    if dialect.opset < _first_opset(form, options):
        return (
            f"{bits} bits are written from opset {_first_opset(form, options)} on; {dialect.name} reads {dialect.opset}"
        )
    return ""


def _needed_opset(options: QuantizeWeightsOptions, dialect: Dialect) -> int:
    forms = [_format(bits, options, dialect) for bits in _used_bits(options)]
    return max(_first_opset(form, options) for form in forms if form is not None)


def _first_opset(form: WeightFormat, options: QuantizeWeightsOptions) -> int:
    """Return the first opset that writes these codes: whole channels of bytes need no more than scales per channel."""
    if options.block_size is None and form.dtype in ("int8", "uint8"):
        return CHANNEL_OPSET
    return max(form.opset, BLOCK_OPSET)


def _summary(sites: Sequence[WeightSite], options: QuantizeWeightsOptions, dialect: Dialect) -> str:
    counts = Counter(_bits(site, options) for site in sites)
    parts = " and ".join(f"{count} weights to {bits} bits" for bits, count in sorted(counts.items()))
    form = "per channel" if options.block_size is None else f"in blocks of {options.block_size}"
    sizes = [_block_size(site, options, dialect) for site in sites]
    smaller = Counter(size for size in sizes if size not in (None, options.block_size))
    others = "".join(f", {count} of them in blocks of {size}, which divide them" for size, count in smaller.items())
    return f"Rounded {parts} {form}{others} ({options.rounding})."


def _reasons(notes: Notes) -> str:
    return first_reasons(notes, "the graph has no product or table with a constant weight")


def _nothing_to_do(notes: Notes) -> StepError:
    return nothing_to_do(
        "quantize-weights",
        _reasons(notes),
        expected="at least one MatMul, Gemm, Conv or Gather with a constant float weight",
        options="operators, only and skip",
    )
