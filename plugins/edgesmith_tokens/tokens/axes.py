"""Which axes of a value run over the tokens, followed operator by operator.

Operators that only move numbers are run on the numbers of the tokens: where these stand in the result as they stood
before, there is the axis. So no operator needs a rule for reshapes and transpositions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.dataflow import CARRYING, ELEMENTWISE, MOVING, Dataflow, data_inputs

Axes = frozenset[int]
Tracked = Mapping[ir.Value, Axes]

_NORMALIZING = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"}
    | {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
_FIRST_AXES = frozenset({"Softmax", "LogSoftmax", "DynamicQuantizeLinear"})
_REDUCING = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin"})
_PRODUCTS = frozenset({"MatMul", "MatMulInteger", "MatMulNBits", "MatMulIntegerToFloat"})


@dataclass(frozen=True, slots=True)
class Carried:
    """What one node does with tokens."""

    outputs: Mapping[ir.Value, Axes]
    """Axes that run over tokens, for each output that has some."""
    fixed: tuple[int, ...] = ()
    """Numbers of inputs that hold something for each token but are made without them: masks and tables."""
    obstacle: str = ""
    """Why the node cannot work on fewer tokens."""


def carry(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    """Return where tokens are in the outputs of a node, given where they are in its inputs."""
    rule = _rule(node)
    if rule is None:
        return Carried({}, obstacle=f"the operator {node.op_type} is not known to treat each token alone")
    if any(flow.shapes.shape(value) is None for value in (*data_inputs(node), *node.outputs[:1])):
        return Carried({}, obstacle="its shapes are not known")
    return rule(flow, node, tracked)


def _rule(node: ir.Node) -> Callable[[Dataflow, ir.Node, Tracked], Carried] | None:
    kinds = (
        (MOVING, _moved),
        (ELEMENTWISE | CARRYING | {"BiasGelu"}, _elementwise),
        (_NORMALIZING | _FIRST_AXES, _normalized),
        (_REDUCING, _reduced),
        (_PRODUCTS, _product),
        ({"Einsum"}, _einsum),
    )
    return next((rule for operators, rule in kinds if node.op_type in operators), None)


def _shape(flow: Dataflow, value: ir.Value | None) -> tuple[int, ...]:
    return flow.shapes.shape(value) or ()


def _elementwise(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    output = node.outputs[0]
    rank = len(_shape(flow, output))
    axes = frozenset(
        axis + rank - len(_shape(flow, value)) for value in data_inputs(node) for axis in tracked.get(value, ())
    )
    fixed = []
    for index, value in enumerate(node.inputs):
        if value is None or value in tracked:
            continue
        shape = _shape(flow, value)
        first = rank - len(shape)
        if any(axis >= first and shape[axis - first] > 1 for axis in axes):
            fixed.append(index)
    return Carried({output: axes}, tuple(fixed))


def _moved(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    found: dict[ir.Value, set[int]] = {output: set() for output in node.outputs}
    for source in [value for value in data_inputs(node) if value in tracked]:
        for axis in tracked[source]:
            outputs = _numbered(flow, node, tracked, source, axis)
            if outputs is None:
                return Carried({}, obstacle="it moves tokens in a way that cannot be followed")
            count = _shape(flow, source)[axis]
            for output, array in outputs.items():
                places = [each for each in range(array.ndim) if _runs_along(array, each, count)]
                if len(places) != 1:
                    return Carried({}, obstacle="it divides, joins or selects tokens")
                found[output].add(places[0])
    return Carried({output: frozenset(axes) for output, axes in found.items()})


def _numbered(
    flow: Dataflow, node: ir.Node, tracked: Tracked, source: ir.Value, axis: int
) -> dict[ir.Value, np.ndarray] | None:
    """Return what the node makes of the numbers of the tokens along one axis of an input."""
    arrays = {}
    for value in data_inputs(node):
        shape, known = _shape(flow, value), flow.shapes.known(value)
        if value in tracked and (value is source or node.op_type == "Concat"):
            numbers = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
            arrays[value] = np.broadcast_to(numbers, shape)
        elif known is not None:
            arrays[value] = known
        else:
            arrays[value] = np.full(shape, -1)
    return flow.shapes.run(node, arrays)


def _runs_along(array: np.ndarray, axis: int, count: int) -> bool:
    if array.shape[axis] != count:
        return False
    numbers = np.arange(count).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return bool((array == numbers).all())


def _normalized(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    source = node.inputs[0]
    if source is None or source not in tracked:
        return Carried({}, obstacle="tokens enter it as something else than its data")
    axes, rank = tracked[source], len(_shape(flow, source))
    axis = node.attributes["axis"].as_int() % rank if "axis" in node.attributes else rank - 1
    softmax = node.op_type in _FIRST_AXES
    if not softmax and any(each >= axis for each in axes):
        return Carried({}, obstacle="it normalizes over tokens")
    shape = _shape(flow, source)
    return Carried({output: axes for output in node.outputs if _shape(flow, output) == shape})


def _reduced(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    source = node.inputs[0]
    if source is None or source not in tracked:
        return Carried({}, obstacle="tokens enter it as something else than its data")
    rank = len(_shape(flow, source))
    given = flow.shapes.known(node.inputs[1]) if len(node.inputs) > 1 else None
    over = [] if given is None else [int(each) for each in given.reshape(-1)]
    if "axes" in node.attributes:
        over = list(node.attributes["axes"].as_ints())
    removed = {each % rank for each in over} or set(range(rank))
    if removed & tracked[source]:
        return Carried({}, obstacle="it sums or compares over tokens")
    kept = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    shift = (lambda axis: 0) if kept else (lambda axis: sum(each < axis for each in removed))
    return Carried({node.outputs[0]: frozenset(axis - shift(axis) for axis in tracked[source])})


def _product(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    first, second = node.inputs[:2]
    rank = len(_shape(flow, node.outputs[0]))
    axes: set[int] = set()
    contracted = []
    for value, summed in ((first, -1), (second, -2)):
        own = len(_shape(flow, value))
        places = {axis - own for axis in tracked.get(value, ())} if value is not None else set()
        contracted.append(summed in places)
        axes |= {axis + rank for axis in places - {summed}}
    if contracted[0] != contracted[1]:
        return Carried({}, obstacle="it mixes tokens with weights of its own")
    return Carried({node.outputs[0]: frozenset(axes)})


def _einsum(flow: Dataflow, node: ir.Node, tracked: Tracked) -> Carried:
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    parts = terms.split(",")
    labels = [
        {part[axis] for axis in tracked.get(value, ())} if value is not None else set()
        for part, value in zip(parts, node.inputs, strict=True)
    ]
    tokens: set[str] = set().union(*labels)
    if any(tokens & set(part) - mine for part, mine in zip(parts, labels, strict=True)) or "." in terms:
        return Carried({}, obstacle="it mixes tokens with weights of its own")
    return Carried({node.outputs[0]: frozenset(result.index(label) for label in tokens if label in result)})
