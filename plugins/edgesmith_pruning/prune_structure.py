"""The method `prune-structure`: removes heads and channels with everything that hangs on them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from edgesmith.errors import EdgesmithError
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_pruning.finding.biases import drop_zero_biases
from edgesmith_pruning.finding.records import Kind
from edgesmith_pruning.finding.selection import protected_atoms, selected_units
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.pruning import Pruning, StructureContext
from edgesmith_pruning.removal import Decision, moved_protection, remove
from edgesmith_pruning.sweep import Outcome


class PruneStructure(Method[PruneStructureOptions]):
    """Removes attention heads and channels of MLPs and convolutions, whatever network they are found in."""

    def check(self, model: Model, context: Context[PruneStructureOptions]) -> Verdict:
        """Return whether there is something to remove, and what scores, refits and budgets need."""
        options = context.options
        problem = unmatched_names(model.graph, options) or _missing(context)
        if problem:
            return Verdict.refuse(problem)
        try:
            units = selected_units(model.ir, options, context.notes)
            if options.protect is not None:
                protected_atoms(units, Protection.chosen(options.protect, model.assets))
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        if not units:
            return Verdict.skip(_why_none(context))
        return Verdict.ok(nodes=tuple(dict.fromkeys(unit.name for unit in units)))

    def apply(self, model: Model, context: Context[PruneStructureOptions]) -> Model:
        """Return the pruned model.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            RecipeError: The protection was made for another model.
            StepError: There is nothing to remove.
        """
        pruning = Pruning(model, context)
        decisions = pruning.run()
        result = remove(pruning.working, decisions)
        drop_zero_biases(result, pruning.added.values())
        context.notes.remark(_summary(decisions) + _why_no_heads(decisions, context.options))
        if any(each.lost for each in pruning.outcomes):
            context.notes.remark(_refits(pruning.outcomes))
        return replace(model.with_ir(result), assets=moved_protection(model.assets, decisions))


def _missing(context: StructureContext) -> str:
    """Return what the options need and the run does not have, or an empty string."""
    options = context.options
    if options.reads_data and not context.calibration:
        return (
            "scores and refits look at calibration data; pass it with --data, or set score to magnitude and refit to "
            "none"
        )
    if options.budget == "latency" and (context.trial is None or not context.trial.measures_latency):
        return "a latency budget is measured and the device is not here; name it with --on, or set budget to macs"
    return ""


def _why_none(context: StructureContext) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(context.notes.skipped.items())[:3])
    return f"nothing of the kinds {', '.join(context.options.kinds)} can be removed ({reasons or 'the graph has none'})"


def _summary(decisions: Sequence[Decision]) -> str:
    removed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for decision in decisions:
        removed[decision.unit.kind] += len(decision.removed)
        total[decision.unit.kind] += decision.unit.size
    parts = (f"{removed[kind]} of {total[kind]} {kind}" for kind in total)
    return f"Removed {', '.join(parts)}."


def _why_no_heads(decisions: Sequence[Decision], options: PruneStructureOptions) -> str:
    """Return why no head went though a share of them should: they are counted one by one, and never more go."""
    if options.allocation != "uniform" or options.budget != "atoms":
        return ""
    said = ""
    kinds: tuple[Kind, ...] = ("heads", "query-heads")
    for kind in kinds:
        own = [each for each in decisions if each.unit.kind == kind]
        largest = max((each.unit.group_size for each in own), default=0)
        share = options.share(kind)
        if own and 0 < share * largest < 1 and not any(each.removed for each in own):
            said += f" No {kind} went, since {100 * share:.3g} % of {largest} in a layer is less than one."
    return said


def _refits(outcomes: Sequence[Outcome]) -> str:
    taken = sum(each.repair != "none" for each in outcomes)
    cut = [each for each in outcomes if each.lost]
    before = 100 * sum(each.dropped for each in cut) / len(cut)
    after = 100 * sum(each.repaired for each in cut) / len(cut)
    if not taken:
        return (
            f"No layer was refitted; the mean error of {len(cut)} on calibration data is {before:.2g} % of what "
            "they should give."
        )
    return (
        f"Refitted {taken} of {len(outcomes)} layers; on calibration data the mean error of the {len(cut)} that lost "
        f"inputs went from {before:.2g} % to {after:.2g} % of what they should give."
    )
