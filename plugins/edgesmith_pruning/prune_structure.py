"""The method `prune-structure`: removes heads and channels with everything that hangs on them."""

import numpy as np

from edgesmith.errors import StepError
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_pruning.allocation.uniform import uniform_counts
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.finding.weights import weight_array
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.removal import lowest, remove
from edgesmith_pruning.scores.magnitude import Float64, random_scores, squared_norms


class PruneStructure(Method[PruneStructureOptions]):
    """Removes attention heads and channels of MLPs and convolutions, whatever network they are found in."""

    def check(self, model: Model, context: Context[PruneStructureOptions]) -> Verdict:
        """Return whether there is something to remove, and the data that scores and refit need."""
        problem = unmatched_names(model.graph, context.options)
        if problem:
            return Verdict.refuse(problem)
        units = _selected(model, context)
        if not units:
            return Verdict.skip("nothing can be removed from this graph with these options")
        return Verdict.ok(nodes=tuple(unit.name for unit in units))

    def apply(self, model: Model, context: Context[PruneStructureOptions]) -> Model:
        """Return the pruned model.

        Raises:
            StepError: There is nothing to remove.
        """
        units = _selected(model, context)
        if not units:
            raise StepError(
                "prune-structure found nothing to remove",
                expected="heads or channels between two layers of the graph",
                why="the step would change nothing",
                fix="remove the step from the recipe, or widen the options kinds, only and skip",
            )
        shares = {kind: context.options.share(kind) for kind in {unit.kind for unit in units}}
        counts = uniform_counts(units, shares, tile=1)
        decisions = [lowest(unit, _scores(unit, model, context), counts[unit.key]) for unit in units]
        return model.with_ir(remove(model.ir, decisions))


def _scores(unit: Unit, model: Model, context: Context[PruneStructureOptions]) -> Float64:
    if context.options.score == "random":
        return random_scores(unit.size, context.seed)
    scores = np.zeros(unit.size)
    for consumer in unit.consumers:
        scores += squared_norms(weight_array(model.graph, consumer), consumer)
    return scores


def _selected(model: Model, context: Context[PruneStructureOptions]) -> tuple[Unit, ...]:
    options = context.options
    chosen = []
    for unit in find_units(model.ir, context.notes):
        reason = options.obstacle(unit.name)
        if reason:
            context.notes.skip(unit.name, reason)
        elif options.share(unit.kind) > 0:
            chosen.append(unit)
    return tuple(chosen)
