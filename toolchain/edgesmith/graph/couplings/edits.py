"""What must change at a node, beside its weights, when channels on its axes are removed."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.couplings.emitter import site_of
from edgesmith.graph.couplings.relations import Axis
from edgesmith.graph.couplings.sizes import Sizes, constant_integers
from edgesmith.graph.couplings.targets import replace_constant
from edgesmith.graph.edit import GraphEditor

Mask = NDArray[np.bool_]


class NodeEdit:
    """One node, with what stays on its axes. Lengths are those before the removal."""

    def __init__(self, node: ir.Node, editor: GraphEditor, keep: Mapping[Axis, Mask], sizes: Sizes) -> None:
        self.node = node
        self.editor = editor
        self._keep = keep
        self._sizes = sizes

    @property
    def touched(self) -> bool:
        """Whether anything on the node's axes goes."""
        ports = [(self.node.inputs, True), (self.node.outputs, False)]
        return any(
            self._mask(index, axis, given) is not None
            for values, given in ports
            for index, value in enumerate(values)
            if value is not None
            for axis in range(len(self._sizes.dims(value) or ()))
        )

    def input_mask(self, index: int, axis: int) -> Mask:
        """Return what stays on a static axis of an input."""
        return self._full(self.node.inputs[index], self._mask(index, axis, True), axis)

    def output_mask(self, index: int, axis: int) -> Mask:
        """Return what stays on a static axis of an output."""
        return self._full(self.node.outputs[index], self._mask(index, axis, False), axis)

    def changes_input(self, index: int, axis: int) -> bool:
        """Whether anything goes on an axis of an input."""
        return self._mask(index, axis, True) is not None

    def set_integers(self, port: int, numbers: list[int], *, scalar: bool = False) -> None:
        """Give the node a constant of its own as an input."""
        old = self.node.inputs[port] if port < len(self.node.inputs) else None
        dtype = np.dtype(np.int64) if old is None or old.dtype is None else np.dtype(old.dtype.numpy())
        replace_constant(self.editor, self.node, port, np.asarray(numbers[0] if scalar else numbers, dtype))

    def rank(self, index: int) -> int:
        """Return the rank of an input."""
        value = self.node.inputs[index]
        return len(self._sizes.dims(value) or ()) if value is not None else 0

    def _mask(self, index: int, axis: int, given: bool) -> Mask | None:
        value = (self.node.inputs if given else self.node.outputs)[index]
        if value is None:
            return None
        site = site_of(self.node, index, value) if given else (value.name or "")
        return self._keep.get(Axis(site, axis))

    def _full(self, value: ir.Value | None, mask: Mask | None, axis: int) -> Mask:
        if mask is not None or value is None:
            return mask if mask is not None else np.ones(0, np.bool_)
        dim = (self._sizes.dims(value) or [0] * (axis + 1))[axis]
        return np.ones(dim if isinstance(dim, int) else 0, np.bool_)


def _convolution(edit: NodeEdit) -> None:
    _set_groups(edit, edit.input_mask(0, 1))


def _transposed_convolution(edit: NodeEdit) -> None:
    _set_groups(edit, edit.output_mask(0, 1))


def _set_groups(edit: NodeEdit, grouped: Mask) -> None:
    """Divide what stays on the axis that groups share out by what stays in each group."""
    if edit.node.attributes.get_int("group", 1) > 1:
        edit.node.attributes["group"] = ir.AttrInt64("group", int(grouped.sum()) // int(edit.input_mask(1, 1).sum()))


def _group_normalization(edit: NodeEdit) -> None:
    groups = edit.node.attributes["num_groups"].as_int()
    left = edit.input_mask(0, 1).reshape(groups, -1).any(axis=1).sum()
    edit.node.attributes["num_groups"] = ir.AttrInt64("num_groups", int(left))


def _attention(edit: NodeEdit) -> None:
    for port, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
        heads = edit.node.attributes.get_int(name, 0)
        if heads and edit.rank(port) == 3:
            left = edit.input_mask(port, 2).reshape(heads, -1).any(axis=1).sum()
            edit.node.attributes[name] = ir.AttrInt64(name, int(left))


def _split(edit: NodeEdit) -> None:
    axis = edit.node.attributes.get_int("axis", 0) % edit.rank(0)
    if edit.changes_input(0, axis):
        edit.node.attributes.pop("num_outputs", None)
        edit.set_integers(1, [int(edit.output_mask(i, axis).sum()) for i in range(len(edit.node.outputs))])


def _slice(edit: NodeEdit) -> None:
    starts, ends = (constant_integers(edit.node.inputs[port]) for port in (1, 2))
    given = [constant_integers(value) if value else None for value in (*edit.node.inputs[3:5], None, None)[:2]]
    if starts is None or ends is None:
        return
    axes, steps = given[0] or list(range(len(starts))), given[1] or [1] * len(starts)
    changed = False
    for place, axis in enumerate(axis % edit.rank(0) for axis in axes):
        if not edit.changes_input(0, axis):
            continue
        changed = True
        mask = edit.input_mask(0, axis)
        taken = np.arange(len(mask))[starts[place] : ends[place] : steps[place]]
        places = (np.cumsum(mask) - 1)[taken[mask[taken]]]
        if len(places) and not (np.diff(places) == 1).all():
            _pick_first(edit, axis, places)
            places = np.arange(len(places))
        starts[place], ends[place], steps[place] = int(places[0]), int(places[-1]) + 1, 1
    if changed:
        edit.set_integers(1, starts)
        edit.set_integers(2, ends)
        if given[1] is not None:
            edit.set_integers(4, steps)


def _pick_first(edit: NodeEdit, axis: int, places: NDArray[np.int64]) -> None:
    """Let a Gather in front of a Slice take what no single cut takes any more."""
    indices = edit.editor.add_initializer(f"{edit.node.outputs[0].name}_places", places.astype(np.int64))
    picked = edit.editor.insert_before(edit.node, "Gather", [edit.node.inputs[0], indices], {"axis": axis})
    picked.outputs[0].type = edit.node.outputs[0].type
    edit.node.replace_input_with(0, picked.outputs[0])


def _gather(edit: NodeEdit) -> None:
    axis = edit.node.attributes.get_int("axis", 0) % edit.rank(0)
    indices = constant_integers(edit.node.inputs[1])
    if indices is None or not edit.changes_input(0, axis):
        return
    mask = edit.input_mask(0, axis)
    renumbered = np.cumsum(mask) - 1
    left = [int(renumbered[index]) for index in indices if mask[index]]
    edit.set_integers(1, left, scalar=edit.rank(1) == 0)


def _squeeze(edit: NodeEdit) -> None:
    """Name the axes, so that an axis that shrinks to length one is not taken away too."""
    if len(edit.node.inputs) < 2 or edit.node.inputs[1] is None:
        ones = [axis for axis in range(edit.rank(0)) if len(edit.input_mask(0, axis)) == 1]
        edit.set_integers(1, ones)


EDITS: dict[str, Callable[[NodeEdit], None]] = {
    "Attention": _attention,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gather": _gather,
    "GroupNormalization": _group_normalization,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
}
"""Operators with an attribute or a constant that counts or numbers channels. Target shapes are in `targets`."""
