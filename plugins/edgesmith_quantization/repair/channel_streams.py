"""Finds the channels that convolutions pass to one another, and scales them: exact where nothing bounds them.

The channels of an image can be divided one by one wherever convolutions alone make them and convolutions or a head
alone read them: between come Relu, pools and residual sums, which all pass a positive factor on. All values that must
share their factors form one stream. A depthwise convolution separates streams: it reads one and makes another. A Clip
from 0 to a bound passes a factor on as long as values stay below the bound; beyond, they are cut off earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_scalar, constant_value
from edgesmith_quantization.arithmetic.rounding import along
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.finding.disjoint_sets import DisjointSets
from edgesmith_quantization.repair.migration import rename_scaled
from edgesmith_quantization.repair.smoothing import Float64

_PASSING = frozenset({"Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})


@dataclass(frozen=True, slots=True)
class ChannelStream:
    """Images that share one factor per channel, with who makes them and who reads them."""

    values: tuple[ir.Value, ...]
    """In graph order; the channels are dimension 1 of all of them."""
    writers: tuple[Candidate, ...]
    readers: tuple[Candidate, ...]

    bound: float | None
    """Where a Clip cuts the images off, if one does."""

    @property
    def images(self) -> tuple[ir.Value, ...]:
        """Those of the values that are quantized: what is read by others than a Relu or Clip."""
        return tuple(
            value for value in self.values if any(node.op_type not in ("Relu", "Clip") for node, _ in value.uses())
        )


def find_streams(graph: ir.Graph, candidates: Sequence[Candidate]) -> tuple[ChannelStream, ...]:
    """Return the streams between products that will be quantized, in graph order.

    A stream that anything else makes or reads, that is an input or output of the graph, or whose weights are shared
    with a product elsewhere, is left out.
    """
    by_node = {candidate.node: candidate for candidate in candidates}
    sets = _Sets()
    for value in (*graph.inputs, *graph.outputs):
        sets.block(value)
    for node in graph:
        _visit(node, by_node, sets)
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in (value for node in graph for value in node.outputs):
        groups.setdefault(sets.root(value), []).append(value)
    streams = []
    for root, values in groups.items():
        writers = tuple(c for c in candidates if c.node.op_type == "Conv" and sets.root(c.node.outputs[0]) is root)
        readers = tuple(c for c in candidates if sets.root(c.activation) is root)
        if writers and readers and root not in sets.blocked:
            clips = [each for each in map(ir.Value.producer, values) if each is not None and each.op_type == "Clip"]
            bounds = [bound for each in clips if (bound := constant_scalar(each.inputs[2])) is not None]
            streams.append(ChannelStream(tuple(values), writers, readers, min(bounds, default=None)))
    return tuple(streams)


def scale_stream(editor: GraphEditor, stream: ChannelStream, factor: Float64) -> None:
    """Multiply the channels of a stream by `factor`, [channels] positive, in its weights. Edits the graph.

    The values of the stream get other names.
    """
    for writer in stream.writers:
        _multiply(editor, writer, 1, factor)
        if writer.bias is not None:
            _multiply(editor, writer, 2, factor)
    for reader in stream.readers:
        _multiply(editor, reader, 1, 1 / factor, along_inputs=True)
    rename_scaled(editor, stream.values)


class _Sets(DisjointSets[ir.Value]):
    """Values that share their factors, and sets that cannot be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self._blocked: set[ir.Value] = set()

    def block(self, value: ir.Value) -> None:
        self._blocked.add(value)

    @property
    def blocked(self) -> set[ir.Value]:
        return {self.root(value) for value in self._blocked}


def _visit(node: ir.Node, by_node: dict[ir.Node, Candidate], sets: _Sets) -> None:
    candidate = by_node.get(node)
    if candidate is not None and _is_separable(candidate):
        if node.op_type != "Conv":
            sets.block(node.outputs[0])
        return
    inputs = [value for value in node.inputs if value is not None]
    if _passes_factors(node):
        for value in inputs if node.op_type == "Add" else inputs[:1]:
            sets.join(value, node.outputs[0])
        return
    for value in (*inputs, *node.outputs):
        sets.block(value)


def _is_separable(candidate: Candidate) -> bool:
    """Return whether the weight and bias are this product's alone, and its channels are dimension 1 of its input."""
    shared = [value for value in (candidate.weight, candidate.bias) if value is not None and len(value.uses()) != 1]
    rank = None if candidate.activation.shape is None else len(candidate.activation.shape)
    return not shared and not candidate.transposed and (candidate.node.op_type == "Conv" or rank == 2)


def _passes_factors(node: ir.Node) -> bool:
    """Return whether a positive factor on a channel of what a node reads is one on what it makes."""
    if node.domain != "" or len(node.outputs) != 1:
        return False
    if node.op_type == "Clip":
        bounds = [constant_scalar(value) for value in node.inputs[1:]]
        return len(bounds) == 2 and bounds[0] == 0.0 and bounds[1] is not None and bounds[1] > 0
    if node.op_type == "Add":
        shapes = [value.shape for value in node.inputs if value is not None]
        return len(shapes) == 2 and None not in shapes and shapes[0] == shapes[1]
    if node.op_type == "ReduceMean":
        axes = constant_value(node.inputs[1] if len(node.inputs) > 1 else None)
        rank = 4 if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
        return axes is not None and not {0, 1} & {int(axis) % rank for axis in axes}
    if node.op_type in ("Flatten", "Squeeze"):
        value, made = node.inputs[0], node.outputs[0]
        if value is None or value.shape is None or made.shape is None or len(made.shape) != 2:
            return False
        return list(value.shape[2:]) == [1] * (len(value.shape) - 2) and list(made.shape) == list(value.shape[:2])
    return node.op_type in _PASSING


def _multiply(
    editor: GraphEditor, candidate: Candidate, index: int, factor: Float64, *, along_inputs: bool = False
) -> None:
    """Multiply a weight (input 1) or bias (input 2) of a product along its outputs or, if asked, its inputs."""
    value = candidate.node.inputs[index]
    array = constant_value(value)
    if value is None or array is None:
        raise ValueError(candidate.name)  # candidates hold constants only
    if not along_inputs:
        scaled = array * along(factor, 0, array.ndim)
    elif candidate.node.op_type == "Conv":
        groups = candidate.node.attributes.get_int("group", 1)
        per_output = np.repeat(factor.reshape(groups, -1), array.shape[0] // groups, axis=0)
        scaled = array * per_output.reshape(*per_output.shape, *[1] * (array.ndim - 2))
    else:
        scaled = array * along(factor, 1 - candidate.channel_axis, array.ndim)
    initializer = editor.add_initializer(f"{value.name}_scaled", scaled.astype(np.float32))
    candidate.node.replace_input_with(index, initializer)
