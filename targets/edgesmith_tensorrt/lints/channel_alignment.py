"""Channels should be multiples of what tensor cores take: 8 in float16, 16 in INT8. Others are padded at run time."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

_SMALLEST = 16
"""Layers of fewer channels, such as the first convolution of an image, never fill a tensor core."""


_PRODUCTS = ("MatMul", "Gemm", "Conv")


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for products and convolutions whose channels do not fit, by precision."""
    wrong: dict[tuple[str, int], list[str]] = {}
    for node in nodes_of(model.ir, *_PRODUCTS):
        precision = "int8" if _is_quantized(node) else "float16"
        multiple = dialect.alignment.get(precision, 1)
        channels = [size for size in _channels(node) if size >= _SMALLEST]
        if any(size % multiple for size in channels):
            wrong.setdefault((precision, multiple), []).append(name_of(node))
    on_dla = isinstance(dialect, TensorRTDialect) and dialect.accelerator is not None
    products = "products that fall back to the GPU" if on_dla else "products"
    for (precision, multiple), nodes in wrong.items():
        yield Finding(
            f"Channels are no multiple of {multiple}, so {precision} {products} are padded or leave the tensor cores.",
            "Round widths when pruning, or choose a width that fits.",
            tuple(nodes),
        )


def _is_quantized(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(each is not None and each.op_type == "DequantizeLinear" for each in producers)


def _channels(node: ir.Node) -> list[int]:
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        weight = producer.inputs[0]
    tensor = constant_tensor(weight)
    if tensor is None or len(tensor.shape) < 2:
        return []
    shape = [int(size) for size in tensor.shape.numpy()]
    transposed = node.attributes.get_int("transB", 0) == 1
    made, read = shape[:2] if node.op_type == "Conv" or transposed else (shape[-1], shape[-2])
    if node.op_type == "Conv" and read == 1 and node.attributes.get_int("group", 1) > 1:
        # A depthwise convolution does not run on tensor cores at all.
        return []
    # How many words or classes a head tells apart is given, and no step can change it.
    return [read] if _is_head(node) else [made, read]


def _is_head(node: ir.Node) -> bool:
    """Return whether no other product stands between a node and an output of the graph."""
    value = node.outputs[0]
    while not value.is_graph_output():
        readers = {reader for reader, _ in value.uses()}
        if len(readers) != 1 or next(iter(readers)).op_type in _PRODUCTS:
            return False
        value = readers.pop().outputs[0]
    return True
