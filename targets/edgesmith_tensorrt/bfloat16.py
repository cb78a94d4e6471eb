"""Lowers a graph to bfloat16, whose range is that of float32 and whose numbers have eight significant bits.

ONNX Runtime has no bfloat16 kernels for a CPU. So the lowered graph stays in float32 with every value rounded, which
runs anywhere and gives the outputs that bfloat16 gives; the graph in bfloat16 itself is written from it when the
artifact is built.
"""

from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Context
from edgesmith_tensorrt.half_precision import BRAIN, write_half
from edgesmith_tensorrt.layer_norms import join_layer_norms
from edgesmith_tensorrt.precision import (
    calibration_samples,
    full_precision_nodes,
    inexact_values,
    largest_error,
    run_without_pairs,
    type_remarks,
    with_types,
)

TOLERANCE = 4e-2
"""Largest relative error (L2) of the outputs: four times that of float16, which has two more significant bits."""

_NO_KERNELS = "ONNX Runtime has no bfloat16 on a CPU; the reference rounds each value to it instead."
_KEEP = "edgesmith.float32"
"""Metadata of nodes that compute in float32."""
_MARK = "edgesmith.bfloat16"
"""Metadata of a graph whose values are rounded to bfloat16, and of the casts that round them."""


def lower_to_bfloat16(model: ir.Model, context: Context[Any]) -> ir.Model:
    """Return `model` with every value rounded to bfloat16, except where that loses what matters.

    Positions, numbers that become indices, whole numbers above 256 that it would change, and normalizations that were
    written out stay in float32. If outputs move by more than the tolerance, the operators that are known to be
    sensitive do as well; if that does not help, all do.
    """
    samples = list(calibration_samples(model, context))
    typed = with_types(model)
    joined = {node.name for node in join_layer_norms(typed)}
    before = run_without_pairs(model, samples, context.threads)
    inexact = inexact_values(typed, samples, context.threads, BRAIN)
    error = float("inf")
    for sensitive in (False, True):
        candidate = typed.clone()
        kept = full_precision_nodes(candidate, inexact, sensitive=sensitive)
        kept |= {node: "normalization that was written out" for node in candidate.graph if node.name in joined}
        for node in kept:
            node.metadata_props[_KEEP] = "1"
        count = _round_values(candidate)
        candidate.metadata_props[_MARK] = "1"
        error = largest_error(before, run_without_pairs(candidate, samples, context.threads))
        if error <= TOLERANCE:
            for remark in type_remarks("bfloat16", kept, count, error):
                context.notes.remark(remark)
            context.notes.remark(_NO_KERNELS)
            return candidate
    context.notes.remark(
        f"The graph stays in float32: in bfloat16 its outputs change by {error:.1%}; {TOLERANCE:.0%} is allowed."
    )
    return model.clone()


def is_rounded(model: ir.Model) -> bool:
    """Return whether a graph stands for one in bfloat16."""
    return _MARK in model.metadata_props


def as_bfloat16(model: ir.Model) -> ir.Model:
    """Return the graph in bfloat16 that a rounded one stands for."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    for node in [each for each in copy.graph if _MARK in each.metadata_props]:
        editor.bypass(node)
    keep = [node for node in copy.graph if _KEEP in node.metadata_props]
    write_half(copy, keep, BRAIN)
    common_passes.RemoveUnusedNodesPass()(copy)
    return copy


def _round_values(model: ir.Model) -> int:
    """Put a cast to bfloat16 and back wherever a value has that type in the graph that ships. Edits `model`.

    Returns:
        How many nodes are rounded.
    """
    shipped = model.clone()
    mirrored = tuple(shipped.graph)
    write_half(shipped, [node for node in mirrored if _KEEP in node.metadata_props], BRAIN)
    editor, count = GraphEditor(model.graph), 0
    sources: dict[ir.Value, ir.Value] = {}
    for node, mirror in zip(tuple(model.graph), mirrored, strict=True):
        for index, value in enumerate(node.inputs):
            narrow = mirror.inputs[index]
            if value is not None and value.producer() is None and narrow is not None and narrow.dtype == BRAIN:
                if value not in sources:
                    sources[value] = _rounded(editor, value)
                node.replace_input_with(index, sources[value])
        narrowed = [value for value, other in zip(node.outputs, mirror.outputs, strict=True) if other.dtype == BRAIN]
        for value in narrowed:
            up = _rounded(editor, value)
            editor.replace_uses(value, up, keep=[use.node for use in value.uses() if _MARK in use.node.metadata_props])
        count += bool(narrowed)
    return count


def _rounded(editor: GraphEditor, value: ir.Value) -> ir.Value:
    """Return a value in float32 that holds `value` in bfloat16."""
    down = editor.insert_after(value, "Cast", (value,), {"to": int(BRAIN)})
    up = editor.insert_after(down.outputs[0], "Cast", (down.outputs[0],), {"to": int(ir.DataType.FLOAT)})
    down.outputs[0].shape, down.outputs[0].type = value.shape, ir.TensorType(BRAIN)
    up.outputs[0].shape, up.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    down.metadata_props[_MARK] = up.metadata_props[_MARK] = "1"
    return up.outputs[0]
