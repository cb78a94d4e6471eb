"""What is removed, and its removal from the graph in one cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.couplings import remove_many
from edgesmith_pruning.finding.records import Unit

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decision:
    """Which atoms of a unit go, equally many of each group."""

    unit: Unit
    removed: tuple[int, ...]


def lowest(unit: Unit, scores: Float64, count: int, kept: Sequence[int] = ()) -> Decision:
    """Return the decision to remove the atoms of lowest score.

    Args:
        unit: What to choose from.
        scores: One number for each atom; ties go to the atom with the lower number.
        count: How many go in each group.
        kept: Atoms that stay whatever their score.
    """
    free = np.ones(unit.size, np.bool_)
    free[list(kept)] = False
    removed: list[int] = []
    for group in range(unit.groups):
        atoms = np.arange(group * unit.group_size, (group + 1) * unit.group_size)
        atoms = atoms[free[atoms]]
        removed += atoms[np.argsort(scores[atoms], kind="stable")[:count]].tolist()
    return Decision(unit, tuple(sorted(removed)))


def remove(model: ir.Model, decisions: Iterable[Decision]) -> ir.Model:
    """Return the model without what the decisions remove. All were made for this graph."""
    chosen = [decision for decision in decisions if decision.removed]
    return remove_many(
        model,
        [(each.unit.coupling, each.removed) for each in chosen if each.unit.nesting is None],
        within=[(each.unit.nesting, each.unit.choices(each.removed)) for each in chosen if each.unit.nesting],
    )
