"""What is removed, and its removal from the graph in one cut."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.couplings import remove_many
from edgesmith.protection import PROTECTION_ASSET, Protection
from edgesmith_pruning.finding.records import Unit


@dataclass(frozen=True, slots=True)
class Decision:
    """Which atoms of a unit go, equally many of each group."""

    unit: Unit
    removed: tuple[int, ...]


def first_atoms(unit: Unit, count: int) -> Decision:
    """Return the decision to remove the first `count` atoms of each group, whatever they are worth."""
    groups = range(unit.groups)
    return Decision(unit, tuple(group * unit.group_size + atom for group in groups for atom in range(count)))


def remove(model: ir.Model, decisions: Iterable[Decision]) -> ir.Model:
    """Return the model without what the decisions remove. All were made for this graph."""
    chosen = [decision for decision in decisions if decision.removed]
    return remove_many(
        model,
        [(each.unit.coupling, each.removed) for each in chosen if each.unit.nesting is None],
        within=[(each.unit.nesting, each.unit.choices(each.removed)) for each in chosen if each.unit.nesting],
    )


def moved_protection(assets: Mapping[str, bytes], decisions: Iterable[Decision]) -> Mapping[str, bytes]:
    """Return a model's files with the protection among them, if any, as it is after what the decisions remove."""
    if PROTECTION_ASSET not in assets:
        return assets
    gone: dict[tuple[str, int], set[int]] = {}
    for decision in decisions:
        for place in (*decision.unit.producers, *decision.unit.consumers):
            removed = (place.positions[atom] for atom in decision.removed)
            gone.setdefault((place.weight, place.axis), set()).update(*removed)
    protection = Protection.chosen("units", assets).without(gone)
    return {**assets, PROTECTION_ASSET: protection.model_dump_json(indent=1).encode()}
