"""The sequence of rewrites that makes a graph fast in ONNX Runtime on a CPU, and the proof that outputs stay equal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from edgesmith.collector import spare_what_exists
from edgesmith.errors import ModelError
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.execution.reference import Optimization, ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.context import Context, Notes
from edgesmith.host.dialect import ACTIVATIONS_KEY
from edgesmith_onnxruntime.attention import fuse_attention
from edgesmith_onnxruntime.block_products import (
    InputRange,
    lower_embeddings,
    lower_float_products,
    lower_rounded_products,
    rounds_inputs,
)
from edgesmith_onnxruntime.channel_padding import pad_channels
from edgesmith_onnxruntime.channels_last import keep_channels_last
from edgesmith_onnxruntime.code_steps import shift_last_codes
from edgesmith_onnxruntime.constants import fold_constants
from edgesmith_onnxruntime.float8_casts import FLOAT8
from edgesmith_onnxruntime.integer_convolutions import join_integer_convolutions
from edgesmith_onnxruntime.integer_operators import join_integer_operators
from edgesmith_onnxruntime.integer_products import join_integer_products
from edgesmith_onnxruntime.output_scales import fold_output_scales
from edgesmith_onnxruntime.residual_sum import write_residual_sums
from edgesmith_onnxruntime.rounding_noise import measure_rounding
from edgesmith_onnxruntime.softmax_guard import move_softmax_guards
from edgesmith_onnxruntime.static_shapes import write_static_dimensions
from edgesmith_onnxruntime.weight_sums import lower_weight_sums
from edgesmith_onnxruntime.whole_selections import write_whole_selections

FLOAT_TOLERANCE = 1e-4
"""Largest relative error of a float graph: reassociation only."""
SENSITIVITY_FACTOR = 4.0
"""How much farther than ONNX Runtime's own fusions a rewrite may move the outputs of a quantized graph.

Float noise of 1e-7 moves a few codes by one step, and later layers amplify that up to the size of the quantization
noise. So a quantized graph is held against its own distance between the optimization levels basic and all.
"""
SENSITIVITY_LIMIT = 0.3
"""Largest relative error (L2) that this distance can justify.

Noise moves the outputs of a MobileNetV2 in 8 bits by 0.14 to 0.18 on random images, so they need this room. More would
let a rewrite pass that computes something else, where ONNX Runtime itself does so at level all.
"""
LEAST_ROUNDED_SQNR_DB = 10.0
"""Least signal-to-noise ratio (dB) of outputs whose products round their inputs to 8 bits against those that do not.

