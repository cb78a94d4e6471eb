"""Moves the NaN guard behind Softmax into the mask, where it costs next to nothing.

Exported attention holds `Where(IsNaN(p), 0, p)` with `p = Softmax(scores + mask)`: a row whose keys are all masked
with -inf gives NaN, and the guard turns it into zeros. The guard reads every probability twice. What it does can be
told from the mask alone, given that scores are finite:

- no mask, or a mask that leaves a finite number in every row: no row becomes NaN, the guard goes;
- `mask = Where(allowed, a, -inf)`: rows without an allowed key get a mask of `a`, and their attention output is
  multiplied by 0. Every other row is multiplied by 1. Outputs are equal in both cases;
- any other mask: the guard stays.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_scalar, constant_value
from edgesmith.host.context import Notes

_SCALING = ("Mul", "Div")


@dataclass(frozen=True, slots=True)
class _Guard:
    where: ir.Node
    test: ir.Node
    softmax: ir.Node


@dataclass(frozen=True, slots=True)
class _OpenMask:
    """A mask in which each row has a finite number, and which of its rows had one before."""

    mask: ir.Value
    row_allowed: ir.Value
    """Float 1 or 0, with the mask's dimensions and a last dimension of 1."""


def move_softmax_guards(graph: ir.Graph, notes: Notes) -> int:
    """Remove or move each guard that can be proven; return how many. Edits `graph`."""
    editor = GraphEditor(graph)
    opened: dict[ir.Value, _OpenMask] = {}
    changed = 0
    for guard in [found for node in graph if (found := _guard(node)) is not None]:
        scores = guard.softmax.inputs[0]
        mask = _added_mask(scores)
        if _is_product(scores) or (mask is not None and _keeps_every_row(mask)):
            _remove(editor, guard)
            changed += 1
        elif mask is not None and _open_and_multiply(editor, guard, mask, opened):
            changed += 1
        else:
            notes.skip(guard.where.name or "Where", "the mask does not show which rows are fully masked")
    return changed


def _guard(node: ir.Node) -> _Guard | None:
    """Return the guard that ends in this Where node."""
    if node.op_type != "Where" or constant_scalar(node.inputs[1]) != 0.0:
        return None
    condition, probabilities = node.inputs[0], node.inputs[2]
    test = condition.producer() if condition is not None else None
    softmax = probabilities.producer() if probabilities is not None else None
    if test is None or softmax is None or probabilities is None:
        return None
    if test.op_type != "IsNaN" or test.inputs[0] is not probabilities or softmax.op_type != "Softmax":
        return None
    axis = softmax.attributes.get_int("axis", -1)
    rank = len(probabilities.shape) if probabilities.shape is not None else None
    return _Guard(node, test, softmax) if axis == -1 or (rank and axis == rank - 1) else None


def _remove(editor: GraphEditor, guard: _Guard) -> None:
    editor.bypass(guard.where, index=2)
    editor.remove_unused((guard.test,))


