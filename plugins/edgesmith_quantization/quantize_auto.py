"""The method `quantize-auto`: mixed precision, by measured sensitivity, within a budget and a time."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgesmith.data import fixed_batch_size
from edgesmith.errors import DataError, RecipeError, StepError
from edgesmith.graph.cost import count_cost
from edgesmith.host.context import Context, Notes
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_quantization.finding.protected_layers import find_protected
from edgesmith_quantization.options.auto import QuantizeAutoOptions
from edgesmith_quantization.search.attempts import FLOAT, Attempt, Limits
from edgesmith_quantization.search.formats import FORMATS, offered
from edgesmith_quantization.search.layer_groups import group_layers
from edgesmith_quantization.search.output_probe import OutputProbe
from edgesmith_quantization.search.precision_search import Finding, Goal, PrecisionSearch, Tools
from edgesmith_quantization.search.sensitivity import Sensitivities, Writer

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

_FEWEST_SAMPLES = 2
_SHOWN = 5
"""How many of the most sensitive groups the notes name."""


class QuantizeAuto(Method[QuantizeAutoOptions]):
    """Chooses a format for each group of layers: the fastest or smallest model that keeps a budget.

    Formats are the other methods of this family. Each is tried on the whole model, then on one group at a time, then
    in whole assignments from the most promising ones; all are measured on calibration samples that no range was taken
    from. Where the run has a runner with times, they are timed in turns, and what does not pay goes back to float.
    """

    def check(self, model: Model, context: Context[QuantizeAutoOptions]) -> Verdict:
        """Return whether there are two formats to choose from (float is one), and the data that measuring needs."""
        options = context.options
        problem = unmatched_names(model.graph, options) or _data_problem(context)
        if problem:
            return Verdict.refuse(problem)
        try:
            find_protected(model, options)
        except RecipeError as error:
            return Verdict.refuse(str(error))
        takers, reasons = _takers(model, context)
        nodes = frozenset().union(*takers.values())
        if not nodes:
            return Verdict.skip(f"no format has anything to do here: {'; '.join(reasons)}")
        return Verdict.ok(nodes=tuple(sorted(nodes)))

    def apply(self, model: Model, context: Context[QuantizeAutoOptions]) -> Model:
        """Return the best assignment found within the time.

        Raises:
            DataError: There is no calibration data, or it cannot be divided.
            RecipeError: The protection is missing, or was made for another model.
            StepError: No format has anything to do.
        """
        options = context.options
        takers, reasons = _takers(model, context)
        names = [each.name for each in FORMATS if takers.get(each.name)]
        if not names:
            raise _nothing_to_do(reasons)
        ranges, held_out = _divide(context)
        groups = group_layers(model.graph, set().union(*takers.values()), count_cost(model.ir).by_node)
        writer = Writer(model, takers, replace(context, calibration=ranges))
        tools = Tools(
            writer,
            _probe(model, held_out.take(options.validation_samples), context, "validation"),
            _probe(model, held_out.take(options.sensitivity_samples), context, "sensitivity"),
            context.trial,
            context.progress,
        )
        goal = Goal(_limits(options), options.objective, options.time_budget_s)
        finding = PrecisionSearch(tools, goal).run(groups, names)
        _report(finding, goal, tools, context.notes)
        find_protected(model, options).remark(context.notes)
        return finding.best.model if finding.best.model is not model else model.clone()


def _takers(model: Model, context: Context[QuantizeAutoOptions]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Return the nodes that each format could rewrite, and why others have none."""
    takers, reasons = {}, []
    wanted = context.options.formats or offered(context.dialect)
    for each in (one for one in FORMATS if one.name in wanted):
        verdict = each.check(model, replace(context, notes=Notes()), context.options)
        if verdict.status == "ok":
            takers[each.name] = frozenset(verdict.nodes)
        else:
            reasons.append(f"{each.name}: {verdict.reason}")
    return takers, reasons


def _data_problem(context: Context[QuantizeAutoOptions]) -> str:
    """Return what is wrong with the data for these options, or an empty string."""
    data, options, scoring = context.calibration, context.options, context.scoring
    if data is None or len(data) < _FEWEST_SAMPLES:
        return (
            f"it needs at least {_FEWEST_SAMPLES} calibration samples: some for ranges, others to measure on; "
            "pass them with --data"
        )
    if options.max_metric_drop is None:
        return ""
    if not data.has_labels:
        return "max_metric_drop needs calibration data with labels; add labels, or limit min_sqnr_db instead"
    if scoring is None or not scoring.needs_labels:
        name = scoring.name if scoring is not None else "none"
        return f"max_metric_drop needs a metric against labels, and the run's is {name}; limit min_sqnr_db instead"
    return ""


def _divide(context: Context[QuantizeAutoOptions]) -> "tuple[DataSource, DataSource]":
    """Return calibration samples to take ranges from, and others to measure on. None is in both."""
    from edgesmith_calibration.sources import split

    data, options = context.calibration, context.options
    if data is None or len(data) < _FEWEST_SAMPLES:
        raise _no_data()
    wanted = min(len(data), options.samples + max(options.validation_samples, options.sensitivity_samples))
    if wanted < len(data):
        # Files are often sorted by class, so samples are taken from everywhere.
        data = data.select(np.linspace(0, len(data) - 1, wanted).astype(np.intp))
    return split(data, min(options.samples, wanted // 2), seed=context.seed)


def _probe(model: Model, data: "DataSource", context: Context[QuantizeAutoOptions], name: str) -> OutputProbe:
    folder = context.scratch / name
    folder.mkdir()
    batch_size = fixed_batch_size(model) or 1
    return OutputProbe(model.ir, data, folder, scoring=context.scoring, batch_size=batch_size, threads=context.threads)


def _limits(options: QuantizeAutoOptions) -> Limits:
    return Limits(options.max_metric_drop, options.least_sqnr_db, options.max_bits_per_weight)


def _report(finding: Finding, goal: Goal, tools: Tools, notes: Notes) -> None:
    """Write what was chosen, what it keeps, and what was tried into the notes."""
    best = finding.best
    misses = goal.limits.misses(best.quality, best.bits_per_weight)
    notes.remark(
        f"Chosen: {_counts(best)}. {'Budget missed: ' + '; '.join(misses) if misses else 'Within the budget'}."
    )
    for miss in misses:
        notes.miss(miss)
    notes.remark(f"Measured on {tools.probe.samples} held-out calibration samples: {best.summary}.")
    for remark in finding.remarks:
        notes.remark(remark)
    if finding.sensitivities is not None:
        notes.remark(_most_sensitive(finding.sensitivities))
    reasons = _reasons(finding.sensitivities) if finding.sensitivities is not None else {}
    for group, pick in zip(best.groups, best.picks, strict=True):
        for node in group.nodes if pick == FLOAT else ():
            notes.skip(node, reasons.get(node, "stays in float in the best assignment found"))


def _reasons(found: Sensitivities) -> dict[str, str]:
    """Return for each node what its group costs in the format that is best for it."""
    reasons = {}
    for group, choices in zip(found.groups, found.measured, strict=True):
        if not choices:
            continue
        name, one = min(choices.items(), key=lambda each: each[1].quality.noise)
        for node in group.nodes:
            reasons[node] = f"stays in float; it alone in {name} leaves {one.quality.sqnr_db:.1f} dB"
    return reasons


def _counts(best: Attempt) -> str:
    counts: dict[str, int] = {}
    for group, pick in zip(best.groups, best.picks, strict=True):
        counts[pick] = counts.get(pick, 0) + len(group.nodes)
    return ", ".join(f"{count} layers in {pick}" for pick, count in counts.items())


def _most_sensitive(found: Sensitivities) -> str:
    """Return the groups that cost most, with what they cost."""
    measured = [
        (one.quality, f"{group.name} in {name}")
        for group, choices in zip(found.groups, found.measured, strict=True)
        for name, one in choices.items()
    ]
    measured.sort(key=lambda each: each[0].sqnr_db)
    shown = []
    for quality, words in measured[:_SHOWN]:
        drop = "" if quality.metric_drop is None else f", metric {0.0 - quality.metric_drop:+.2f}"
        shown.append(f"{words} ({quality.sqnr_db:.1f} dB{drop})")
    return f"Measured {len(measured)} choices one at a time; most sensitive: {'; '.join(shown)}."


def _no_data() -> DataError:
    return DataError(
        "there is not enough calibration data for quantize-auto",
        expected=f"at least {_FEWEST_SAMPLES} samples",
        why="ranges are taken from some samples, and errors measured on others",
        fix="pass data with --data",
    )


def _nothing_to_do(reasons: list[str]) -> StepError:
    return StepError(
        f"quantize-auto found no format for this graph ({'; '.join(reasons)})",
        expected="at least one node that one of the formats takes",
        why="there is nothing to choose",
        fix="remove the step, or widen the options formats, only and skip",
    )
