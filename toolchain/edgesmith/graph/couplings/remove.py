"""Removes channels for good: smaller weights, smaller shapes, the same interface."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.graph.couplings.edits import EDITS, Mask, NodeEdit
from edgesmith.graph.couplings.emitter import site_of
from edgesmith.graph.couplings.find import study
from edgesmith.graph.couplings.nesting import outer_slot
from edgesmith.graph.couplings.records import Coupling, Nesting, Slot
from edgesmith.graph.couplings.relations import Axis
from edgesmith.graph.couplings.sizes import SHAPE_PORTS, Sizes
from edgesmith.graph.couplings.targets import overrides, rewrite_target
from edgesmith.graph.edit import Array, GraphEditor, set_initializer


def remove_channels(
    model: ir.Model, coupling: Coupling, atoms: Sequence[int], *, allow_inexact: bool = False
) -> ir.Model:
    """Return the model without some atoms of a coupling.

    Weights, biases, statistics and scales are sliced; group counts, split sizes, slice bounds, indices and target
    shapes follow. The result has the same inputs and outputs.

    Args:
        model: The graph that the coupling was found in. It is not changed.
        coupling: A coupling that `find_couplings` returned for this graph.
        atoms: Numbers of the atoms to remove; at least one must stay.
        allow_inexact: Whether to accept a coupling whose remaining channels change their values (see
            `Coupling.sliceable`).

    Raises:
        ModelError: The coupling is not removable, an atom does not exist, nothing would be left of an axis, or the
            coupling belongs to another graph.
    """
    return remove_many(model, [(coupling, atoms)], allow_inexact=allow_inexact)


def remove_many(
    model: ir.Model,
    removals: Iterable[tuple[Coupling, Sequence[int]]],
    *,
    within: Iterable[tuple[Nesting, Sequence[Sequence[int]]]] = (),
    allow_inexact: bool = False,
) -> ir.Model:
    """Return the model without atoms of several couplings and nestings, all found in this same graph.

    A coupling describes the graph that it was found in. After one removal the others are stale, so what is to go
    together must be removed in one call.

    Args:
        model: The graph. It is not changed.
        removals: Pairs of a coupling and the numbers of its atoms.
        within: Pairs of a nesting and its choices, as for `remove_within`.
        allow_inexact: As for `remove_channels`.

    Raises:
        ModelError: As for `remove_channels` and `remove_within`.
    """
    result = model.clone()
    _, sizes = study(result)
    lengths = _lengths(result.graph, sizes)
    kept = _Kept()
    for coupling, atoms in removals:
        _check_atoms(coupling, atoms, allow_inexact=allow_inexact)
        for slot in coupling.places:
            _check_slot(slot, Axis(slot.site, slot.axis), lengths)
            mask = np.ones(slot.length, np.bool_)
            mask[slot.positions(atoms)] = False
            kept.add(slot, mask)
    for nesting, choices in within:
        _check_choices(nesting, choices)
        for slot in nesting.inner.places:
            _check_slot(slot, Axis(slot.site, slot.axis), lengths)
            _keep_within(kept, nesting, slot, choices)
    _shrink(result, kept.masks, sizes, kept.ragged)
    return result


def remove_within(model: ir.Model, nesting: Nesting, choices: Sequence[Sequence[int]]) -> ir.Model:
    """Return the model without inner atoms that are chosen anew for each outer atom.

    Args:
        model: The graph that the couplings were found in. It is not changed.
        nesting: One of the pairs that `find_nestings` returned for this graph.
        choices: For each outer atom the numbers of the inner atoms that it loses; equally many for all.

    Raises:
        ModelError: As for `remove_channels`, or the choices differ in number.
    """
    return remove_many(model, [], within=[(nesting, choices)])


def _check_choices(nesting: Nesting, choices: Sequence[Sequence[int]]) -> None:
    outer, inner = nesting.outer, nesting.inner
    if len(choices) != outer.size or len({len(set(choice)) for choice in choices}) != 1:
        raise ModelError(
            f"{len(choices)} choices of {sorted({len(set(choice)) for choice in choices})} atoms",
            expected=f"{outer.size} choices of equally many atoms",
            why="All outer atoms share one axis for the inner ones, so they must stay equally wide.",
            fix="Choose the same number of inner atoms in each outer atom.",
        )
    for choice in choices:
        _check_atoms(inner, choice, allow_inexact=False)


def _keep_within(kept: "_Kept", nesting: Nesting, slot: Slot, choices: Sequence[Sequence[int]]) -> None:
    """Note what stays at one slot of the inner coupling."""
    other = outer_slot(nesting.outer, slot)
    if other is None:
        raise _stale(slot)
    masks = np.ones((nesting.outer.size, slot.length), np.bool_)
    for atom, choice in enumerate(choices):
        masks[atom, slot.positions(choice)] = False
    owners = _owners(other)
    if other.axis == slot.axis:
        kept.add(slot, np.where(owners >= 0, masks[owners, np.arange(slot.length)], True))
    else:
        # Lengths are those of the first choice for all; which positions stay is said per outer place.
        kept.add(slot, masks[0], Ragged(other.axis, masks[owners]))


class _Kept:
    """What stays on each axis, collected over several removals."""

    def __init__(self) -> None:
        self.masks: dict[Axis, Mask] = {}
        self.ragged: dict[Axis, Ragged] = {}

    def add(self, slot: Slot, mask: Mask, ragged: "Ragged | None" = None) -> None:
        """Keep only what `mask` keeps too.

        Raises:
            ModelError: Nothing would be left, or the places of one removal depend on another axis and meet a second.
        """
        axis = Axis(slot.site, slot.axis)
        before = self.masks.get(axis)
        if before is not None and (ragged is not None or axis in self.ragged):
            raise _meets_itself(slot)
        self.masks[axis] = mask if before is None else before & mask
        if ragged is not None:
            self.ragged[axis] = ragged
        if not self.masks[axis].any():
            raise _nothing_left(slot)


class Ragged(NamedTuple):
    """What stays on an axis when that depends on the place on another axis."""

    axis: int
    """The other axis."""
    masks: Mask
    """For each place on the other axis, what stays here."""


def _owners(slot: Slot) -> NDArray[np.int64]:
    """Return the atom at each position of a slot, or -1."""
    owners = np.full(slot.length, -1)
    for atom, positions in enumerate(slot.indices):
        owners[list(positions)] = atom
    return owners


def _shrink(model: ir.Model, keep: dict[Axis, Mask], sizes: Sizes, ragged: dict[Axis, Ragged]) -> None:
    keep = {axis: mask for axis, mask in keep.items() if not mask.all()}
    editor = GraphEditor(model.graph)
    shrunk = {(axis.site, axis.number): mask for axis, mask in keep.items() if isinstance(axis.site, str)}
    values = {value.name: value for node in model.graph for value in node.outputs}
    static = {
        place: int(mask.sum())
        for place, mask in shrunk.items()
        if isinstance((sizes.dims(values[place[0]]) or [])[place[1]], int)
    }
    for node in tuple(model.graph):
        edit = NodeEdit(node, editor, keep, sizes)
        if node.op_type in EDITS and edit.touched:
            EDITS[node.op_type](edit)
        elif node.op_type in SHAPE_PORTS and len(node.inputs) > SHAPE_PORTS[node.op_type]:
            rewrite_target(editor, node, overrides(node, sizes, static, frozenset(shrunk)), sizes)
    _slice_initializers(editor, keep, ragged)
    for name, axis in shrunk:
        value = values.get(name)
        if value is not None and value.shape is not None:
            dims: list[int | ir.SymbolicDim | None] = list(value.shape.dims)
            # A dynamic length such as 4 * batch was that of the whole: equal names would promise equal lengths.
            dims[axis] = static.get((name, axis)) or ir.SymbolicDim(None)
            value.shape = ir.Shape(dims)


def _slice_initializers(editor: GraphEditor, keep: dict[Axis, Mask], ragged: dict[Axis, Ragged]) -> None:
    """Slice each initializer for its readers; readers that lose the same channels go on sharing one."""
    cuts: dict[tuple[str, int], list[Cut]] = defaultdict(list)
    for axis in sorted((axis for axis in keep if not isinstance(axis.site, str)), key=lambda axis: axis.number):
        if not isinstance(axis.site, str):
            cuts[axis.site].append(Cut(axis.number, keep[axis], ragged.get(axis)))
    versions: dict[tuple[ir.Value, bytes], list[tuple[ir.Node, int]]] = defaultdict(list)
    readers = {node.outputs[0].name: node for node in editor.graph}
    for (reader, port), made in cuts.items():
        node = readers[reader]
        value = node.inputs[port]
        if value is not None:
            versions[value, b"".join(cut.key() for cut in made)].append((node, port))
    for (value, _), uses in versions.items():
        node, port = uses[0]
        _give_version(editor, value, uses, cuts[node.outputs[0].name or "", port])


class Cut(NamedTuple):
    """What stays on one axis of an initializer."""

    axis: int
    mask: Mask
    ragged: Ragged | None

    def key(self) -> bytes:
        """Return bytes that are equal for equal cuts."""
        masks = self.mask if self.ragged is None else self.ragged.masks
        return b"%d:%d:" % (self.axis, self.ragged is not None) + masks.tobytes()

    def apply(self, array: Array) -> Array:
        """Return the array without what goes."""
        if self.ragged is None:
            return np.compress(self.mask, array, axis=self.axis)
        other, masks = self.ragged
        axis = self.axis - (self.axis > other)
        places = np.moveaxis(array, other, 0)
        kept = [np.compress(mask, place, axis=axis) for mask, place in zip(masks, places, strict=True)]
        return np.moveaxis(np.stack(kept), 0, other)


def _give_version(editor: GraphEditor, value: ir.Value, uses: list[tuple[ir.Node, int]], cuts: Sequence[Cut]) -> None:
    tensor = value.const_value
    if tensor is None or value.name is None:
        return
    array = tensor.numpy()
    # A cut that depends on the place on another axis counts places before that axis is cut itself.
    for cut in sorted(cuts, key=lambda cut: cut.ragged is None):
        array = cut.apply(array)
    if len(uses) == len(value.uses()) and not value.is_graph_output():
        set_initializer(value, array, tensor.dtype)
        return
    version = editor.add_initializer(value.name, array, tensor.dtype)
    for node, port in uses:
        node.replace_input_with(port, version)


def _lengths(graph: ir.Graph, sizes: Sizes) -> dict[Axis, int]:
    """Return the static lengths of all axes that a slot can name."""
    lengths = {}
    for node in graph:
        ports = [(site_of(node, index, value), value) for index, value in enumerate(node.inputs) if value is not None]
        for site, value in [*ports, *((output.name or "", output) for output in node.outputs)]:
            for axis, dim in enumerate(sizes.dims(value) or ()):
                lengths[Axis(site, axis)] = dim if isinstance(dim, int) else 0
    return lengths


def _check_atoms(coupling: Coupling, atoms: Sequence[int], *, allow_inexact: bool) -> None:
    if not (coupling.removable or (allow_inexact and coupling.sliceable)):
        raise ModelError(
            f"these channels cannot be removed: {coupling.reason}",
            expected="a coupling that is removable",
            why="What is left would compute something else, or could not be computed at all.",
            fix="Leave this coupling out"
            + (", or pass allow_inexact=True and train afterwards." if coupling.sliceable else "."),
        )
    wrong = sorted(atom for atom in atoms if not 0 <= atom < coupling.size)
    if wrong:
        raise ModelError(
            f"the coupling has no atom {wrong[0]}",
            expected=f"numbers from 0 to {coupling.size - 1}",
            why="Only channels that exist can be removed.",
            fix="Number the atoms as the coupling's slots do.",
        )


def _check_slot(slot: Slot, axis: Axis, lengths: dict[Axis, int]) -> None:
    if lengths.get(axis, -1) not in (slot.length, 0):
        raise _stale(slot, f"length {lengths.get(axis)}")


def _stale(slot: Slot, found: str = "no outer atom at some place") -> ModelError:
    return ModelError(
        f"axis {slot.axis} of {slot.value} has {found}, the coupling says {slot.length}",
        expected="the graph that the coupling was found in",
        why="Positions on another graph would be other channels.",
        fix="Call find_couplings on this graph, or remove everything in one call of remove_many.",
    )


def _meets_itself(slot: Slot) -> ModelError:
    return ModelError(
        f"two removals meet on axis {slot.axis} of {slot.value}, and one of them depends on the place",
        expected="removals that share no axis, or of which none is chosen anew for each outer atom there",
        why="The places of the second would differ from one outer atom to the next.",
        fix="Remove one of them, find the couplings again, and remove the other.",
    )


def _nothing_left(slot: Slot) -> ModelError:
    return ModelError(
        f"nothing would be left of axis {slot.axis} of {slot.value} ({slot.length} channels)",
        expected="at least one channel that stays",
        why="A tensor with an axis of length zero computes nothing.",
        fix="Keep an atom, or remove the whole branch with a method that does so.",
    )
