"""Where the tokens of a stream go: which nodes work on them, and which only select protected ones at the end."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.shapes import Array
from edgesmith_tokens.finding.vision import VisionStream
from edgesmith_tokens.tokens.axes import Axes, Carried, carry


@dataclass(frozen=True, slots=True)
class TokenPaths:
    """The nodes that work on the tokens of one stream."""

    flow: Dataflow
    nodes: tuple[ir.Node, ...]
    """All of them in the order of execution, with those behind the stream where they read protected tokens only."""
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    """Axes over tokens of each value that has some."""
    fixed: dict[ir.Node, tuple[int, ...]] = field(default_factory=dict)
    """Inputs that hold something for each token but are made without them, by node."""
    selectors: frozenset[ir.Node] = frozenset()
    """Nodes behind the stream that take protected tokens out of it."""


def follow(model: ir.Model, vision: VisionStream) -> TokenPaths:
    """Return where the tokens of a stream go.

    Raises:
        StepError: A node in the stream cannot work on fewer tokens.
    """
    flow = Dataflow(model)
    entry = flow.value(vision.input)
    inside = set(flow.between(entry, flow.value(vision.output)))
    paths = TokenPaths(flow, tuple(node for node in model.graph if node in inside), {entry: frozenset({1})})
    for node in paths.nodes:
        carried = carry(flow, node, paths.axes)
        if carried.obstacle:
            raise cannot(node, carried.obstacle)
        _take(paths, node, carried)
    return _with_selections(paths, model, vision)


def _take(paths: TokenPaths, node: ir.Node, carried: Carried) -> None:
    paths.axes.update({value: axes for value, axes in carried.outputs.items() if axes})
    if carried.fixed:
        paths.fixed[node] = carried.fixed


def _with_selections(paths: TokenPaths, model: ir.Model, vision: VisionStream) -> TokenPaths:
    """Add what stands behind the stream, where nothing but protected tokens is read in the end."""
    flow, end = paths.flow, paths.flow.value(vision.output)
    behind = TokenPaths(flow, (), dict(paths.axes))
    nodes: list[ir.Node] = []
    selectors: set[ir.Node] = set()
    pending, seen = [end], {end}
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return paths
        for node in dict.fromkeys(user for user, _ in value.uses()):
            if node in paths.nodes:
                continue
            if node.graph is not model.graph:
                return paths
            if _selects(flow, node, value, behind.axes, vision.protected):
                selectors.add(node)
                continue
            carried = carry(flow, node, behind.axes)
            if carried.obstacle or carried.fixed or value not in _read(node):
                return paths
            _take(behind, node, carried)
            nodes.append(node)
            new = [output for output in node.outputs if output not in seen]
            seen.update(new)
            pending.extend(new)
    order = {node: index for index, node in enumerate(model.graph)}
    every = tuple(sorted({*paths.nodes, *nodes}, key=lambda node: order[node]))
    return TokenPaths(flow, every, behind.axes, paths.fixed, frozenset(selectors))


def _read(node: ir.Node) -> list[ir.Value | None]:
    return [] if node.op_type in ("Shape", "Size") else list(node.inputs)


def _selects(flow: Dataflow, node: ir.Node, value: ir.Value, axes: dict[ir.Value, Axes], protected: int) -> bool:
    """Whether a node takes nothing but protected tokens, at places that stay the same when others become fewer."""
    if node.op_type not in ("Gather", "Slice") or node.inputs[0] is not value or len(axes[value]) != 1:
        return False
    (axis,) = axes[value]
    rank = len(flow.shapes.shape(value) or ())
    known = [flow.shapes.known(each) for each in node.inputs[1:]]
    if any(each is None for each in known):
        return False
    if node.op_type == "Gather":
        along = node.attributes["axis"].as_int() % rank if "axis" in node.attributes else 0
        indices = np.asarray(known[0])
        return along == axis and bool(((indices >= 0) & (indices < protected)).all())
    starts, stops, axes_, steps = (np.asarray(each).reshape(-1) for each in _sliced(known))
    for start, stop, along, step in zip(starts, stops, axes_, steps, strict=True):
        if along % rank == axis and start >= 0 and 0 < stop <= protected and step > 0:
            return True
    return False


def _sliced(known: list[np.ndarray | None]) -> list[np.ndarray]:
    starts = np.asarray(known[0])
    axes = known[2] if len(known) > 2 and known[2] is not None else np.arange(starts.size)
    steps = known[3] if len(known) > 3 and known[3] is not None else np.ones(starts.size, np.int64)
    return [starts, np.asarray(known[1]), axes, steps]


def shrunk(paths: TokenPaths, node: ir.Node, index: int) -> Array:
    """Return what an input holds for each token, when it holds the same for all of them.

    Args:
        paths: Where tokens go.
        node: Reads something for each token that is made without them, such as a mask.
        index: Number of that input.

    Returns:
        The input with size 1 along tokens, and along the batch.

    Raises:
        StepError: It differs between tokens, as tables of positions do, or cannot be evaluated.
    """
    value, output = node.inputs[index], node.outputs[0]
    array = None if value is None else paths.flow.shapes.evaluate(value, {})
    if value is None or array is None:
        raise cannot(node, "it reads something for each token that cannot be evaluated")
    shift = len(paths.flow.shapes.shape(output) or ()) - array.ndim
    along = {axis - shift for axis in paths.axes[output] if axis >= shift}
    if shift == 0:
        along.add(0)
    first = array[tuple(slice(0, 1) if axis in along else slice(None) for axis in range(array.ndim))]
    if not (array == first).all():
        raise cannot(node, f"{value.name} holds something else for each token")
    return np.ascontiguousarray(first)


def cannot(node: ir.Node, reason: str) -> StepError:
    """Return the error for a node that cannot work on fewer tokens."""
    shape = "" if not node.inputs or node.inputs[0] is None else f" on {node.inputs[0].shape}"
    return StepError(
        f"the node {node.name} ({node.op_type}{shape}) cannot work on fewer tokens: {reason}",
        expected="a stream of tokens whose operators treat each token alone, apart from attention",
        why="behind the place where tokens become fewer, each operator must take the new number of them",
        fix="export the model without this operator, or reduce tokens behind it",
    )
