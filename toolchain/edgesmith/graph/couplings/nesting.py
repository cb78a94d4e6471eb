"""Couplings within couplings: where each outer atom may lose inner atoms of its own choice."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

import onnx_ir as ir

from edgesmith.graph.couplings.emitter import site_of
from edgesmith.graph.couplings.find import study
from edgesmith.graph.couplings.records import Coupling, Nesting, Slot
from edgesmith.graph.couplings.relations import Site
from edgesmith.graph.couplings.rules.elementwise import BROADCASTING, UNARY
from edgesmith.graph.couplings.sizes import Sizes

# Operators that treat each outer place on its own when outer and inner atoms lie on different axes.
_SEPARATE = {*UNARY, *BROADCASTING, "Transpose", "Reshape", "Expand", "Squeeze", "Unsqueeze", "Shape"}


def find_nestings(model: ir.Model, couplings: Sequence[Coupling]) -> tuple[Nesting, ...]:
    """Return the pairs of couplings in which each outer atom may lose inner atoms of its own choice.

    Take the values of attention. Heads are one coupling, the channels within a head another. The fifth channel of one
    head has nothing to do with the fifth of the next, so each head may lose other channels, as long as all heads
    stay equally wide. The same holds for the inputs of a grouped convolution and for queries that share a key.

    What is checked is sufficient, not necessary: wherever an inner channel stands, its place tells the outer atom
    that it belongs to, and no operator on the way mixes outer atoms or picks inner positions by number.

    Args:
        model: The graph that the couplings were found in.
        couplings: What `find_couplings` returned for it.
    """
    _, sizes = study(model)
    users = _users(model)
    removable = [coupling for coupling in couplings if coupling.removable and coupling.size > 1]
    sites = [{slot.site for slot in coupling.places} for coupling in removable]
    return tuple(
        Nesting(outer, inner)
        for inner, inner_sites in zip(removable, sites, strict=True)
        for outer, outer_sites in zip(removable, sites, strict=True)
        if inner is not outer and inner_sites <= outer_sites and _is_nested(outer, inner, users, sizes)
    )


def outer_slot(outer: Coupling, slot: Slot) -> Slot | None:
    """Return the slot that tells the outer atom at each place of an inner slot, or None when that is not certain."""
    here = [each for each in outer.places if each.site == slot.site]
    if len(here) != 1:
        return None
    known = set(here[0].positions(range(outer.size)))
    needed = set(slot.positions(range(len(slot.indices)))) if here[0].axis == slot.axis else set(range(here[0].length))
    return here[0] if needed <= known else None


def _is_nested(
    outer: Coupling, inner: Coupling, users: Mapping[Site, Sequence[tuple[ir.Node, int]]], sizes: Sizes
) -> bool:
    for slot in inner.places:
        other = outer_slot(outer, slot)
        if other is None:
            return False
        if other.axis == slot.axis:
            if not _runs_are_complete(slot, other):
                return False
        elif len({len(atom) for atom in slot.indices}) != 1 or not all(
            _keeps_apart(node, port, other.axis, sizes) for node, port in users[slot.site]
        ):
            return False
    return True


def _runs_are_complete(slot: Slot, outer: Slot) -> bool:
    """Return whether each run of places of one outer atom holds every inner atom equally often.

    Then any choice of equally many inner atoms leaves runs of equal length, as a Reshape into both needs them.
    """
    owner = {position: atom for atom, positions in enumerate(outer.indices) for position in positions}
    inner = {position: atom for atom, positions in enumerate(slot.indices) for position in positions}
    for _, run in groupby(sorted(inner), key=owner.__getitem__):
        counts: dict[int, int] = defaultdict(int)
        for position in run:
            counts[inner[position]] += 1
        if len(counts) != len(slot.indices) or len(set(counts.values())) != 1:
            return False
    return True


def _keeps_apart(node: ir.Node, port: int, outer_axis: int, sizes: Sizes) -> bool:
    if node.op_type == "MatMul":
        # Outer atoms must be a batch axis of the product, neither summed over nor turned into rows or columns.
        values = (*node.inputs, *node.outputs)
        return all(value is not None and outer_axis < len(sizes.dims(value) or ()) - 2 for value in values)
    return node.op_type in _SEPARATE or (node.op_type == "Conv" and port == 1)


def _users(model: ir.Model) -> dict[Site, list[tuple[ir.Node, int]]]:
    """Return the nodes that read or make each site; port -1 stands for an output."""
    users: dict[Site, list[tuple[ir.Node, int]]] = defaultdict(list)
    for node in model.graph:
        for port, value in enumerate(node.inputs):
            if value is not None:
                users[site_of(node, port, value)].append((node, port))
        for value in node.outputs:
            users[value.name or ""].append((node, -1))
    return users
