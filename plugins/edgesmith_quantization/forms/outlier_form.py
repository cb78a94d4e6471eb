"""Writes the float product of what outlier channels have beyond the range of their activation."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.forms.side_products import add_beside
from edgesmith_quantization.forms.weights import constant_array
from edgesmith_quantization.repair.outliers import Outliers

Range = tuple[np.float32, np.float32]


def add_outlier_products(
    editor: GraphEditor,
    candidates: Sequence[Candidate],
    outliers: Mapping[ir.Value, Outliers],
    ranges: Mapping[ir.Value, Range],
) -> None:
    """Add `(x - clip(x)) W` over the outlier channels to each product that reads such an activation. Edits the graph.

    Call it while the products still read float weights; they then only need to cover `ranges`.

    Args:
        editor: Editor of the graph.
        candidates: The products to quantize.
        outliers: Outliers by activation.
        ranges: Smallest and largest value that each of these activations keeps in its integer product.
    """
    excess: dict[ir.Value, ir.Value] = {}
    for candidate in candidates:
        activation = candidate.activation
        if activation not in outliers:
            continue
        if activation not in excess:
            excess[activation] = _excess(editor, activation, outliers[activation].channels, ranges[activation])
        _add_product(editor, candidate, excess[activation], outliers[activation].channels)


def clip_outliers(editor: GraphEditor, candidates: Sequence[Candidate], ranges: Mapping[ir.Value, Range]) -> None:
    """Let products read such activations cut to their range, where ranges are otherwise computed at run time."""
    cut: dict[ir.Value, ir.Value] = {}
    for candidate in candidates:
        activation = candidate.activation
        if activation not in ranges:
            continue
        if activation not in cut:
            name = f"{activation.name}_inliers"
            clip = editor.insert_after(
                activation, "Clip", (activation, *_bounds(editor, name, ranges[activation])), name=name
            )
            cut[activation] = clip.outputs[0]
            cut[activation].shape, cut[activation].type = activation.shape, activation.type
        candidate.node.replace_input_with(0, cut[activation])


def _bounds(editor: GraphEditor, name: str, limits: Range) -> tuple[ir.Value, ir.Value]:
    low, high = (np.asarray(limit, np.float32) for limit in limits)
    return editor.add_initializer(f"{name}_low", low), editor.add_initializer(f"{name}_high", high)


def _excess(editor: GraphEditor, activation: ir.Value, channels: NDArray[np.int64], limits: Range) -> ir.Value:
    """Return what the outlier channels have beyond the limits, [..., channels]."""
    name = f"{activation.name}_outliers"
    indices = editor.add_initializer(f"{name}_channels", channels)
    bounds = _bounds(editor, name, limits)
    chosen = editor.insert_after(activation, "Gather", (activation, indices), {"axis": -1}, name=name).outputs[0]
    inside = editor.insert_after(chosen, "Clip", (chosen, *bounds), name=f"{name}_inside").outputs[0]
    excess = editor.insert_after(inside, "Sub", (chosen, inside), name=f"{name}_excess").outputs[0]
    shape = ir.Shape([*activation.shape[:-1], len(channels)]) if activation.shape is not None else None
    for value in (chosen, inside, excess):
        value.shape, value.type = shape, ir.TensorType(ir.DataType.FLOAT)
    return excess


def _add_product(editor: GraphEditor, candidate: Candidate, excess: ir.Value, channels: NDArray[np.int64]) -> None:
    weight = constant_array(candidate.weight)
    rows = np.take(weight, channels, axis=1 - candidate.channel_axis)
    matrix = np.ascontiguousarray(rows if candidate.channel_axis == 1 else rows.T)
    constant = editor.add_initializer(f"{candidate.name}_outlier_weight", matrix)
    add_beside(editor, candidate.node, excess, constant, f"{candidate.name}_outlier")
