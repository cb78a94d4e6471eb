"""Finds the constants that make the channels of an activation, and divides them: exact in real numbers.

An activation can be divided channel by channel at no cost where its channels come out of constants: scale and bias of
a normalization, weight and bias of a product, also behind Relu, behind the other factor of a gate, and behind the
averaging of attention, whose values pass it channel by channel. The products that read the activation take the scale
into their weights; anything else that reads it, such as a residual connection, gets it multiplied back, for the time of
one elementwise operator. Everything else is left alone, with the reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.attention import Attention
from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.edit import GraphEditor, constant_tensor, constant_value
from edgesmith.graph.linear import find_linears
from edgesmith_quantization.arithmetic.rounding import along
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.repair.smoothing import Float64

Ties = NDArray[np.int64]
Found = tuple["ScaledConstant", ...] | str
"""Constants to divide, or in words why there are none."""

_SCALED_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)}


@dataclass(frozen=True, slots=True)
class ScaledConstant:
    """One constant, read by one node, that is divided to divide the channels of an activation."""

    node: ir.Node
    index: int
    axis: int
    groups: Ties
    """[length of the axis] number of the channel group that each entry makes; -1 where it makes none."""


@dataclass(frozen=True, slots=True)
class Migration:
    """How the channels of one activation can be divided, and who must be multiplied in return."""

    activation: ir.Value
    consumers: tuple[Candidate, ...]
    constants: tuple[ScaledConstant, ...]
    ties: Ties
    """[channels] number of the group of each channel; channels of a group share one scale."""
    others: tuple[tuple[ir.Node, int], ...] = ()
    """Further readers of the activation, by node and input, for which it must be multiplied back."""


class MigrationFinder:
    """Finds where the channels of activations come from, in one graph that stays unchanged meanwhile.

    Args:
        model: The float graph.
    """

    def __init__(self, model: ir.Model) -> None:
        self._attention_outputs = _attention_values(model)

    def find(self, activation: ir.Value, consumers: Sequence[Candidate]) -> Migration | str:
        """Return how an activation can be divided, or in words why it cannot.

        Args:
            activation: What the consumers multiply.
            consumers: All candidates that read it.
        """
        obstacle = _consumer_obstacle(activation, consumers)
        if obstacle:
            return obstacle
        channels = _channels(consumers[0])
        ties = np.arange(channels)
        nodes = {candidate.node for candidate in consumers}
        others = tuple((node, index) for node, index in activation.uses() if node not in nodes)
        tied = self._attention_outputs.get(activation)
        if tied is not None and len(tied.ties) == channels and not others:
            return Migration(activation, tuple(consumers), tied.constants, tied.ties)
        rules = _CHANNELS_SECOND if consumers[0].node.op_type == "Conv" else _CHANNELS_LAST
        constants = _Walk(rules).divided(activation, ties, nodes | {node for node, _ in others})
        if isinstance(constants, str):
            return constants
        return Migration(activation, tuple(consumers), constants, ties, others)


def rename_scaled(editor: GraphEditor, values: Iterable[ir.Value]) -> None:
    """Give values whose channels were scaled names of their own.

    Values of one name are taken as the same numbers, such as where the error inside the graph is measured.
    """
    for value in values:
        value.name = editor.value_name(f"{value.name}_scaled")


def migrate(editor: GraphEditor, migration: Migration, scale: Float64) -> None:
    """Divide the channels of an activation by `scale`, and multiply the weights that read it. Edits the graph.

    Every value that is divided gets another name. What is multiplied back keeps that of the activation.

    Args:
        editor: Editor of the graph.
        migration: What `MigrationFinder.find` returned for this graph.
        scale: [channels] positive; equal within each group of `migration.ties`.
    """
    by_group = np.ones(int(migration.ties.max()) + 1)
    by_group[migration.ties] = scale
    for constant in migration.constants:
        factor = np.where(constant.groups >= 0, 1 / by_group[constant.groups], 1.0)
        _multiply(editor, constant.node, constant.index, constant.axis, factor)
    name = migration.activation.name
    rename_scaled(editor, _divided_values(migration))
    _multiply_back(editor, migration, scale, str(name))
    for candidate in migration.consumers:
        if candidate.transposed:
            _multiply(editor, candidate.node, 1, 0, scale)
        else:
            _multiply(editor, candidate.node, 1, input_axis(candidate), scale)


def _divided_values(migration: Migration) -> list[ir.Value]:
    """Return what lies on the way from the divided constants to the activation."""
    found: dict[ir.Value, None] = {}
    pending = [constant.node.outputs[0] for constant in migration.constants]
    while pending:
        value = pending.pop()
        if value not in found:
            found[value] = None
            if value is not migration.activation:
                pending.extend(output for node, _ in value.uses() for output in node.outputs)
    return list(found)


def _multiply_back(editor: GraphEditor, migration: Migration, scale: Float64, name: str) -> None:
    """Give other readers of an activation what it was, under the name that it had."""
    activation = migration.activation
    if not migration.others:
        return
    factor = editor.add_initializer(f"{name}_scale_back", scale.astype(np.float32))
    node = editor.insert_after(activation, "Mul", (activation, factor), name=f"{name}_unscaled")
    node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].type = activation.shape, activation.type
    for reader, index in migration.others:
        reader.replace_input_with(index, node.outputs[0])


def input_axis(candidate: Candidate) -> int:
    """Return the dimension of a product's weight that belongs to the channels of its activation."""
    if candidate.node.op_type == "Conv":
        return 0 if candidate.node.attributes.get_int("group", 1) > 1 else 1
    return 1 - candidate.channel_axis