Rounded rows keep about 35 dB in one product, and the logits of a MiniLM 14 dB on sample inputs, which no training has
seen. Below 10 dB a tenth of the power is noise: single channels rule the rows, and the others are lost.
"""

_PROOF_SAMPLES = 2

Inputs = Mapping[str, NDArray[Any]]
Rewrite = Callable[[ir.Model], tuple[ir.Model, str]]
"""Takes a graph that it may edit, and returns it or another with a remark; without one, nothing changed."""


@spare_what_exists()
def lower(model: ir.Model, context: Context[None]) -> ir.Model:
    """Return the graph rewritten for ONNX Runtime's CPU kernels; `model` is not changed.

    All rewrites are tried together. If outputs then differ, they are tried one by one, and those that
    change outputs are left out with a remark. Only products that say so round their inputs to 8 bits, and only where
    outputs keep `LEAST_ROUNDED_SQNR_DB`; a remark says by how much they move.
    """
    inputs = list(_proof_inputs(model, context))
    lowered = _with_equal_rewrites(model, inputs, _kernel_rewrites(context.notes), context)
    return _with_rounded_inputs(lowered, inputs, context)


def lower_to_standard(model: ir.Model, context: Context[None], further: Sequence[Rewrite] = ()) -> ir.Model:
    """Return the graph cleaned for runtimes that know ONNX's own operators only; `model` is not changed.

    Args:
        model: The graph.
        context: Calibration data and threads for the proof, and notes.
        further: Rewrites that come behind the common ones.
    """
    rewrites = (*_standard_rewrites(context.notes), fold_constants, *further)
    return _with_equal_rewrites(model.clone(), list(_proof_inputs(model, context)), rewrites, context)


def as_rewrite(change: Callable[[ir.Graph], int], words: str) -> Rewrite:
    """Return an edit of a graph as a rewrite. `change` returns how many it made, which `words` says for the report."""

    def rewrite(model: ir.Model) -> tuple[ir.Model, str]:
        count = change(model.graph)
        if count == 0:
            return model, ""
        common_passes.RemoveUnusedNodesPass()(model)
        return model, words.format(count)

    return rewrite


def _with_equal_rewrites(
    model: ir.Model, inputs: list[Inputs], rewrites: Sequence[Rewrite], context: Context[None]
) -> ir.Model:
    proof = _Proof(model, inputs, context.threads)
    candidate, remarks = model.clone(), []
    for rewrite in rewrites:
        candidate, remark = rewrite(candidate)
        remarks.append(remark)
    if not any(remarks):
        return model
    if proof.fault(candidate):
        candidate, remarks = _one_by_one(model, proof, rewrites)
    for remark in filter(None, remarks):
        context.notes.remark(remark)
    return candidate


def _with_rounded_inputs(model: ir.Model, inputs: list[Inputs], context: Context[None]) -> ir.Model:
    """Return the graph with products of few bits on inputs rounded to 8 bits, where they say that they allow it.

    That changes outputs, so it is no matter of equality: the remark says by how much they move, and where they would
    keep less than `LEAST_ROUNDED_SQNR_DB` all these products keep their inputs in float. Products that ask for more
    than they would keep themselves (`MINIMUM_SQNR_KEY`) do so first.
    """
    products = [node for node in model.graph if rounds_inputs(node)]
    if not products:
        return model
    # Real data stands behind a random sample, whose size and content say nothing.
    data = inputs[1:] or inputs
    candidate, seen = model.clone(), _input_ranges(model, products, data, context.threads)
    seen, noisy = measure_rounding(model, seen, data, context.threads)
    remark = _keep_noisy_inputs(candidate, noisy, seen)
    count = lower_rounded_products(candidate.graph, seen)
    common_passes.RemoveUnusedNodesPass()(candidate)
    if remark:
        context.notes.remark(remark)
    if count == 0:
        return model if _Proof(model, inputs, context.threads).fault(candidate) else candidate
    error = _Proof(model, data, context.threads).error(candidate)
    if error > 10 ** (-LEAST_ROUNDED_SQNR_DB / 20):
        moves = f"move outputs by {error:.1e} (relative L2)" if np.isfinite(error) else "give no finite outputs"
        context.notes.remark(f"Kept inputs of {count} products of few bits in float: rounded to 8 bits they {moves}.")
        return _with_float_inputs(model, inputs, context)
    context.notes.remark(
        f"{count} products of few bits round their inputs to 8 bits row by row, as they allow; that moves outputs by "
        f"{error:.1e} (relative L2)."
    )
    return candidate


def _keep_noisy_inputs(model: ir.Model, noisy: Mapping[str, float], seen: Mapping[str, InputRange]) -> str:
    """Leave the inputs of products in float, by the names of their outputs; return the remark, empty without any."""
    if not noisy:
        return ""
    for node in model.graph:
        if rounds_inputs(node) and node.outputs[0].name in noisy:
            del node.metadata_props[ACTIVATIONS_KEY]
    lower_float_products(model.graph, seen)
    return (
        f"Kept inputs of {len(noisy)} products of few bits in float: rounded to 8 bits these would keep "
        f"{min(noisy.values()):.1f} to {max(noisy.values()):.1f} dB of their outputs, less than they ask for."
    )


def _with_float_inputs(model: ir.Model, inputs: list[Inputs], context: Context[None]) -> ir.Model:
    """Return the graph with all products of few bits on inputs in float, packed or expanded where that is equal."""
    candidate = model.clone()
    for node in candidate.graph:
        node.metadata_props.pop(ACTIVATIONS_KEY, None)
    lower_float_products(candidate.graph)
    common_passes.RemoveUnusedNodesPass()(candidate)
    return model if _Proof(model, inputs, context.threads).fault(candidate) else candidate


def _input_ranges(
    model: ir.Model, products: list[ir.Node], inputs: list[Inputs], threads: int
) -> dict[str, InputRange]:
    """Return rows, channel peaks and channel loads of the inputs of products on the given data, by value name."""
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in products if node.inputs[0] is not None))
    computed = set(names) - {str(value.name) for value in model.graph.inputs}
    session = ReferenceSession(model, taps=[name for name in names if name in computed], threads=threads)
    found: dict[str, list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]] = {name: [] for name in names}
    for sample in inputs:
        results = session.run(sample)
        for name in names:
            array = np.abs(results[name] if name in computed else sample[name])
            rows = array.reshape(-1, array.shape[-1])
            parts = rows / np.maximum(rows.max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
            found[name].append((len(rows), rows.max(axis=0, initial=0), np.square(parts).sum(axis=0)))
    ranges = {}
    for name, samples in found.items():
        counts, peaks, energies = zip(*samples, strict=True)
        loads = np.sqrt(np.sum(energies, axis=0) / max(sum(counts), 1))
        ranges[name] = InputRange(counts[-1], np.max(peaks, axis=0), loads)
    return ranges


def _one_by_one(model: ir.Model, proof: "_Proof", rewrites: Sequence[Rewrite]) -> tuple[ir.Model, list[str]]:
    remarks = []
    for rewrite in rewrites:
        candidate, remark = rewrite(model.clone())
        fault = proof.fault(candidate) if remark else ""
        if fault:
            remarks.append(f"Left out, because {fault}: {remark}")
        else:
            model = candidate
            remarks.append(remark)
    return model, remarks


def _standard_rewrites(notes: Notes) -> tuple[Rewrite, ...]:
    guards = "Moved {} NaN guards from attention into its mask."
    return (
        as_rewrite(write_static_dimensions, "Wrote out {} fixed dimensions; what follows from them is computed once."),
        as_rewrite(lambda graph: move_softmax_guards(graph, notes), guards),
        as_rewrite(write_whole_selections, "Wrote {} selections of every element as Reshape."),
    )


def _kernel_rewrites(notes: Notes) -> tuple[Rewrite, ...]:
    """Return what ONNX Runtime's own kernels on a CPU are fastest with."""

    def attention(model: ir.Model) -> tuple[ir.Model, str]:
        fused, count = fuse_attention(model)
        return fused, f"Fused {count} attentions into MultiHeadAttention." if count else ""

    return (
        *_standard_rewrites(notes),
        as_rewrite(join_integer_products, "Joined scale and bias of {} integer products."),
        as_rewrite(fold_output_scales, "Folded factors per channel into the scales of {} integer products."),
        as_rewrite(join_integer_convolutions, "Joined {} integer convolutions with their pairs and bounds."),
        as_rewrite(join_integer_operators, "Joined {} operators between integer ones with their pairs."),
        as_rewrite(pad_channels, "Padded the input of {} integer convolutions to a multiple of four channels."),
        as_rewrite(keep_channels_last, "Kept images at {} integer operators with channels last."),
        as_rewrite(lower_embeddings, "Let {} embeddings dequantize the rows they select."),
        as_rewrite(lower_weight_sums, "Joined the parts of {} split weights, which are added up while loading."),
        as_rewrite(lower_float_products, "Packed or expanded the weights of {} products of few bits."),
        attention,
        as_rewrite(write_residual_sums, "Kept {} residual additions apart from LayerNormalization, which is faster."),
    )


