"""One transformer block, written in any of the ways that exporters write it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, HEAD_DIM, HIDDEN = 24, 4, 6, 40


@dataclass(frozen=True)
class Style:
    """How a block is written."""

    projections: str = "separate"
    """separate, split (q then k then v), stacked (3 x heads x size) or interleaved (heads x 3 x size)."""
    linear: str = "matmul"
    """matmul, transposed (a Transpose of the stored weight) or gemm."""
    scale: str = "scores"
    """query, key, both, scores, divide or none."""
    mask: str = "none"
    """none, add, where, constant (causal table) or causal (positions compared at run time)."""
    product: str = "four"
    """four (batch x heads x ...), three (batch and heads folded) or einsum."""
    guard: bool = False
    """Whether rows that are hidden completely are set to zero behind the softmax."""
    kv_heads: int = HEADS
    dynamic: bool = False
    """Whether targets of Reshape are computed from shapes."""
    quantized: bool = False
    """Whether Q/DQ pairs stand before all products."""
    norm: str = "pre"
    """pre or post."""


class Builder:
    """Writes nodes; every method returns the name of the value it makes."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def const(self, array: Any, dtype: Any = np.int64) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), f"c{len(self.weights)}"))
        return self.weights[-1].name

    def weight(self, *shape: int) -> str:
        return self.const(self.random.normal(size=shape) * 0.2, np.float32)

    def quantize(self, value: str) -> str:
        if not self.style.quantized:
            return value
        scale, zero = self.const(0.05, np.float32), self.const(0, np.int8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", value, scale, zero), scale, zero)

    def reshape(self, value: str, *sizes: int) -> str:
        """Reshape behind batch and sequence, with a constant target or one computed from the value's shape."""
        if not self.style.dynamic:
            return self.op("Reshape", value, self.const([0, 0, *sizes]))
        shape = self.op("Shape", value)
        parts = [self.op("Unsqueeze", self.op("Gather", shape, self.const(i)), self.const([0])) for i in range(2)]
        return self.op("Reshape", value, self.op("Concat", *parts, self.const(sizes), axis=0))

    def linear(self, value: str, outputs: int, inputs: int = WIDTH) -> str:
        bias = self.weight(outputs)
        if self.style.linear == "gemm":
            flat = self.op("Reshape", value, self.const([-1, inputs]))
            product = self.op("Gemm", self.quantize(flat), self.quantize(self.weight(outputs, inputs)), bias, transB=1)
            shape = self.op("Concat", self.op("Shape", "x", end=2), self.const([outputs]), axis=0)
            return self.op("Reshape", product, shape)
        if self.style.linear == "transposed":
            weight = self.op("Transpose", self.quantize(self.weight(outputs, inputs)), perm=[1, 0])
        else:
            weight = self.quantize(self.weight(inputs, outputs))
        return self.op("Add", self.op("MatMul", self.quantize(value), weight), bias)

    def projections(self, value: str) -> list[str]:
        """Return queries, keys and values of shape (batch, heads, sequence, size)."""
        kv_heads = self.style.kv_heads
        if self.style.projections == "separate":
            sizes = (HEADS, kv_heads, kv_heads)
            parts = [self.reshape(self.linear(value, heads * HEAD_DIM), heads, HEAD_DIM) for heads in sizes]
        elif self.style.projections == "split":
            sizes = [HEADS * HEAD_DIM, kv_heads * HEAD_DIM, kv_heads * HEAD_DIM]
            whole = self.linear(value, sum(sizes))
            split = self.op("Split", whole, self.const(sizes), outputs=3, axis=-1)
            parts = [self.reshape(each, size // HEAD_DIM, HEAD_DIM) for each, size in zip(split, sizes, strict=True)]
        elif self.style.projections == "stacked":
            whole = self.reshape(self.linear(value, 3 * WIDTH), 3, HEADS, HEAD_DIM)
            moved = self.op("Transpose", whole, perm=[2, 0, 3, 1, 4])
            return [self.op("Gather", moved, self.const(i), axis=0) for i in range(3)]
        else:
            whole = self.reshape(self.linear(value, 3 * WIDTH), HEADS, 3, HEAD_DIM)
            split = self.op("Split", whole, outputs=3, axis=3, num_outputs=3)
            parts = [self.op("Squeeze", each, self.const([3])) for each in split]
        moved = [self.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]
        return [moved[0], self.repeat(moved[1]), self.repeat(moved[2])]

    def repeat(self, value: str) -> str:
        groups = HEADS // self.style.kv_heads
        if groups == 1:
            return value
        wide = self.op("Unsqueeze", value, self.const([2]))
        wide = self.op("Expand", wide, self.const([1, 1, groups, 1, 1]))
        return self.op("Reshape", wide, self.const([0, HEADS, -1, HEAD_DIM]))

    def scaled(self, value: str, *, root: bool = False) -> str:
        factor = HEAD_DIM ** (-0.25 if root else -0.5)
        return self.op("Mul", value, self.const(factor, np.float32))

    def masked(self, scores: str) -> str:
        visible = self.op("Unsqueeze", "mask", self.const([1, 2]))
        if self.style.mask == "add":
            hidden = self.op("Sub", self.const(1, np.float32), self.op("Cast", visible, to=TensorProto.FLOAT))
            return self.op("Add", scores, self.op("Mul", hidden, self.const(-1e9, np.float32)))
        low = self.const(-np.inf, np.float32)
        if self.style.mask == "where":
            return self.op("Where", self.op("Cast", visible, to=TensorProto.BOOL), scores, low)
        length = self.op("Shape", "x", start=1, end=2)
        if self.style.mask == "constant":
            # Old exporters keep a table for the longest sequence and cut out what is needed.
            table = self.const(np.tril(np.ones((1, 1, 16, 16), bool)), bool)
            for axis in (2, 3):
                table = self.op("Slice", table, self.const([0]), length, self.const([axis]))
            return self.op("Where", table, scores, low)
        scalar = self.op("Squeeze", length, self.const([0]))
        places = self.op("Range", self.const(0), scalar, self.const(1))
        later = self.op("Greater", places, self.op("Unsqueeze", places, self.const([1])))
        return self.op("Where", later, low, scores)

    def attention(self, value: str) -> str:
        query, key, values = self.projections(value)
        scale = self.style.scale
        if scale in ("query", "both"):
            query = self.scaled(query, root=scale == "both")
        if scale in ("key", "both"):
            key = self.scaled(key, root=scale == "both")
        if self.style.product == "three":
            query, key, values = (self.op("Reshape", v, self.const([-1, 7, HEAD_DIM])) for v in (query, key, values))
        if self.style.product == "einsum":
            scores = self.op("Einsum", query, key, equation="bhqd,bhkd->bhqk")
        else:
            axes = [0, 2, 1] if self.style.product == "three" else [0, 1, 3, 2]
            turned = self.op("Transpose", key, perm=axes)
            scores = self.op("MatMul", self.quantize(query), self.quantize(turned))
        if scale == "scores":
            scores = self.scaled(scores)
        elif scale == "divide":
            scores = self.op("Div", scores, self.const(HEAD_DIM**0.5, np.float32))
        if self.style.mask != "none":
            if self.style.product == "three":
                scores = self.op("Reshape", scores, self.const([-1, HEADS, 7, 7]))
            scores = self.masked(scores)
            if self.style.product == "three":
                scores = self.op("Reshape", scores, self.const([-1, 7, 7]))
        weights = self.op("Softmax", scores, axis=-1)
        if self.style.guard:
            weights = self.op("Where", self.op("IsNaN", weights), self.const(0, np.float32), weights)
        context = self.op("MatMul", self.quantize(weights), self.quantize(values))
        if self.style.product == "three":
            context = self.op("Reshape", context, self.const([-1, HEADS, 7, HEAD_DIM]))
        merged = self.op("Transpose", context, perm=[0, 2, 1, 3])
        return self.linear(self.reshape(merged, WIDTH), WIDTH)

    def norm(self, value: str) -> str:
        return self.op("LayerNormalization", value, self.weight(WIDTH), self.weight(WIDTH), axis=-1)

    def residual(self, value: str, layer: Any) -> str:
        if self.style.norm == "pre":
            return self.op("Add", value, layer(self.norm(value)))
        return self.norm(self.op("Add", layer(value), value))

    def mlp(self, value: str) -> str:
        return self.linear(self.op("Relu", self.linear(value, HIDDEN)), WIDTH, HIDDEN)


def build(style: Style, blocks: int = 2) -> ir.Model:
    """Return a model with the inputs x (batch, sequence, width) and mask (batch, sequence), and the output y."""
    builder = Builder(style)
    value = "x"
    for _ in range(blocks):
        value = builder.residual(value, builder.attention)
        value = builder.residual(value, builder.mlp)
    return finish(builder, value)


def finish(builder: Builder, value: str) -> ir.Model:
    """Return the model that a builder wrote, with `value` as its output."""
    builder.nodes.append(helper.make_node("Identity", [value], ["y"], name="last"))
    length = 7 if builder.style.product == "three" else "sequence"
    graph = helper.make_graph(
        builder.nodes,
        "block",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", length, WIDTH]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", length]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", length, WIDTH])],
        builder.weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)
