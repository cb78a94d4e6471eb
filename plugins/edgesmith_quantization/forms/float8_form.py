"""Writes eight-bit floats as Q/DQ pairs on inputs of products and as weights stored behind a DequantizeLinear."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.node_names import node_name
from edgesmith.graph.weight_sites import WEIGHT_INPUT, WeightSite
from edgesmith_quantization.arithmetic.float8 import Float, Float8Format, flushed_share, quantize
from edgesmith_quantization.arithmetic.rounding import half_scale, symmetric_scale
from edgesmith_quantization.forms.static_form import ActivationCode, quantize_activation


def write_activations(
    editor: GraphEditor, scales: Mapping[ir.Value, np.float32], readers: Collection[ir.Node], form: Float8Format
) -> None:
    """Put a Q/DQ pair on each value, for `readers` only. Edits the graph."""
    for value, scale in scales.items():
        quantize_activation(editor, value, ActivationCode(scale, np.zeros((), form.dtype)), readers)


def write_weight(editor: GraphEditor, site: WeightSite, form: Float8Format, *, per_channel: bool) -> float:
    """Store a weight as codes, scales and a DequantizeLinear, once for all its readers. Edits the graph.

    Returns:
        The share of its values that is not zero and becomes zero.
    """
    array = constant_value(site.weight)
    if array is None:  # sites hold constants only
        raise ValueError(site.name)
    axis = site.output_axis if per_channel else None
    scale = scale_in(array.dtype, symmetric_scale(array.astype(np.float32, copy=False), form.largest, axis))
    codes = quantize(array, scale, form, axis)
    stored_scale = editor.add_initializer(f"{site.name}_scale", scale.astype(array.dtype))
    zero_point = editor.add_initializer(f"{site.name}_zero_point", np.zeros(scale.shape, form.dtype))
    dequantized: dict[bool, ir.Value] = {}
    for node in site.readers:
        turned = _natural_axis(node) != site.output_axis
        if turned not in dequantized:
            stored = np.ascontiguousarray(codes.T) if turned else codes
            name = f"{site.name}_float8"
            made = editor.insert_before(
                site.readers[0],
                "DequantizeLinear",
                (editor.add_initializer(name, stored), stored_scale, zero_point),
                None if axis is None else {"axis": 1 - axis if turned else axis},
                name=f"{name}_dequantize",
            )
            value = made.outputs[0]
            value.shape, value.type = ir.Shape(stored.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
            dequantized[turned] = value
        node.replace_input_with(WEIGHT_INPUT[node.op_type], dequantized[turned])
    return flushed_share(array.astype(np.float32, copy=False), scale, form, axis)


def scale_in(dtype: np.dtype[np.floating], scale: Float) -> Float:
    """Return scales as the graph's own float type can hold them."""
    return half_scale(scale).astype(np.float32) if dtype == np.float16 else scale


def weight_obstacle(site: WeightSite) -> str:
    """Return why the numbers of a weight cannot be stored, or an empty string."""
    array = constant_value(site.weight)
    if array is None or not np.isfinite(array).all():
        return f"the weight {site.name} of {node_name(site.readers[0])} holds NaN or infinity"
    return ""


def _natural_axis(node: ir.Node) -> int:
    """Return the dimension of output channels of the weight as the node reads it."""
    transposed = bool(node.attributes.get_int("transB", 0))
    return 0 if node.op_type == "Conv" or transposed else 1
