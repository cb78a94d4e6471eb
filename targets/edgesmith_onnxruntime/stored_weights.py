"""Reads the weights that a graph stores in few bits and dequantizes: where they are, and in which form."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor

BITS = {
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT2: 2,
    ir.DataType.UINT2: 2,
}
"""Types that weights are stored in."""

_PASSING = {"Transpose": 1, "Reshape": 2, "Add": 2, "Identity": 1}
"""What may stand between a dequantized weight and its reader, with the number of inputs; all but the first constant."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A constant matrix behind a DequantizeLinear, with what reads it."""

    dequantize: ir.Node
    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    bits: int
    axis: int
    """Dimension of the blocks, or of the channels where there are none."""
    block_size: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        tensor = constant_tensor(self.codes)
        return () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def find_stored_weights(graph: ir.Graph) -> Iterator[StoredWeight]:
    """Yield every 2-D float32 weight that the main graph dequantizes from 8, 4 or 2 bits."""
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and node.domain == "":
            stored = _stored_weight(node)
            if stored is not None:
                yield stored


def source_weight(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that a value is made from, moved and shifted by constants at most."""
    while value is not None:
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type == "DequantizeLinear":
            return node
        if node.op_type not in _PASSING or any(constant_tensor(each) is None for each in node.inputs[1:]):
            return None
        value = node.inputs[0]
    return None


def _stored_weight(node: ir.Node) -> StoredWeight | None:
    codes, scale, *rest = node.inputs
    zero_point = rest[0] if rest else None
    tensor, scales = constant_tensor(codes), constant_tensor(scale)
    if codes is None or scale is None or tensor is None or scales is None or tensor.dtype not in BITS:
        return None
    if zero_point is not None and constant_tensor(zero_point) is None:
        return None
    if len(tensor.shape) != 2 or scales.dtype != ir.DataType.FLOAT or len(scales.shape) == 0:
        return None
    axis = node.attributes.get_int("axis", 1) % 2
    block_size = node.attributes.get_int("block_size", 0)
    return StoredWeight(node, codes, scale, zero_point, BITS[tensor.dtype], axis, block_size or None)
