"""The method `quantize-fp8`: eight-bit floats for the products of transformers and wide convolutions."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.errors import ModelError, RecipeError, StepError
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import raise_opset
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import Dialect
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_quantization.arithmetic.float8 import FORMATS, Float8Format, peak_scale
from edgesmith_quantization.finding.float8_products import Float8Products, find_float8_products
from edgesmith_quantization.finding.protected_layers import find_protected, marked
from edgesmith_quantization.forms.float8_form import scale_in, weight_obstacle, write_activations, write_weight
from edgesmith_quantization.forms.protected_form import divide_protected
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.statistics.float8_ranges import observe_magnitudes
from edgesmith_quantization.step_errors import first_reasons, nothing_to_do

_OPSET, _OPSET_FLOAT16 = 19, 21
"""First opset with eight-bit floats, and the first in which back ends take float16 scales."""
_NOTABLE_SHARE = 0.01
"""Tensors that lose more than this share of their values to zero are named."""


class QuantizeFp8(Method[QuantizeFp8Options]):
    """Rounds weights and inputs of products to eight-bit floats with scales, written as Q/DQ pairs.

    The inputs of attention's own products are rounded too. Softmax, GELU, normalization, residual additions,
    embeddings, poolers and heads keep their precision, and so do regions that are quantized already.
    """

    def check(self, model: Model, context: Context[QuantizeFp8Options]) -> Verdict:
        """Return whether the target takes eight-bit floats, and whether there is something to quantize."""
        options, dialect = context.options, context.dialect
        problem = _form_problem(options, dialect) or unmatched_names(model.graph, options)
        if problem:
            return Verdict.refuse(problem)
        notes = Notes()
        try:
            products = find_float8_products(marked(model, options).ir, options, notes)
        except RecipeError as error:
            return Verdict.refuse(str(error))
        if not products.nodes:
            return Verdict.skip(f"no product can be quantized ({_reasons(notes)})")
        if options.mode == "static" and not context.calibration:
            return Verdict.refuse("static mode needs calibration data; pass it with --data, or set mode to weight-only")
        return Verdict.ok(nodes=tuple(map(node_name, products.nodes)))

    def apply(self, model: Model, context: Context[QuantizeFp8Options]) -> Model:
        """Return the quantized model.

        Raises:
            DataError: Static mode without calibration data, or data that makes a value infinite or NaN, which is named.
            ModelError: The graph cannot be raised to an opset with eight-bit floats, or a weight is not finite.
            RecipeError: The protection is missing, or was made for another model.
            StepError: Nothing can be quantized.
        """
        options, dialect, notes = context.options, context.dialect, context.notes
        form = FORMATS[options.format]
        result = model.clone()
        raise_opset(result.ir, _needed_opset(result.graph, dialect))
        protected = find_protected(result, options)
        protected.mark(result.graph)
        products = find_float8_products(result.ir, options, notes)
        if not products.nodes:
            raise _nothing_to_do(notes)
        for obstacle in filter(None, map(weight_obstacle, products.weights)):
            raise _not_finite(obstacle)
        taken = [*map(node_name, products.nodes)]
        division = divide_protected(result, protected, taken)
        scales = _activation_scales(result, products, form, context) if options.mode == "static" else {}
        editor = GraphEditor(result.graph)
        write_activations(editor, scales, products.nodes, form)
        shares = {
            site.name: write_weight(editor, site, form, per_channel=options.per_channel) for site in products.weights
        }
        result = division.finish(taken, notes)
        common_passes.RemoveUnusedNodesPass()(result.ir)
        _remark_flushed(shares, "weights", notes)
        notes.remark(_summary(products, options))
        if dialect.float8 != "hardware":
            notes.remark(
                f"Simulated: {dialect.name} rounds to eight-bit floats and computes in float32, so its latency "
                "says nothing about hardware with FP8."
            )
        return result


def _form_problem(options: QuantizeFp8Options, dialect: Dialect) -> str:
    """Return why the dialect has no form for these options and what would work, or an empty string."""
    dtype = FORMATS[options.format].dtype.name.replace("float8_", "float8")
    reason = dialect.refusals.get(dtype) or dialect.refusals.get("float8")
    if options.format == "e5m2" and dialect.float8 == "hardware":
        return f"{dialect.name} multiplies E4M3 only; set format to e4m3"
    stored = dialect.weight_format(dtype)
    if options.mode == "weight-only":
        if stored is not None:
            return ""
        other = "set format to e4m3" if dialect.weight_format("float8e4m3fn") else "use quantize-weights with int8"
        return reason or f"{dialect.name} stores no weights as {dtype}; {other}"
    if dialect.float8 != "none" and not reason:
        return ""
    works = "set mode to weight-only, which saves storage but no time" if stored else "use quantize-int8"
    return f"{reason or f'{dialect.name} does not compute with {dtype}'}; {works}"


def _needed_opset(graph: ir.Graph, dialect: Dialect) -> int:
    if dialect.float8 == "hardware" and dialect.opset >= _OPSET_FLOAT16:
        return _OPSET_FLOAT16  # there the rest of the graph becomes float16, and scales with it
    values = (value for node in graph for value in node.outputs)
    half = any(value.dtype == ir.DataType.FLOAT16 for value in (*graph.initializers.values(), *values))
    return _OPSET_FLOAT16 if half else _OPSET


def _activation_scales(
    model: Model, products: Float8Products, form: Float8Format, context: Context[QuantizeFp8Options]
) -> dict[ir.Value, np.float32]:
    """Return the scale of each input of a product, from the calibration data."""
    values = products.activations()
    seen = observe_magnitudes(model.ir, [str(value.name) for value in values], form, context)
    scales = {}
    for value in values:
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        scales[value] = np.float32(scale_in(dtype, peak_scale(seen[str(value.name)].peak, form)))
    shares = {str(value.name): seen[str(value.name)].flushed(float(scale)) for value, scale in scales.items()}
    _remark_flushed(shares, "activations", context.notes)
    return scales


def _remark_flushed(shares: Mapping[str, float], kind: str, notes: Notes) -> None:
    """Say which tensors lose values to zero."""
    notable = sorted(((share, name) for name, share in shares.items() if share >= _NOTABLE_SHARE), reverse=True)
    if notable:
        listed = ", ".join(f"{name} {share:.1%}" for share, name in notable[:3])
        rest = f" and {len(notable) - 3} more" if len(notable) > 3 else ""
        notes.remark(f"Values too small for their scale become zero in these {kind}: {listed}{rest}.")
    elif shares:
        notes.remark(f"At most {max(shares.values()):.2%} of the values of any of the {kind} become zero.")


def _summary(products: Float8Products, options: QuantizeFp8Options) -> str:
    counts: dict[str, int] = {}
    for node in products.nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    parts = ", ".join(f"{count} {operator}" for operator, count in sorted(counts.items()))
    inner = f", {len(products.attention)} of them in attention" if products.attention else ""
    return f"Quantized {parts}{inner} to {options.format} ({options.mode})."


def _reasons(notes: Notes) -> str:
    return first_reasons(notes, "the graph has no product")


def _nothing_to_do(notes: Notes) -> StepError:
    return nothing_to_do(
        "quantize-fp8",
        _reasons(notes),
        expected="at least one MatMul, Gemm or Conv with a constant float weight, or attention",
        options="operators, heads and skip",
    )


def _not_finite(obstacle: str) -> ModelError:
    return ModelError(
        obstacle,
        expected="weights of finite numbers",
        why="no scale covers infinity, and NaN would spread to every output",
        fix="repair the checkpoint, or name the node in the option skip",
    )
