"""Pairs fuse into a product only if both its inputs have one, and activations share one scale per tensor."""

from collections.abc import Iterator
from math import prod

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield findings for products and sums with one quantized input, and for activations with many scales."""
    if not isinstance(dialect, TensorRTDialect):
        return
    half = [name_of(node) for node in nodes_of(model.ir, *dialect.operators) if _is_half_quantized(node)]
    if half:
        yield Finding(
            "Products have a quantized activation and another input in float, so they run in float and the pair costs.",
            "Quantize both inputs, or leave these out of the quantizing step.",
            tuple(half),
        )
    sums = [name_of(node) for node in nodes_of(model.ir, "Add") if _is_half_quantized(node)]
    if sums:
        yield Finding(
            "Sums of two branches have a pair on one of them only, so the sum runs in float behind a reformat.",
            "Quantize the other branch too.",
            tuple(sums),
        )
    scaled = [
        name_of(node)
        for node in nodes_of(model.ir, "QuantizeLinear")
        if constant_tensor(node.inputs[0]) is None and _count(node.inputs[1]) != 1
    ]
    if scaled:
        yield Finding(
            "Activations have a scale for each channel or block, and TensorRT takes one for the whole tensor.",
            "Quantize activations per tensor, and only weights per channel.",
            tuple(scaled),
        )


def _is_half_quantized(node: ir.Node) -> bool:
    """Return whether a quantized activation meets a value in float. Constants of a sum are no branch."""
    inputs = [value for value in node.inputs[:2] if value is not None]
    if node.op_type == "Add":
        inputs = [value for value in inputs if constant_tensor(value) is None]
    dequantized = [value for value in inputs if _is_dequantized(value)]
    activations = [value for value in dequantized if not _is_weight(value)]
    return len(inputs) > 1 and bool(activations) and len(dequantized) < len(inputs)


def _is_dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_weight(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and constant_tensor(producer.inputs[0]) is not None


def _count(value: ir.Value | None) -> int:
    tensor = constant_tensor(value)
    return prod(int(size) for size in tensor.shape.numpy()) if tensor is not None else 1
