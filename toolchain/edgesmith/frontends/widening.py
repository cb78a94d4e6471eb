"""Writes a graph with float32 in place of float16, so that two forms of it can be held against each other.

A form that rounds to float16 in other places gives other numbers, by far more than another order of summation does.
In float32 the same two forms agree, unless one of them computes something else.
"""

import numpy as np
import onnx_ir as ir

_HALF, _FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype", "precision"))


def with_float32(model: ir.Model) -> ir.Model:
    """Return a copy in which every float16 is float32: inputs, weights, constants, casts and outputs.

    Args:
        model: Any graph. It is not changed; weights in other types are shared with it.
    """
    copy = model.clone()
    for graph in (*copy.graphs(), *copy.functions.values()):
        values = [output for node in graph for output in node.outputs]
        if isinstance(graph, ir.Graph):
            values.extend(graph.inputs)
            for weight in graph.initializers.values():
                if weight.const_value is not None:
                    weight.const_value = _widened(weight.const_value)
            values.extend(graph.initializers.values())
        for value in values:
            if isinstance(value.type, ir.TensorType) and value.dtype == _HALF:
                value.type = ir.TensorType(_FULL)
        for node in graph:
            for name, attribute in tuple(node.attributes.items()):
                node.attributes[name] = _widened_attribute(attribute)
    return copy


def _widened_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.is_ref():
        return attribute
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, _widened(attribute.as_tensor()))
    states_half = attribute.type == ir.AttributeType.INT and attribute.as_int() == _HALF
    if states_half and attribute.name in _TYPE_ATTRIBUTES:
        return ir.AttrInt64(attribute.name, int(_FULL))
    return attribute


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != _HALF:
        return tensor
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