def _consumer_obstacle(activation: ir.Value, consumers: Sequence[Candidate]) -> str:
    if activation.is_graph_input() or activation.is_graph_output():
        return "it is an input or output of the graph"
    nodes = {candidate.node for candidate in consumers}
    others = [node for node, _ in activation.uses() if node not in nodes]
    if others and (
        consumers[0].node.op_type == "Conv" or any(node.graph is not consumers[0].node.graph for node in others)
    ):
        return f"{others[0].op_type} reads it too"
    for candidate in consumers:
        sharers = {node.op_type for node, _ in candidate.weight.uses() if node is not candidate.node}
        if candidate.transposed:
            sharers -= {"Transpose", "Gather"}  # the head gets a matrix of its own, the embeddings keep theirs
        if sharers:
            return f"its weight is shared with {min(sharers)}"
        if candidate.node.op_type == "Conv" and _groups_obstacle(candidate):
            return "a convolution that reads it has groups"
    return ""


def _groups_obstacle(candidate: Candidate) -> bool:
    group = candidate.node.attributes.get_int("group", 1)
    shape = candidate.weight.shape
    return group > 1 and (shape is None or shape[1] != 1 or shape[0] != group)


def _channels(candidate: Candidate) -> int:
    tensor = constant_tensor(candidate.weight)
    return 0 if tensor is None else int(tensor.shape.numpy()[input_axis(candidate)])


