"""Rewrites the shape tensors that Reshape, Expand, ConstantOfShape and Resize read, after axes have shrunk."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.couplings.sizes import SHAPE_PORTS, Element, Sizes
from edgesmith.graph.edit import GraphEditor, set_initializer

INFER = -1


def overrides(
    node: ir.Node, sizes: Sizes, lengths: Mapping[tuple[str, int], int], shrunk: frozenset[tuple[str, int]]
) -> dict[int, int]:
    """Return the numbers of a node's target shape that must change, by place in the target.

    Args:
        node: One of the operators of `SHAPE_PORTS`.
        sizes: Lengths before the removal.
        lengths: New length of each static axis (value name, axis) that has shrunk.
        shrunk: All axes that have shrunk, dynamic ones included.
    """
    output = node.outputs[0]
    dims = sizes.dims(output) or []
    elements = sizes.elements(node.inputs[SHAPE_PORTS[node.op_type]])
    changed = {}
    for place, axis in enumerate(_axes_of(node, sizes)):
        dim, element = dims[axis], None if elements is None else elements[place]
        if isinstance(dim, int):
            length = lengths.get((output.name or "", axis), dim)
            if not _follows(node, element, axis, length, dim, lengths):
                changed[place] = length
        elif (output.name or "", axis) in shrunk and (element is None or element.computed):
            changed[place] = INFER
    return changed


def _axes_of(node: ir.Node, sizes: Sizes) -> list[int]:
    """Return which axis of the result each number of the target shape is about."""
    rank = len(sizes.dims(node.outputs[0]) or ())
    target = node.inputs[SHAPE_PORTS[node.op_type]]
    count = None if target is None else next(iter(sizes.dims(target) or ()), None)
    if node.op_type == "Resize":
        return [axis % rank for axis in node.attributes.get_ints("axes", tuple(range(rank)))]
    return list(range(rank))[-count:] if isinstance(count, int) and count else list(range(rank))


def _follows(
    node: ir.Node, element: Element | None, axis: int, length: int, before: int, lengths: Mapping[tuple[str, int], int]
) -> bool:
    """Return whether a number of the target already gives the new length."""
    if element is None:
        return length == before
    if element.computed:
        return not any(source in lengths for source in element.sources) and length == before
    if element.sources:
        (source,) = element.sources
        return lengths.get(source, before) == length
    if element.dim == 0 and node.op_type == "Reshape" and node.inputs[0] is not None:
        return lengths.get((node.inputs[0].name or "", axis), before) == length
    return element.dim in (INFER, length)


def replace_constant(editor: GraphEditor, node: ir.Node, port: int, array: NDArray[np.generic]) -> None:
    """Let one input of a node be a constant, without touching what other readers of the old one see."""
    old = node.inputs[port] if port < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        set_initializer(old, array)
        return
    name = old.name if old is not None and old.name else f"{node.outputs[0].name}_constant"
    if port >= len(node.inputs):
        node.resize_inputs(port + 1)
    node.replace_input_with(port, editor.add_initializer(name, array))
    producer = None if old is None else old.producer()
    if producer is not None:
        editor.remove_unused([producer])


def rewrite_target(editor: GraphEditor, node: ir.Node, changed: Mapping[int, int], sizes: Sizes) -> None:
    """Give a node a target shape with some numbers replaced.

    A constant stays a constant, a Concat of single numbers stays a Concat. Anything else is selected from at run time.
    """
    port = SHAPE_PORTS[node.op_type]
    target = node.inputs[port]
    elements = sizes.elements(target)
    rank = len(_axes_of(node, sizes))
    if target is None or not changed:
        return
    name = target.name or "shape"
    numbers = [element.dim for element in elements or ()]
    if numbers and all(isinstance(number, int) for number in numbers) and not any(e.sources for e in elements or ()):
        updated = [changed.get(axis, number) for axis, number in enumerate(numbers)]
        replace_constant(editor, node, port, np.asarray(updated, np.int64))
        return
    producer = target.producer()
    if producer is not None and producer.op_type == "Concat" and len(producer.inputs) == rank:
        pieces = [
            editor.add_initializer(name, np.asarray([changed[axis]], np.int64)) if axis in changed else piece
            for axis, piece in enumerate(producer.inputs)
        ]
        joined = editor.insert_before(node, "Concat", pieces, {"axis": 0})
        new = joined.outputs[0]
    else:
        mask = editor.add_initializer(f"{name}_fixed", np.asarray([axis in changed for axis in range(rank)]))
        fixed = editor.add_initializer(name, np.asarray([changed.get(axis, 0) for axis in range(rank)], np.int64))
        new = editor.insert_before(node, "Where", [mask, fixed, target]).outputs[0]
    new.shape, new.type = target.shape, target.type
    node.replace_input_with(port, new)
    if producer is not None:
        editor.remove_unused([producer])
