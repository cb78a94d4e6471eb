"""Writes MatMulNBits, ONNX Runtime's product of a float input and a weight of 2, 4 or 8 bits in blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith_onnxruntime.stored_weights import StoredWeight

_SIGNED = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2)
_CHANNEL_BLOCK = 128
"""Block size to write where a whole channel has one scale, which is then repeated."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The inputs of MatMulNBits that belong to a weight."""

    codes: ir.Value
    """uint8 [outputs, blocks, bytes of a block]."""
    scale: ir.Value
    zero_point: ir.Value | None
    block_size: int
    inputs: int
    outputs: int


def pack_for_nbits(editor: GraphEditor, weight: StoredWeight, products: Sequence[ir.Node]) -> PackedWeight | None:
    """Return a weight in the layout of MatMulNBits, or None where it has no such form.

    Its readers must be these products and nobody else, and nobody else may read its codes, or it would be stored
    twice; and its blocks must lie along what the products sum over.
    """
    outputs_first = {_has_outputs_first(node, weight) for node in products}
    shared = len(products) < len(_readers(weight)) or len(weight.codes.uses()) > 1
    if len(outputs_first) != 1 or None in outputs_first or shared:
        return None
    summed = 1 if True in outputs_first else 0
    along = weight.axis == summed if weight.block_size else weight.axis != summed
    size = weight.block_size or _CHANNEL_BLOCK
    # Only 4 bits have fast kernels for blocks of 16.
    if not along or size < (16 if weight.bits == 4 else 32) or size & (size - 1):
        return None
    codes, scale, zero_point = (_rows(value, summed) for value in (weight.codes, weight.scale, weight.zero_point))
    if codes is None or scale is None:
        return None
    if weight.codes.dtype in _SIGNED:
        # Unsigned codes around the middle one, which is also the zero point where none is given.
        middle = 1 << weight.bits - 1
        codes, zero_point = codes + middle, None if zero_point is None else zero_point + middle
    elif zero_point is None:
        zero_point = np.zeros_like(scale, np.int16)
    blocks = -(-codes.shape[1] // size)
    name = weight.codes.name or "weight"

    def spread(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.broadcast_to(array, (len(codes), blocks)))

    packed = _packed(_filled(codes, blocks * size), weight.bits).reshape(len(codes), blocks, -1)
    zeros = None
    if zero_point is not None:
        columns = -(-blocks * weight.bits // 8) * 8 // weight.bits
        zeros = editor.add_initializer(f"{name}_zeros", _packed(_filled(spread(zero_point), columns), weight.bits))
    return PackedWeight(
        codes=editor.add_initializer(f"{name}_packed", packed),
        scale=editor.add_initializer(f"{name}_scales", spread(scale)),
        zero_point=zeros,
        block_size=size,
        inputs=codes.shape[1],
        outputs=len(codes),
    )


def write_nbits(editor: GraphEditor, node: ir.Node, weight: StoredWeight, packed: PackedWeight, level: int) -> None:
    """Replace a product by MatMulNBits. `level` is its accuracy level: 1 for float inputs, 4 for rounded ones."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    attributes = {
        "K": packed.inputs,
        "N": packed.outputs,
        "bits": weight.bits,
        "block_size": packed.block_size,
        "accuracy_level": level,
    }
    product = editor.insert_before(
        node,
        "MatMulNBits",
        (node.inputs[0], packed.codes, packed.scale, *([packed.zero_point] if packed.zero_point else [])),
        attributes,
        domain="com.microsoft",
        name=f"{node.name}_blocks",
    ).outputs[0]
    if bias is not None:
        product = editor.insert_before(node, "Add", (product, bias), name=f"{node.name}_bias").outputs[0]
    editor.graph.opset_imports.setdefault("com.microsoft", 1)
    editor.take_over(node, product)


def _readers(weight: StoredWeight) -> set[ir.Node]:
    """Return what reads a weight, behind Transpose nodes."""
    found: set[ir.Node] = set()
    pending = [weight.dequantize.outputs[0]]
    while pending:
        for node, _ in pending.pop().uses():
            if node.op_type == "Transpose":
                pending.append(node.outputs[0])
            else:
                found.add(node)
    return found


def _has_outputs_first(node: ir.Node, weight: StoredWeight) -> bool | None:
    """Return whether a product reads the weight as [outputs, inputs]; None where more than a Transpose is between."""
    turned = bool(node.attributes.get_int("transB", 0))
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    while producer is not None and producer is not weight.dequantize:
        if producer.op_type != "Transpose":
            return None
        turned = not turned
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    return turned


def _rows(value: ir.Value | None, summed: int) -> NDArray[Any] | None:
    """Return codes as int16 and scales as they are, [outputs, inputs or blocks]; [outputs, 1] for one per channel."""
    array = constant_value(value)
    if array is None:
        return None
    plain = array if array.dtype == np.float32 else array.astype(np.int16)
    if plain.ndim == 1:
        return plain[:, None]
    return plain if summed == 1 else plain.T


def _filled(codes: NDArray[Any], columns: int) -> NDArray[Any]:
    return np.pad(codes, ((0, 0), (0, columns - codes.shape[1])))


def _packed(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the bytes of each row of unsigned codes, the first code in the lowest bits."""
    parts = codes.astype(np.uint8).reshape(len(codes), -1, 8 // bits)
    shifted = parts << (np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2))