class _Walk:
    """Walks from an activation back to the constants that make its channels.

    Args:
        rules: What each operator type does with channels; others end the walk.
    """

    def __init__(self, rules: Mapping[str, "_Rule"]) -> None:
        self._rules = rules

    def divided(self, value: ir.Value, groups: Ties, readers: set[ir.Node]) -> Found:
        """Return the constants to divide so that `value`, which `readers` alone may read, is divided."""
        if value.is_graph_output() or {node for node, _ in value.uses()} - readers:
            return f"{value.name} is read elsewhere too"
        node = value.producer()
        if node is None:
            return f"{value.name} is not computed from constants"
        rule = self._rules.get(node.op_type) if node.domain in ("", "com.microsoft") else None
        return rule(self, node, groups) if rule else f"{node.op_type} does not pass a scale of channels on"

    def operand(self, node: ir.Node, index: int, groups: Ties) -> Found:
        """Return the constants to divide so that an input of `node` is divided; itself where it is constant."""
        value = node.inputs[index]
        if value is None:
            return "an input is missing"
        if list(node.inputs).count(value) > 1:
            return f"{node.op_type} reads {value.name} twice"
        tensor = constant_tensor(value)
        if tensor is None:
            return self.divided(value, groups, {node})
        shape = list(tensor.shape.numpy())
        if not shape or shape[-1] != len(groups) or tensor.dtype != ir.DataType.FLOAT:
            return f"a constant of {node.op_type} does not hold one number per channel"
        return (ScaledConstant(node, index, len(shape) - 1, groups),)

    def all_of(self, node: ir.Node, indices: Sequence[int], groups: Ties) -> Found:
        """Return the constants to divide so that all these inputs are divided; those left out do not count."""
        found: tuple[ScaledConstant, ...] = ()
        for index in indices:
            if index < len(node.inputs) and node.inputs[index] is not None:
                part = self.operand(node, index, groups)
                if isinstance(part, str):
                    return part
                found += part
        return found


