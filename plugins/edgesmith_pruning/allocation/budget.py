"""From a budget to counts: how far to go in a family of plans, measured on the graph that each plan gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from edgesmith.graph.cost import count_cost
from edgesmith.graph.couplings import Slot
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.removal import first_atoms, remove

Counts = Mapping[str, int]
"""How many atoms each unit loses in each group, by the unit's key."""

Family = Callable[[float], Counts]
"""Counts for a level between 0 (nothing goes) and 1 (as much as may go); never less for a higher level."""


def lowest_level(family: Family, saved: Callable[[Counts], float], wanted: float, steps: int) -> Counts:
    """Return the counts of the lowest level that saves what is wanted, or of level 1 where none does.

    Args:
        family: Counts by level.
        saved: Share that a plan saves; it should not fall with the level.
        wanted: Share to save.
        steps: Number of halvings. Each measures one plan.
    """
    low, high = 0.0, 1.0
    best = family(1.0)
    for _ in range(steps):
        middle = (low + high) / 2
        counts = family(middle)
        if saved(counts) >= wanted:
            best, high = counts, middle
        else:
            low = middle
    return best


def remembered(saved: Callable[[Counts], float]) -> Callable[[Counts], float]:
    """Return the function with one answer for each plan: times measured again would differ, and take as long."""
    seen: dict[tuple[tuple[str, int], ...], float] = {}

    def known(counts: Counts) -> float:
        key = tuple(sorted(counts.items()))
        if key not in seen:
            seen[key] = saved(counts)
        return seen[key]

    return known


def cut(model: ir.Model, units: Sequence[Unit], counts: Counts) -> ir.Model:
    """Return the graph at the widths of a plan, whichever atoms go: what it costs does not depend on that."""
    return remove(model, [first_atoms(unit, counts[unit.key]) for unit in units])


def saved_cost(
    source: ir.Model, cut_to: Callable[[Counts], ir.Model], what: Literal["macs", "parameters"]
) -> Callable[[Counts], float]:
    """Return a function that counts the share of MACs or parameters that a plan saves.

    Args:
        source: The graph before anything was changed.
        cut_to: Returns the graph at the widths of a plan.
        what: What to count.
    """

    def count(graph: ir.Model) -> int:
        cost = count_cost(graph)
        return cost.macs if what == "macs" else cost.parameters

    before = max(count(source), 1)

    def saved(counts: Counts) -> float:
        return 1 - count(cut_to(counts)) / before

    return saved


def macs_of_atoms(model: ir.Model, units: Sequence[Unit]) -> dict[str, float]:
    """Return about how many MACs one atom of each group of a unit takes, by the unit's key.

    A node that an atom passes takes the atom's share of it. What two units both narrow is counted for both.

    Args:
        model: The graph.
        units: What may be removed.
    """
    by_node = count_cost(model).by_node
    names = {name: node for node in model.graph if (name := node.name or str(node.outputs[0].name)) in by_node}
    costs = {}
    for unit in units:
        shares = {(slot.value, slot.reader): _share(slot) for slot in unit.coupling.places}
        total = 0.0
        for name, node in names.items():
            values = [value.name for value in (*node.inputs, *node.outputs) if value is not None]
            keys = [(value, None) for value in values] + [(value, node.outputs[0].name) for value in values]
            total += by_node[name] * max((shares.get((str(value), reader), 0.0) for value, reader in keys), default=0.0)
        costs[unit.key] = total / unit.group_size
    return costs


def _share(slot: Slot) -> float:
    """Return the share of an axis that all atoms hold together."""
    return len(slot.positions(range(len(slot.indices)))) / slot.length