def _is_product(value: ir.Value | None) -> bool:
    """Return whether a value is a matrix product, perhaps times a finite constant: finite on finite inputs."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _SCALING:
        factor = constant_scalar(producer.inputs[1])
        if factor is None or not np.isfinite(factor) or (producer.op_type == "Div" and factor == 0):
            return False
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "MatMul"


def _added_mask(scores: ir.Value | None) -> ir.Value | None:
    """Return what is added to a product of attention, or None."""
    add = scores.producer() if scores is not None else None
    if add is None or add.op_type != "Add":
        return None
    left, right = add.inputs
    if _is_product(left):
        return right
    return left if _is_product(right) else None


def _keeps_every_row(mask: ir.Value) -> bool:
    """Return whether each row of the mask holds a finite number and none holds NaN or +inf."""
    array = constant_value(mask)
    if array is not None:
        rows_open = array.ndim > 0 and bool((array > -np.inf).any(axis=-1).all())
        return rows_open and not bool((np.isnan(array) | (array == np.inf)).any())
    producer = mask.producer()
    if producer is None or producer.op_type != "Where":
        return False
    choices = [constant_scalar(value) for value in producer.inputs[1:]]
    return all(choice is not None and np.isfinite(choice) for choice in choices)


def _open_and_multiply(editor: GraphEditor, guard: _Guard, mask: ir.Value, opened: dict[ir.Value, _OpenMask]) -> bool:
    uses = tuple(guard.where.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return False
    add = guard.softmax.inputs[0].producer() if guard.softmax.inputs[0] is not None else None
    if add is None or editor.graph.opset_imports.get("", 0) < 18:
        return False
    if mask not in opened:
        result = _open(editor, mask)
        if result is None:
            return False
        opened[mask] = result
    open_mask = opened[mask]
    add.replace_input_with(tuple(add.inputs).index(mask), open_mask.mask)
    attention = uses[0].node.outputs[0]
    _remove(editor, guard)
    joined = _joined_heads(attention, open_mask.row_allowed)
    factor = open_mask.row_allowed
    if joined is not None:
        axes = editor.add_initializer("head_axis", np.array([1], np.int64))
        factor = _insert(editor, joined, "Squeeze", (factor, axes), "row_allowed")
    editor.insert_on_uses(joined or attention, "Mul", (factor,), name=f"{guard.where.name}_mul")
    return True


def _open(editor: GraphEditor, mask: ir.Value) -> _OpenMask | None:
    """Return the mask with its closed rows opened, if it is `Where(allowed, finite, -inf)` or the reverse."""
    node = mask.producer()
    if node is None or node.op_type != "Where" or mask.shape is None or node.inputs[0] is None:
        return None
    allowed, kept, masked = node.inputs[0], constant_scalar(node.inputs[1]), constant_scalar(node.inputs[2])
    shape = allowed.shape
    if shape is None or len(shape) != len(mask.shape) or kept is None or masked is None:
        return None
    if np.isneginf(kept) and np.isfinite(masked):
        allowed, order = _insert(editor, mask, "Not", (allowed,), "allowed", before=node), (2, 1)
    elif np.isfinite(kept) and np.isneginf(masked):
        order = (1, 2)
    else:
        return None
    last = editor.add_initializer("last_axis", np.array([-1], np.int64))
    number = _insert(editor, mask, "Cast", (allowed,), "allowed_number", before=node, to=int(ir.DataType.FLOAT))
    row = _insert(editor, mask, "ReduceMax", (number, last), "row_allowed", before=node, keepdims=1)
    row.type = ir.TensorType(ir.DataType.FLOAT)
    row.shape = ir.Shape([*shape[:-1], 1])
    closed = _insert(editor, mask, "Cast", (row,), "row_open", before=node, to=int(ir.DataType.BOOL))
    closed = _insert(editor, mask, "Not", (closed,), "row_closed", before=node)
    opened = _insert(editor, mask, "Or", (allowed, closed), "opened", before=node)
    result = _insert(editor, mask, "Where", (opened, node.inputs[order[0]], node.inputs[order[1]]), "open", before=node)
    result.shape, result.type = mask.shape, mask.type
    return _OpenMask(result, row)


def _insert(
    editor: GraphEditor,
    value: ir.Value,
    op_type: str,
    inputs: tuple[ir.Value | None, ...],
    suffix: str,
    *,
    before: ir.Node | None = None,
    **attributes: int,
) -> ir.Value:
    """Add a node beside `value` and return its output."""
    name = f"{value.name}_{suffix}"
    if before is not None:
        return editor.insert_before(before, op_type, inputs, attributes, name=name).outputs[0]
    return editor.insert_after(value, op_type, inputs, attributes, name=name).outputs[0]


def _joined_heads(attention: ir.Value, row_allowed: ir.Value) -> ir.Value | None:
    """Return the attention output with its heads joined, [batch, sequence, width], if it takes the row factor.

    There the factor stands outside the pattern that fuses into one attention operator.
    """
    shape = row_allowed.shape
    if shape is None or len(shape) != 4 or shape[1] != 1:
        return None
    transpose = _only_reader(attention)
    if transpose is None or transpose.op_type != "Transpose":
        return None
    if list(transpose.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
        return None
    reshape = _only_reader(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    split, joined = transpose.outputs[0].shape, reshape.outputs[0].shape
    if split is None or joined is None or len(split) != 4 or len(joined) != 3:
        return None
    return reshape.outputs[0] if split[:2] == joined[:2] else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