def _through(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    return walk.operand(node, 0, groups)


def _through_reshape(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    """Pass where the last dimension, which holds the channels, keeps its length."""
    shapes = [value.shape for value in (node.inputs[0], node.outputs[0]) if value is not None]
    if any(shape is None or not len(shape) or shape[-1] != len(groups) for shape in shapes):
        return "Reshape moves channels"
    return walk.operand(node, 0, groups)


def _through_sum(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    return walk.all_of(node, (0, 1), groups)


def _through_factor(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    """Divide one factor: a constant one if there is, else whichever leads back to constants."""
    order = (0,) if node.op_type == "Div" else sorted((0, 1), key=lambda i: constant_tensor(node.inputs[i]) is None)
    tried = [walk.operand(node, index, groups) for index in order]
    return next((found for found in tried if not isinstance(found, str)), tried[0])


def _through_norm(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 0
    if node.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return "the normalization spans more than the channels"
    if any(output.uses() for output in node.outputs[1:]):
        return "the statistics of the normalization are read"
    if any(constant_tensor(value) is None for value in node.inputs[1:] if value is not None):
        return "the scale of the normalization is computed"
    return walk.all_of(node, _SCALED_NORMS[node.op_type], groups)


def _through_product(walk: _Walk, node: ir.Node, groups: Ties) -> Found:
    weight = node.inputs[1]
    tensor = constant_tensor(weight)
    if weight is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(weight.uses()) > 1:
        return "the weight of the product before it is shared, computed or not float"
    if node.op_type != "Conv" and len(tensor.shape) != 2:
        return "the product before it is batched"
    first = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    axis = 0 if first else 1
    if tensor.shape.numpy()[axis] != len(groups):
        return "the product before it has other channels"
    bias = walk.all_of(node, (2,), groups)
    return bias if isinstance(bias, str) else (ScaledConstant(node, 1, axis, groups), *bias)


_Rule = Callable[[_Walk, ir.Node, Ties], Found]
_PASSING = dict.fromkeys(("Relu", "LeakyRelu", "Identity", "Dropout"), _through)
_CHANNELS_LAST: Mapping[str, _Rule] = {
    **_PASSING,
    **dict.fromkeys(("MatMul", "Gemm"), _through_product),
    **dict.fromkeys(_SCALED_NORMS, _through_norm),
    **dict.fromkeys(("Mul", "Div"), _through_factor),
    "Add": _through_sum,
    "Reshape": _through_reshape,
}
_CHANNELS_SECOND: Mapping[str, _Rule] = {**_PASSING, "Conv": _through_product}


@dataclass(frozen=True, slots=True)
class _TiedConstants:
    constants: tuple[ScaledConstant, ...]
    ties: Ties


def _attention_values(model: ir.Model) -> dict[ir.Value, _TiedConstants]:
    """Return, for what each attention hands to its output projection, the constants that make its channels."""
    if not any(node.op_type == "Softmax" for node in model.graph):
        return {}
    from edgesmith.graph.attention import find_attentions

    flow = Dataflow(model)
    found = {}
    for attention in find_attentions(flow, find_linears(flow)):
        tied = _tied_constants(flow, attention)
        if attention.output is not None and tied is not None:
            found[flow.value(attention.output.linear.input)] = tied
    return found


def _tied_constants(flow: Dataflow, attention: Attention) -> _TiedConstants | None:
    """Return the columns of the value projection for each channel of an attention's output, or None.

    The averaging treats channels apart, so dividing a column of the values divides the channels that it ends up in:
    one for each query head that reads the head.
    """
    value, output = attention.value, attention.output
    if value is None or output is None or attention.fused or attention.probability is None:
        return None
    linear = value.linear
    start, arrived = flow.value(linear.output), flow.value(value.value)
    if not _only_reaches(flow, start, flow.producer(attention.context)):
        return None
    columns = flow.trace(start, arrived)
    context, joined = flow.value(attention.context), flow.value(output.linear.input)
    shape = flow.shapes.shape(context)
    if columns is None or shape is None or columns.ndim != len(shape) or not _same_heads(columns, shape):
        return None
    per_head = np.broadcast_to(columns[..., :1, :], shape)
    traced = flow.trace(context, joined, np.ascontiguousarray(per_head))
    if traced is None or not (traced == traced.reshape(-1, traced.shape[-1])[0]).all():
        return None
    ties = traced.reshape(-1, traced.shape[-1])[0].astype(np.int64)
    if (ties < 0).any() or not _only_reaches(flow, context, flow.producer(output.linear.product)):
        return None
    numbers, dense = np.unique(ties, return_inverse=True)
    groups = np.full(linear.out_features, -1)
    groups[numbers] = np.arange(len(numbers))
    walk = _Walk(_CHANNELS_LAST)
    found = walk.divided(start, groups, {node for node, _ in start.uses()})
    return None if isinstance(found, str) else _TiedConstants(found, dense)


def _same_heads(columns: NDArray[np.int64], shape: tuple[int, ...]) -> bool:
    """Return whether values stand as [..., positions, channels], with the same columns at every position."""
    return columns.shape[-1] == shape[-1] and bool((columns == columns[..., :1, :]).all())


_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Identity", "Slice", "Split"})


def _only_reaches(flow: Dataflow, value: ir.Value, target: ir.Node) -> bool:
    """Return whether whatever is computed from `value` by moving its numbers ends in `target` alone."""
    pending = [value]
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return False
        for node in flow.users(current):
            if node is target:
                continue
            if node.op_type not in _MOVING or node.domain != "":
                return False
            pending.extend(node.outputs)
    return True


def _array(node: ir.Node, index: int) -> NDArray[np.float32]:
    """Return a constant input of a product, as the product reads it."""
    value = node.inputs[index]
    array = constant_value(value)
    if array is None and value is not None:
        transpose = value.producer()
        source = constant_value(transpose.inputs[0]) if transpose is not None else None
        array = None if source is None else source.T
    if array is None:
        raise ValueError(f"input {index} of {node.name} is not constant")  # the finder names constants only
    return array


def _multiply(editor: GraphEditor, node: ir.Node, index: int, axis: int, factor: Float64) -> None:
    array = _array(node, index)
    _replace(editor, node, index, (array * along(factor, axis, array.ndim)).astype(np.float32))


def _replace(editor: GraphEditor, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    old = node.inputs[index]
    name = old.name if old is not None else node.name
    node.replace_input_with(index, editor.add_initializer(f"{name}_scaled", array))
