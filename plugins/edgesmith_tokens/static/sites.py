"""Attention layers that may get a constant map, and why others may not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.linear import Linear
from edgesmith.graph.structure import Attention, Structure

# What only moves numbers: the columns of a fused projection can be followed through it.
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity"})

# What finds tokens by their numbers: what stands at a place behind it differs from sample to sample.
_BY_CONTENT = frozenset({"TopK", "ArgMax", "ArgMin", "NonZero", "Unique", "NonMaxSuppression"})


@dataclass(frozen=True, slots=True)
class Site:
    """One attention layer of a block."""

    block: int
    """Number of the block, counted from 0 through the whole graph."""
    attention: Attention
    maps: str
    """Value of the probabilities [batch, heads, tokens, tokens]."""
    values: str
    """Value that they are multiplied with, [batch, heads, tokens, channels]."""
    heads: int
    tokens: int
    channels: int
    columns: tuple[tuple[int, ...], ...]
    """Of a linear layer that makes queries or keys too, the output features of the values of each head; empty where the
    values have a linear layer of their own."""
    obstacle: str
    """Why it must stay as it is; empty where a constant map can take its place."""

    @property
    def label(self) -> str:
        """What to call it."""
        return f"block {self.block}"


def find_sites(model: ir.Model, structure: Structure) -> tuple[Site, ...]:
    """Return the attention layers of all blocks, in the order of the data.

    Args:
        model: The graph that the structure was found in.
        structure: Its structure.
    """
    flow = Dataflow(model)
    open_ = _open_dimension(model.graph)
    main = set(model.graph)
    found = []
    for number, block in enumerate(structure.blocks):
        for attention in block.attentions:
            obstacle = _obstacle(attention) or open_
            node = flow.producer(attention.context)
            if not obstacle and node not in main:
                obstacle = "it stands in a subgraph"
            found.append(_site(flow, number, attention, node, obstacle))
    return tuple(found)


def _site(flow: Dataflow, number: int, attention: Attention, node: ir.Node, obstacle: str) -> Site:
    if not obstacle:
        obstacle = _product_obstacle(flow, attention, node)
    if obstacle:
        return Site(number, attention, "", "", 0, 0, 0, (), obstacle)
    maps, values = node.inputs
    if maps is None or values is None:  # excluded by _product_obstacle
        return Site(number, attention, "", "", 0, 0, 0, (), "its product lacks an operand")
    shape = flow.shapes.shape(values) or (0, 0, 0, 0)
    columns, obstacle = _columns(flow, attention, values)
    return Site(number, attention, maps.name or "", values.name or "", shape[1], shape[2], shape[3], columns, obstacle)


def _obstacle(attention: Attention) -> str:
    """Return why an attention layer is not one of a fixed map, from its record alone."""
    if attention.fused is not None:
        return f"one operator ({attention.fused}) does all of it; export with plain operators"
    if attention.causal:
        return "it is causal: a token must not see later ones, and texts differ in what stands where"
    if attention.padding_mask:
        return "what is added to its scores depends on the data: a padding mask, or the sizes of merged tokens"
    if attention.causal is None:
        return "its mask cannot be evaluated"
    return ""


def _open_dimension(graph: ir.Graph) -> str:
    """Return which size besides the batch is not fixed, as an obstacle."""
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if axis and not isinstance(size, int):
                name = size.value or f"axis {axis} of {value.name}"
                return f"the number of tokens is not fixed ({name} is open); fix the sizes of the inputs with `shapes`"
    return ""


def _product_obstacle(flow: Dataflow, attention: Attention, node: ir.Node) -> str:
    """Return why a constant cannot stand where the probabilities enter their product with the values."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return f"probabilities and values meet in {node.op_type}, not in a plain MatMul"
    maps, values = node.inputs
    if maps is None or values is None or maps.name != attention.probability:
        return "the values stand left of the probabilities"
    for each in (maps, values):
        producer = each.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return "its product is quantized already; make attention static before quantizing"
    if maps.is_graph_output():
        return "its probabilities are an output of the graph"
    first, second = flow.shapes.shape(maps), flow.shapes.shape(values)
    inputs = [shape for each in flow.model.graph.inputs if (shape := flow.shapes.shape(each))]
    if first is None or second is None or len(first) != 4 or len(second) != 4:
        return "probabilities and values are not [batch, heads, tokens, ...]; heads may be folded into the batch"
    if first[1:] != (second[1], second[2], second[2]):
        return f"probabilities {list(first[1:])} do not fit values {list(second[1:])}: other heads, or other tokens"
    if inputs and (first[0] != inputs[0][0] or second[0] != first[0]):
        return "its first axis is not the batch alone, as with attention in windows"
    if values.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, None):
        return f"its values are {values.dtype}"
    chosen = [each for each in flow.ancestors(values) if each.op_type in _BY_CONTENT]
    found = sorted(each.op_type for each in chosen if not flow.is_constant(each.outputs[0]))
    if found:
        return f"its tokens are chosen or ordered by their content ({found[0]}), and a map fits one order of tokens"
    return ""


def _columns(flow: Dataflow, attention: Attention, values: ir.Value) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Return which features of a fused projection are the values of each head, and why that cannot be told."""
    value = attention.value
    others = {each.linear.node for each in (attention.query, attention.key) if each is not None}
    if value is None or value.linear.node not in others:
        return (), ""
    linear = value.linear
    product = flow.producer(linear.product)
    weight = product.inputs[1] if len(product.inputs) > 1 else None
    if linear.op_type not in ("MatMul", "Gemm") or constant_tensor(weight) is None:
        return (), f"the weight of its fused projection {linear.node} is computed or quantized"
    if not _has_plain_bias(flow, linear, product):
        return (), f"the bias of its fused projection {linear.node} is computed, or not one number for each feature"
    output = flow.value(linear.output)
    strange = [node.op_type for node in flow.between(output, values) if node.op_type not in _MOVES]
    if strange:
        return (), f"between its fused projection and the values stands {strange[0]}"
    rows = _rows(flow.trace(output, values))
    return (rows, "") if rows else ((), f"the values cannot be followed in its fused projection {linear.node}")


def _has_plain_bias(flow: Dataflow, linear: Linear, product: ir.Node) -> bool:
    """Whether a linear layer has no bias, or a stored one that can be cut by output features."""
    adder = flow.producer(linear.output)
    operands = product.inputs[2:] if adder is product else [each for each in adder.inputs if flow.is_constant(each)]
    stored = [constant_tensor(each) for each in operands if each is not None]
    return all(each is not None and each.size == (each.shape[-1] if each.shape else 1) for each in stored)


def _rows(traced: NDArray[Any] | None) -> tuple[tuple[int, ...], ...]:
    """Return the source features [heads, channels], where they are the same for each sample and token."""
    if traced is None or traced.ndim != 4 or (traced < 0).any():
        return ()
    first = traced[:1, :, :1, :]
    if not np.array_equal(np.broadcast_to(first, traced.shape), traced):
        return ()
    return tuple(tuple(int(index) for index in row) for row in first[0, :, 0, :])
