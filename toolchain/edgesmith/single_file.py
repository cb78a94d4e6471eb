"""Writes a graph as one ONNX file, byte for byte as protobuf would, without a copy of its weights.

Protobuf needs all weights in one message, and once more in the bytes that it makes of it. Here the message is made
without the large ones, which are written at their place from where they lie.
"""

from pathlib import Path
from typing import TypeVar

import onnx
import onnx_ir as ir

from edgesmith.mapped import stored_pieces

_LARGE_BYTES = 1 << 16
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of fields in ModelProto, GraphProto and TensorProto (onnx.proto)."""

MessageT = TypeVar("MessageT", onnx.ModelProto, onnx.GraphProto, onnx.TensorProto)


def write_single_file(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`. The same graph gives the same bytes.

    Args:
        model: The graph. It is not changed.
        path: The destination.

    Raises:
        OSError: It cannot be written.
    """
    light = model.clone()
    large: dict[str, ir.TensorProtocol] = {}
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and _is_large(tensor):
            large[name] = tensor
            value.const_value = ir.ExternalTensor(
                "", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    proto = ir.serde.serialize_model(light)
    heads = [_initializer(entry, large.get(entry.name)) for entry in proto.graph.initializer]
    tensors = [large.get(entry.name) for entry in proto.graph.initializer]
    before, after = _around(proto.graph, _INITIALIZER)
    size = len(before) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in large.values()) + len(after)
    start, end = _around(proto, _GRAPH)
    with path.open("wb") as stream:
        stream.write(start + _key(_GRAPH, size) + before)
        for head, tensor in zip(heads, tensors, strict=True):
            stream.write(head)
            for piece in stored_pieces(tensor) if tensor is not None else ():
                stream.write(piece.data)
        stream.write(after + end)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Return whether a tensor is worth writing by itself, and has nothing but numbers to write."""
    return tensor.nbytes > _LARGE_BYTES and tensor.dtype != ir.DataType.STRING and not tensor.metadata_props


def _initializer(entry: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> bytes:
    """Return an initializer as a field of its graph; of a large one, all that stands before its numbers."""
    content = _bytes(entry)
    if tensor is not None:
        entry.ClearField("external_data")
        entry.ClearField("data_location")
        content = _bytes(entry) + _key(_RAW_DATA, tensor.nbytes)
    return _key(_INITIALIZER, len(content) + (0 if tensor is None else tensor.nbytes)) + content


def _around(message: MessageT, number: int) -> tuple[bytes, bytes]:
    """Return the fields of a message before and after the one of that number."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return _bytes(before), _bytes(after)


def _bytes(message: MessageT) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content


def _key(number: int, length: int) -> bytes:
    """Return what stands before the content of a field of that number and length (wire type 2)."""
    return bytes((number << 3 | 2,)) + _varint(length)


def _varint(number: int) -> bytes:
    """Return an integer in protobuf's form: seven bits a byte, least first, each but the last with an eighth bit."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
