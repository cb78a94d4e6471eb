"""Heads: the last layers before the outputs of the graph."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgesmith.graph.convolution import Convolution
from edgesmith.graph.dataflow import Dataflow, walk_back
from edgesmith.graph.edit import constant_value
from edgesmith.graph.embedding import Embedding
from edgesmith.graph.linear import Linear, by_node

HeadKind = Literal["classifier", "language_model", "dense"]

_COMPARED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """The layer that makes an output of the graph.

    The kinds: "language_model" scores every entry of the token table at each position, "classifier" is any other linear
    layer, "dense" a convolution.
    """

    kind: HeadKind
    node: str
    weight: str
    input: str
    value: str
    """Value that the layer makes, with its bias."""
    output: str
    """Output of the graph."""
    classes: int
    """Output features or channels."""
    tied: bool
    """Whether its weight is the token table."""
    before: tuple[Linear, ...]
    """Linear layers between the blocks and the head, such as a pooler."""


def find_heads(
    flow: Dataflow,
    linears: Sequence[Linear],
    convolutions: Sequence[Convolution],
    embeddings: Sequence[Embedding],
    claimed: Collection[str],
) -> list[Head]:
    """Return the heads, one per output of the graph that has one.

    Args:
        flow: The graph.
        linears: All linear layers.
        convolutions: All convolutions.
        embeddings: All embeddings; a head may be tied to one.
        claimed: Outputs of nodes that end a walk from an output without being a head: what blocks consist of.
    """
    layers: dict[ir.Node, Linear | Convolution] = {**by_node(flow, linears)}
    layers.update({flow.producer(convolution.output): convolution for convolution in convolutions})
    stop = {flow.producer(name) for name in claimed}
    heads = []
    for output in flow.model.graph.outputs:
        found = [each for each in _layers_behind(flow, output, layers, stop) if _product(each) not in claimed]
        if len(found) != 1:
            continue
        layer = found[0]
        before: list[Linear] = []
        following = _layers_behind(flow, flow.value(layer.input), layers, stop)
        while len(following) == 1 and isinstance(following[0], Linear) and following[0].product not in claimed:
            before.insert(0, following[0])
            following = _layers_behind(flow, flow.value(following[0].input), layers, stop)
        heads.append(_head(flow, output, layer, before, embeddings))
    return heads


def _head(
    flow: Dataflow,
    output: ir.Value,
    layer: Linear | Convolution,
    before: Sequence[Linear],
    embeddings: Sequence[Embedding],
) -> Head:
    if isinstance(layer, Convolution):
        kind, classes, tied, value = "dense", layer.out_channels, False, layer.final
    else:
        tokens = [embedding for embedding in embeddings if embedding.kind == "token"]
        shape = flow.shapes.shape(flow.value(layer.output)) or ()
        scores_tokens = len(shape) > 2 and any(embedding.rows == layer.out_features for embedding in tokens)
        kind = "language_model" if scores_tokens else "classifier"
        classes, value = layer.out_features, layer.output
        tied = any(_same(flow, embedding, layer) for embedding in tokens)
    return Head(
        kind=kind,  # type: ignore[arg-type]
        node=layer.node,
        weight=layer.weight,
        input=layer.input,
        value=value,
        output=output.name or "",
        classes=classes,
        tied=tied,
        before=tuple(before),
    )


def _layers_behind(
    flow: Dataflow, value: ir.Value, layers: dict[ir.Node, Linear | Convolution], stop: Collection[ir.Node]
) -> list[Linear | Convolution]:
    """Return the layers with weights that a value is directly computed from."""

    def passes(node: ir.Node) -> bool:
        return node not in layers and node not in stop and node.op_type not in ("Shape", "Size", "If", "Loop", "Scan")

    ends = [end.producer() for end in walk_back(value, passes)]
    if any(node in stop and node not in layers for node in ends):
        return []
    return list(dict.fromkeys(layers[node] for node in ends if node is not None and node in layers))


def _product(layer: Linear | Convolution) -> str:
    return layer.product if isinstance(layer, Linear) else layer.output


def _same(flow: Dataflow, embedding: Embedding, linear: Linear) -> bool:
    """Whether a linear layer uses a table as its weight, stored once or twice."""
    if embedding.table == linear.weight:
        return True
    table, weight = constant_value(flow.value(embedding.table)), constant_value(flow.value(linear.weight))
    if table is None or weight is None or linear.weight_axis is None or weight.ndim != 2:
        return False
    if linear.weight_axis == 1:
        weight = weight.T
    if table.shape != weight.shape or table.dtype != weight.dtype:
        return False
    rows = range(0, table.shape[0], _COMPARED_ROWS)
    return all(np.array_equal(table[row : row + _COMPARED_ROWS], weight[row : row + _COMPARED_ROWS]) for row in rows)
