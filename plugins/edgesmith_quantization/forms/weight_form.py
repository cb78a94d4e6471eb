"""Writes a rounded weight as codes behind one DequantizeLinear that all its readers share."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_tensor
from edgesmith.graph.weight_sites import WeightSite
from edgesmith.mapped import release
from edgesmith_quantization.arithmetic.blocks import BlockCodes
from edgesmith_quantization.arithmetic.packing import pack_codes

BLOCK_OPSET = 21
"""First opset whose DequantizeLinear takes blocks, and types of 4 bits."""
CHANNEL_OPSET = 13
"""First opset whose DequantizeLinear takes one scale per channel."""

_TYPES = {
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
}


def write_weight(editor: GraphEditor, site: WeightSite, rounded: BlockCodes) -> ir.Node:
    """Let every reader of `site` read `rounded`, whose rows are the site's; return the DequantizeLinear.

    The float weight is dropped.
    """
    dequantize = insert_dequantize(editor, site, rounded, site.name)
    result = dequantize.outputs[0]
    if _has_offsets(rounded):
        result = _with_offsets(editor, result, site, rounded)
    replace_weight(editor, site.weight, result)
    return dequantize


def insert_dequantize(editor: GraphEditor, site: WeightSite, rounded: BlockCodes, name: str) -> ir.Node:
    """Add `rounded`, whose rows are those of `site`, as codes behind a DequantizeLinear that nobody reads yet.

    One block a row becomes one scale per output channel, more become blocks along the site's input axis. The scales
    have the type of the weight, since that is what DequantizeLinear returns. Zero points that are no codes are left
    out, since only an Add can write them.
    """
    weight = site.weight
    dtype = weight.dtype or ir.DataType.FLOAT
    # ONNX Runtime 1.31 loads no graph in which it moves a Transpose through scales per channel of two bits.
    blocked = rounded.scale.shape[1] > 1 or (rounded.bits == 2 and site.is_matrix)
    parts = [_packed(_placed(rounded.codes, site), rounded.bits, symmetric=rounded.zero_point is None)]
    scale = scales_as(rounded.scale, dtype)
    parts.append(ir.tensor(_placed(scale, site) if blocked else scale[:, 0]))
    if rounded.zero_point is not None and not _has_offsets(rounded):
        zero_point = _placed(rounded.zero_point, site) if blocked else rounded.zero_point[:, 0]
        parts.append(_packed(zero_point, rounded.bits, symmetric=False))
    inputs = [
        editor.add_initializer(f"{name}_{part}", tensor)
        for part, tensor in zip(("quantized", "scale", "zero_point"), parts, strict=False)
    ]
    attributes = {"axis": site.input_axis, "block_size": rounded.block_size} if blocked else {"axis": site.output_axis}
    dequantize = editor.insert_after(weight, "DequantizeLinear", inputs, attributes, name=f"{name}_dequantize")
    result = dequantize.outputs[0]
    result.shape, result.type = weight.shape, ir.TensorType(dtype)
    return dequantize


def replace_weight(editor: GraphEditor, weight: ir.Value, result: ir.Value) -> None:
    """Let every reader of a constant weight read `result`, and drop the constant, also from memory."""
    producer = weight.producer()
    tensor = constant_tensor(weight)
    if tensor is not None:
        release(tensor)
    editor.replace_uses(weight, result)
    if producer is not None:
        editor.remove_unused((producer,))
    elif weight.name is not None and not weight.is_graph_input():
        editor.graph.initializers.pop(weight.name)


def _has_offsets(rounded: BlockCodes) -> bool:
    return rounded.zero_point is not None and rounded.zero_point.dtype == np.float32


def _with_offsets(editor: GraphEditor, value: ir.Value, site: WeightSite, rounded: BlockCodes) -> ir.Value:
    """Return `value` plus `-zero_point * scale`, the offset of each block. Blocks fill the input axis."""
    size, dtype = rounded.block_size, value.dtype or ir.DataType.FLOAT
    shape, axis = list(site.shape), site.input_axis
    blocked = [*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :]]
    offset = scales_as(-rounded.grid.offset * rounded.scale, dtype)
    name = f"{site.name}_offset"
    cut = editor.add_initializer(f"{name}_blocks", np.array(blocked, np.int64))
    whole = editor.add_initializer(f"{name}_whole", np.array(shape, np.int64))
    shift = editor.add_initializer(name, np.expand_dims(_placed(offset, site), axis + 1))
    for op_type, other, sizes in (("Reshape", cut, blocked), ("Add", shift, blocked), ("Reshape", whole, shape)):
        value = editor.insert_after(value, op_type, (value, other), name=f"{name}_{op_type}").outputs[0]
        value.shape, value.type = ir.Shape(sizes), ir.TensorType(dtype)
    return value


def _placed(array: NDArray[Any], site: WeightSite) -> NDArray[Any]:
    """Return an array [outputs, anything] with its axes where the weight has them."""
    if not site.is_matrix:
        return array.reshape(site.shape)
    axes = [1] * len(site.shape)
    axes[site.output_axis], axes[site.input_axis] = array.shape
    placed = array.T if site.output_axis > site.input_axis else array
    return placed.reshape(axes)


def _packed(codes: NDArray[Any], bits: int, symmetric: bool) -> ir.TensorProtocol:
    dtype = _TYPES[bits, symmetric]
    if bits == 8:
        return ir.tensor(np.ascontiguousarray(codes))
    return ir.PackedTensor(pack_codes(codes, bits), dtype, shape=ir.Shape(codes.shape))


def scales_as(scale: NDArray[np.float32], dtype: ir.DataType) -> NDArray[Any]:
    """Return scales as a graph with weights of that type stores them."""
    if dtype != ir.DataType.FLOAT16:
        return scale
    # Codes were chosen on scales that float16 holds, so nothing is rounded here but by a caller with other scales. One
    # below the smallest float16 would become 0, and all its weights with it.
    limits = np.finfo(np.float16)
    return np.where(scale > 0, np.clip(scale, limits.smallest_subnormal, limits.max), scale).astype(np.float16)
