"""Operators that ONNX itself defines by simpler ones: their bodies, for those the operator table leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Body:
    """The definition of an operator as a graph."""

    function: ir.Function
    defaults: Mapping[str, ir.Attr]
    """Values of the attributes that a node may leave out."""


def schema_function(node: ir.Node, version: int) -> Body | None:
    """Return the body that ONNX gives for the operator of `node` at an opset version, or None if it has none."""
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=version, domain=node.domain)
    except onnx.defs.SchemaError:
        return None
    content = _content(schema, node, version)
    if content is None:
        return None
    proto = onnx.FunctionProto()
    proto.ParseFromString(content)
    defaults = {
        name: ir.from_proto(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    return Body(ir.from_proto(proto), defaults)


def _content(schema: onnx.defs.OpSchema, node: ir.Node, version: int) -> bytes | None:
    fitting = [known for known in schema.function_opset_versions if known <= version]
    if fitting:
        content: bytes = schema.get_function_with_opset_version(max(fitting))
        return content
    fitting = [known for known in schema.context_dependent_function_opset_versions if known <= version]
    if not fitting:
        return None
    types = [_type(value) for value in node.inputs]
    body: bytes = schema.get_context_dependent_function_with_opset_version(
        max(fitting), ir.to_proto(node).SerializeToString(), types
    )
    return body or None


def _type(value: ir.Value | None) -> bytes:
    proto = onnx.TypeProto()
    if value is not None and value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None and isinstance(value.type, ir.TensorType):
            ir.serde.serialize_shape_into(proto, value.shape)
    content: bytes = proto.SerializeToString()
    return content
