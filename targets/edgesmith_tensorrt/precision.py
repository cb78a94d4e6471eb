"""Decides what of a graph stays in float32 when the rest becomes float16, and proves the result.

The result is run with every value rounded to float16, beside the original, so both overflow and lost digits show. What
comes near the end of the range is looked for in the values of the float32 graph, inputs included.

Kept in float32: normalizations that are written out in arithmetic (their squares overflow), angles of positions,
numbers that become indices, constants and scales that float16 does not hold, and what left its range on real inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith_tensorrt.half_limits import STAND_IN, constant_nodes, index_nodes, whole_values
from edgesmith_tensorrt.half_precision import BRAIN, HALF, LARGEST, SMALLEST_NORMAL, as_half, fits_half, write_half
from edgesmith_tensorrt.layer_norms import join_layer_norms

TOLERANCE = 1e-2
"""Largest relative error (L2) of the outputs of a float graph. Float16 rounds to 5e-4, and errors of layers add up."""

_HEADROOM = 4.0
"""A value may grow this much beyond what the samples showed before it overflows."""
_BELOW = "values below the range of float16"
_INEXACT = "whole numbers too large to be exact"
_LARGEST_COUNTS = {HALF: LARGEST, BRAIN: float(2**24)}
"""Larger whole numbers are checked as values in float16; in bfloat16 they are those that float32 changes, too."""
_TAPS_PER_RUN = 256
_SAMPLES = 4
_SENSITIVE = frozenset(
    ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization", "Erf", "Gelu", "Exp")
)

Inputs = Mapping[str, NDArray[Any]]
Reasons = dict[ir.Node, str]


def lower_to_half(model: ir.Model, context: Context[None]) -> ir.Model:
    """Return `model` in float16 where that holds, with remarks on what stays in float32 and why.

    The result is run beside the original, both with the Q/DQ pairs of activations taken out: float16 moves a few codes
    by a step, which later layers amplify to the size of the quantization noise. If outputs differ by more than the
    tolerance, the operators that are known to be sensitive stay in float32 as well; if that does not help, all do.
    """
    samples = list(calibration_samples(model, context))
    typed = with_types(model)
    joined = frozenset(str(node.name) for node in join_layer_norms(typed))
    before = run_without_pairs(model, samples, context.threads)
    unfit = unfit_values(typed, samples, context.threads)
    error = float("inf")
    for sensitive in (False, True):
        candidate = typed.clone()
        kept: Reasons = dict.fromkeys(constant_nodes(candidate.graph), "constant that float16 does not hold")
        kept |= full_precision_nodes(candidate, unfit, sensitive=sensitive)
        kept |= {node: "normalization that was written out" for node in candidate.graph if node.name in joined}
        count = write_half(candidate, kept.keys())
        if count == 0:
            context.notes.remark(
                "No node of the graph can be changed from float32 to float16, so types stay as they are."
            )
            return model.clone()
        try:
            error = largest_error(before, run_without_pairs(candidate, samples, context.threads))
        except ModelError as fault:
            context.notes.remark(f"In float16 the graph does not run: {fault.what}")
            continue
        if error <= TOLERANCE:
            common_passes.RemoveUnusedNodesPass()(candidate)
            for remark in type_remarks("float16", kept, count, error):
                context.notes.remark(remark)
            return candidate
    change = f"change by {error:.1%}" if np.isfinite(error) else "are not finite"
    context.notes.remark(
        f"The graph stays in float32: in float16 its outputs {change}, and a change of {TOLERANCE:.0%} is allowed."
    )
    return model.clone()


def full_precision_nodes(model: ir.Model, unfit: Mapping[str, str], *, sensitive: bool = False) -> Reasons:
    """Return the nodes of the main graph that must compute in float32, each with the reason.

    Args:
        model: The float32 graph.
        unfit: Names of values that float16 does not hold, each with the reason.
        sensitive: Whether operators that are known to be sensitive must, too.
    """
    reasons: Reasons = dict.fromkeys(index_nodes(model.graph), "becomes an index")
    by_name = {node.name: node for node in model.graph}
    for norm in find_structure(model).norms:
        if not norm.fused:
            reasons |= {by_name[name]: "normalization written out" for name in norm.nodes if name in by_name}
    for node in model.graph:
        if node.op_type in ("Sin", "Cos"):
            reasons |= dict.fromkeys(_position_nodes(node), "angle of a position")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not _scale_fits(node):
            reasons[node] = "scale too small for float16"
        if sensitive and node.op_type in _SENSITIVE:
            reasons[node] = "sensitive operator"
    whole = whole_values(model.graph)
    for node in model.graph:
        # Beside what it is added to, a small number that is lost changes nothing.
        harmless = {_BELOW} if node.op_type in ("Add", "Sub") else set()
        # A count that is off by one matters to other counts and to comparisons.
        if not any(output in whole or output.dtype == ir.DataType.BOOL for output in node.outputs):
            harmless.add(_INEXACT)
        read = (unfit.get(str(value.name), "") for value in node.inputs if value is not None)
        written = (unfit.get(str(value.name), "") for value in node.outputs)
        for reason in (*written, *(each for each in read if each not in harmless)):
            if reason:
                reasons.setdefault(node, reason)
    _keep_pairs_alike(model.graph, reasons)
    return reasons


def _keep_pairs_alike(graph: ir.Graph, reasons: Reasons) -> None:
    """Give all pairs of a product one type: TensorRT's compiler fails where one scale is float16 and one float32."""
    grown = True
    while grown:
        grown = False
        for node in graph:
            pairs = [producer for producer in _producers(node) if producer.op_type == "DequantizeLinear"]
            if len(pairs) < 2 or not any(pair in reasons for pair in pairs):
                continue
            quantizers = [each for pair in pairs for each in _producers(pair) if each.op_type == "QuantizeLinear"]
            for each in (*pairs, *quantizers, node):
                if each not in reasons:
                    reasons[each] = "product beside a scale too small for float16"
                    grown = True


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