def _proof_inputs(model: ir.Model, context: Context[None]) -> Iterator[Inputs]:
    yield sample_inputs(model, seed=context.seed)
    names = {value.name for value in model.graph.inputs}
    if context.calibration is not None and len(context.calibration) >= _PROOF_SAMPLES:
        for batch in context.calibration.take(_PROOF_SAMPLES).batches(1):
            yield {name: array for name, array in batch.inputs.items() if name in names}


class _Proof:
    """What a graph computes before it is rewritten, and how far rewritten ones may be from that."""

    def __init__(self, model: ir.Model, inputs: list[Inputs], threads: int) -> None:
        self._model, self._inputs, self._threads = model, inputs, threads

    def fault(self, candidate: ir.Model) -> str:
        """Return in words how the outputs of `candidate` differ by more than they may, or an empty string."""
        obstacle = obstacle_to_running(self._model)
        if obstacle:
            return f"equal outputs cannot be proven: {obstacle}"
        try:
            error = _largest_error(self._before, self._outputs(candidate))
        except ModelError as reason:
            return f"the graph did not run ({reason.what})"
        if error <= FLOAT_TOLERANCE or error <= self._tolerance or error <= self._one_step:
            return ""
        return f"outputs changed by {error:.1e}"

    def error(self, candidate: ir.Model) -> float:
        """Return the largest relative error (L2) of the outputs of `candidate`; infinite where it does not run."""
        try:
            return _largest_error(self._before, self._outputs(candidate))
        except ModelError:
            return float("inf")

    @cached_property
    def _before(self) -> list[Inputs]:
        return self._outputs(self._model)

    @cached_property
    def _tolerance(self) -> float:
        if not any(map(_rounds, self._model.graph.all_nodes())):
            return FLOAT_TOLERANCE
        try:
            distance = _largest_error(self._before, self._outputs(self._model, "all"))
        except ModelError:  # a graph that does not run at level all says nothing about its noise
            return FLOAT_TOLERANCE
        return min(SENSITIVITY_FACTOR * distance, SENSITIVITY_LIMIT)

    @cached_property
    def _one_step(self) -> float:
        """How far outputs move when the last codes before them do by one: in small graphs, where noise moves none."""
        moved = self._model.clone()
        return _largest_error(self._before, self._outputs(moved)) if shift_last_codes(moved.graph) else 0.0

    def _outputs(self, model: ir.Model, optimization: Optimization = "basic") -> list[Inputs]:
        session = ReferenceSession(model, threads=self._threads, optimization=optimization)
        return [session.run(each) for each in self._inputs]


def _rounds(node: ir.Node) -> bool:
    """Return whether a node rounds to few bits, so that noise moves codes."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int()) in FLOAT8
    return "QuantizeLinear" in node.op_type


def _largest_error(before: list[Inputs], after: list[Inputs]) -> float:
    """Return the largest relative error (L2) over all outputs; infinite where one turned NaN or changed shape."""
    worst = 0.0
    for expected, actual in zip(before, after, strict=True):
        for name, reference in expected.items():
            found = actual.get(name)
            if found is None or found.shape != reference.shape:
                return float("inf")
            if reference.dtype.kind != "f":
                worst = max(worst, 0.0 if np.array_equal(reference, found) else float("inf"))
                continue
            distance = float(np.linalg.norm((found - reference).astype(np.float64)))
            error = distance / max(float(np.linalg.norm(reference.astype(np.float64))), 1e-12)
            worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst
