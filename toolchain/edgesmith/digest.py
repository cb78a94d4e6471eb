"""A hash of what a model is, whatever file it came from."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgesmith.mapped import is_unchangeable, stored_pieces

_REMEMBERED = "edgesmith.sha256"


class _Sink(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def digest_graph(model: ir.Model) -> str:
    """Return the SHA-256 of a graph: operators, names, shapes, attributes, metadata and weights.

    Two graphs have the same digest when they would be written to the same bytes; whether weights sit in external
    files, in raw or in typed fields makes no difference. Weights are read in pieces, and mapped ones only once.
    """
    sink = hashlib.sha256()
    _text(sink, "opsets", *(f"{domain}={version}" for domain, version in sorted(model.opset_imports.items())))
    _metadata(sink, model.metadata_props)
    _graph(sink, model.graph)
    for identifier in sorted(model.functions):
        function = model.functions[identifier]
        _text(sink, "function", *identifier, *(str(value.name) for value in (*function.inputs, *function.outputs)))
        for name in sorted(function.attributes):
            _attribute(sink, function.attributes[name])
        _nodes(sink, function)
    return sink.hexdigest()


def _text(sink: _Sink, *parts: str) -> None:
    # Lengths are part of the hash, so that moving a character between neighbours changes it.
    sink.update("".join(f"{len(part)}:{part}" for part in parts).encode())
    sink.update(b"\n")


def _metadata(sink: _Sink, properties: Mapping[str, str]) -> None:
    for key in sorted(properties):
        _text(sink, "metadata", key, properties[key])


def _graph(sink: _Sink, graph: ir.Graph) -> None:
    _text(sink, "graph", graph.name or "")
    _metadata(sink, graph.metadata_props)
    for role, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            _value(sink, role, value)
    for name in sorted(graph.initializers):
        tensor = graph.initializers[name].const_value
        _text(sink, "initializer", name)
        if tensor is not None:
            _tensor(sink, tensor)
    _nodes(sink, graph)


def _nodes(sink: _Sink, nodes: Iterable[ir.Node]) -> None:
    for node in nodes:
        inputs = ("" if value is None else str(value.name) for value in node.inputs)
        _text(sink, "node", node.domain, node.op_type, node.overload, node.name or "", *inputs)
        _metadata(sink, node.metadata_props)
        for name in sorted(node.attributes):
            _attribute(sink, node.attributes[name])
        for value in node.outputs:
            _value(sink, "value", value)


def _value(sink: _Sink, role: str, value: ir.Value) -> None:
    # `SymbolicDim` prints as its name, and an unnamed one as None.
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    _text(sink, role, value.name or "", str(value.type), str(shape))
    _metadata(sink, value.metadata_props)


def _attribute(sink: _Sink, attribute: ir.Attr) -> None:
    kind, value = attribute.type, attribute.value
    _text(sink, "attribute", attribute.name, kind.name, attribute.ref_attr_name or "")
    match kind:
        case _ if attribute.is_ref() or value is None:
            return
        case ir.AttributeType.TENSOR:
            _tensor(sink, value)
        case ir.AttributeType.TENSORS:
            for tensor in value:
                _tensor(sink, tensor)
        case ir.AttributeType.GRAPH:
            _graph(sink, value)
        case ir.AttributeType.GRAPHS:
            for graph in value:
                _graph(sink, graph)
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            # The file keeps 32 bits; what Python printed before saving would differ from what it prints after.
            sink.update(np.atleast_1d(np.asarray(value, np.float32)).tobytes())
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            _text(sink, *(str(item) for item in value))
        case _:
            _text(sink, str(value))


def _tensor(sink: _Sink, tensor: ir.TensorProtocol) -> None:
    _text(sink, "tensor", tensor.dtype.name, str(list(tensor.shape.numpy())))
    sink.update(content_hash(tensor))


def content_hash(tensor: ir.TensorProtocol) -> bytes:
    """Return the SHA-256 of a tensor's bytes as an ONNX file holds them, or of its texts.

    It is remembered for tensors in mapped files, which nobody can change: a graph is hashed before and after each
    step, and reading gigabytes of weights each time would take longer than most steps. A tensor in memory is hashed
    again each time, since a faulty method may have written to it.
    """
    remembered = tensor.meta.get(_REMEMBERED)
    if isinstance(remembered, bytes):
        return remembered
    sink = hashlib.sha256()
    if tensor.dtype == ir.DataType.STRING:
        _text(sink, *(str(item) for item in tensor.numpy().reshape(-1)))
        return sink.digest()
    for piece in stored_pieces(tensor):
        sink.update(piece.data)
    if is_unchangeable(tensor):
        tensor.meta[_REMEMBERED] = sink.digest()
    return sink.digest()