def _scale_fits(node: ir.Node) -> bool:
    scale = constant_value(node.inputs[1])
    return scale is not None and fits_half(scale)


def _position_nodes(node: ir.Node) -> list[ir.Node]:
    """Return a Sin or Cos with everything that leads to its angle, if that is computed from integers alone."""
    found, pending = [node], [node]
    while pending:
        for value in pending.pop().inputs:
            producer = value.producer() if value is not None else None
            if value is None or producer is None:
                if value is not None and value.is_graph_input() and value.dtype == ir.DataType.FLOAT:
                    return [node]
                continue
            if value.dtype != ir.DataType.FLOAT or producer in found:
                continue
            if producer.op_type == "Gather":
                return [node]
            found.append(producer)
            pending.append(producer)
    return found


def inexact_values(model: ir.Model, samples: Sequence[Inputs], threads: int, dtype: ir.DataType) -> dict[str, str]:
    """Return the names of values whose whole numbers `dtype` would change on the samples, with that as the reason."""
    names = [str(value.name) for value in whole_values(model.graph)]
    tapped = _tapped(model, names, samples, threads)
    return dict.fromkeys((name for name, array in tapped if not _is_exact(array, dtype)), _INEXACT)


def unfit_values(model: ir.Model, samples: Sequence[Inputs], threads: int) -> dict[str, str]:
    """Return the names of the float32 values of the main graph that float16 does not hold on the samples, with reasons.

    Those are values near the end of its range or wholly below its normal numbers, and whole numbers that it would
    change. Inputs of the graph are among them: they are cast to float16 before anything is computed.
    """
    names = [str(value.name) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    wide = [str(value.name) for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT]
    whole = {str(value.name) for value in whole_values(model.graph)}
    peaks = {name: max((_peak(inputs[name]) for inputs in samples if name in inputs), default=0.0) for name in wide}
    changed: set[str] = set()
    for name, array in _tapped(model, names, samples, threads):
        peaks[name] = max(peaks.get(name, 0.0), _peak(array))
        if name in whole and not _is_exact(array, HALF):
            changed.add(name)
    reasons = dict.fromkeys(changed, _INEXACT)
    reasons |= {name: _BELOW for name in peaks if 0 < peaks[name] < SMALLEST_NORMAL}
    return reasons | {name: "values beyond the range of float16" for name in peaks if peaks[name] * _HEADROOM > LARGEST}


def _tapped(
    model: ir.Model, names: Sequence[str], samples: Sequence[Inputs], threads: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield each value with its name, for every sample; few are in memory at a time."""
    for start in range(0, len(names), _TAPS_PER_RUN):
        chosen = names[start : start + _TAPS_PER_RUN]
        session = ReferenceSession(model, taps=chosen, threads=threads)
        for inputs in samples:
            results = session.run(inputs)
            yield from ((name, results[name]) for name in chosen)


def _peak(array: NDArray[Any]) -> float:
    magnitudes = np.abs(array)
    return float(np.max(magnitudes, initial=0.0, where=magnitudes < STAND_IN))


def _is_exact(array: NDArray[Any], dtype: ir.DataType) -> bool:
    """Return whether `dtype` holds every number, but for those that are too large to count anything."""
    inside = array[np.abs(array) <= _LARGEST_COUNTS[dtype]]
    return bool(np.array_equal(as_half(inside, dtype).astype(array.dtype), inside))


def calibration_samples(model: ir.Model, context: Context[None]) -> Iterator[Inputs]:
    """Yield a few calibration samples, or random inputs where there is no data."""
    names = {value.name for value in model.graph.inputs}
    if context.calibration is not None and len(context.calibration):
        for batch in context.calibration.take(_SAMPLES).batches(1):
            yield {name: array for name, array in batch.inputs.items() if name in names}
    else:
        yield runnable_inputs(model, seed=context.seed)


def with_types(model: ir.Model) -> ir.Model:
    """Return a copy in which every value of the main graph has a type."""
    copy = model.clone()
    if any(value.dtype is None for node in copy.graph for value in node.outputs if value.name):
        common_passes.ShapeInferencePass()(copy)
    return copy


def _without_pairs(model: ir.Model) -> ir.Model:
    """Return a copy in which what a QuantizeLinear rounds goes on as it was."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    for node in [each for each in copy.graph if each.op_type == "QuantizeLinear"]:
        for reader, index in tuple(node.outputs[0].uses()):
            if reader.op_type == "DequantizeLinear" and index == 0 and node.inputs[0] is not None:
                editor.replace_uses(reader.outputs[0], node.inputs[0])
    common_passes.RemoveUnusedNodesPass()(copy)
    return copy


def run_without_pairs(model: ir.Model, samples: Sequence[Inputs], threads: int) -> list[Inputs]:
    """Return the outputs for each sample, with the pairs of activations taken out and float16 rounded."""
    session = ReferenceSession(_without_pairs(model), threads=threads, round_half=True)
    return [session.run(inputs) for inputs in samples]


def largest_error(before: Sequence[Inputs], after: Sequence[Inputs]) -> float:
    """Return the largest relative error (L2) of all outputs and samples; infinite where one is not finite."""
    worst = 0.0
    for expected, found in zip(before, after, strict=True):
        for name, reference in expected.items():
            if reference.dtype.kind != "f":
                continue
            exact = reference.astype(np.float64)
            error = np.linalg.norm(found[name] - exact) / max(float(np.linalg.norm(exact)), 1e-12)
            worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


def type_remarks(name: str, kept: Reasons, count: int, error: float) -> Iterator[str]:
    """Yield what became of a type that is called `name`, and which nodes stay in float32 and why."""
    yield f"{count} nodes compute in {name}; outputs moved by {error:.2%} of their size."
    for reason in sorted(set(kept.values())):
        nodes = [node.name or node.op_type for node, why in kept.items() if why == reason]
        shown = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        yield f"{len(nodes)} nodes stay in float32 ({reason}): {shown}"
