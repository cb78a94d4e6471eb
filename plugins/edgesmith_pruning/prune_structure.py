"""The method `prune-structure`: removes heads and channels with everything that hangs on them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.errors import DataError, StepError
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.selection import unmatched_names
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_calibration.moments import Moments
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.allocation.uniform import uniform_counts
from edgesmith_pruning.choice import choose
from edgesmith_pruning.finding.biases import add_biases, drop_zero_biases
from edgesmith_pruning.finding.layers import Layer, find_layers
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.removal import Decision, remove
from edgesmith_pruning.sweep import Outcome, Sweep

StructureContext = Context[PruneStructureOptions]


class PruneStructure(Method[PruneStructureOptions]):
    """Removes attention heads and channels of MLPs and convolutions, whatever network they are found in."""

    def check(self, model: Model, context: StructureContext) -> Verdict:
        """Return whether there is something to remove, and the data that scores and refit need."""
        problem = unmatched_names(model.graph, context.options)
        if problem:
            return Verdict.refuse(problem)
        units = _selected(model.ir, context)
        if not units:
            return Verdict.skip("nothing can be removed from this graph with these options")
        if context.options.reads_data and (context.calibration is None or len(context.calibration) == 0):
            return Verdict.refuse(
                "scores and refits look at calibration data; pass it with --data, or set score to magnitude and refit "
                "to none"
            )
        return Verdict.ok(nodes=tuple(dict.fromkeys(unit.name for unit in units)))

    def apply(self, model: Model, context: StructureContext) -> Model:
        """Return the pruned model.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            RecipeError: The protection was made for another model.
            StepError: There is nothing to remove.
        """
        dense = model.ir.clone()
        units = _selected(dense, context)
        added = _add_biases(dense, units, context.options)
        if added:
            units = _selected(dense, context)
        shares = {kind: context.options.share(kind) for kind in {unit.kind for unit in units}}
        counts = uniform_counts(units, shares, tile=1)
        units = tuple(unit for unit in units if counts[unit.key])
        if not units:
            raise _nothing()
        pruning = _Pruning(dense, units, counts, added, context)
        result = remove(pruning.working, pruning.run())
        drop_zero_biases(result, added.values())
        return model.with_ir(result)


class _Pruning:
    """One run over one graph: what is decided so far, and the graph as it is by then."""

    def __init__(
        self,
        dense: ir.Model,
        units: Sequence[Unit],
        counts: Mapping[str, int],
        added: Mapping[str, str],
        context: StructureContext,
    ) -> None:
        self._dense, self.working = dense, dense.clone()
        self._units, self._counts, self._added, self._context = units, counts, added, context
        self._layers = find_layers(dense, units)
        self._kept = _protected(units, context.options)
        self._decisions: dict[str, Decision] = {}
        self.outcomes: list[Outcome] = []

    def run(self) -> tuple[Decision, ...]:
        """Return what goes, with `working` refitted for it."""
        options = self._context.options
        if not options.reads_data:
            for unit in self._units:
                self._decide(unit, [(layer, None) for layer in self._layers if unit.key in layer.rows])
            return tuple(self._decisions.values())
        sweep = self._sweep()
        apart = [unit for unit in self._units if len(unit.consumers) > 1]
        if apart:
            wide = [layer for layer in self._layers if any(unit.key in layer.rows for unit in apart)]
            moments = dict(sweep.measure(self._dense, self._dense, wide))
            for unit in apart:
                self._decide(unit, [(layer, moments[layer]) for layer in wide if unit.key in layer.rows])
        present = self.working if options.sequential else self._dense
        for layer, measured in sweep.measure(self._dense, present, self._layers):
            self._treat(layer, measured, sweep)
        return tuple(self._decisions.values())

    def _treat(self, layer: Layer, moments: Moments, sweep: Sweep) -> None:
        gone = np.zeros(layer.inputs, np.bool_)
        for unit in self._units:
            if unit.key not in layer.rows:
                continue
            if unit.key not in self._decisions:
                self._decide(unit, [(layer, moments)])
            for atom in self._decisions[unit.key].removed:
                gone[list(layer.rows[unit.key][atom])] = True
        bias = layer.tail.bias
        self.outcomes.append(sweep.repair(self.working, layer, moments, ~gone, bias))

    def _decide(self, unit: Unit, measured: Sequence[tuple[Layer, Moments | None]]) -> None:
        context = self._context
        self._decisions[unit.key] = choose(
            unit, measured, self._counts[unit.key], self._kept[unit.key], context.options, context.seed
        )

    def _sweep(self) -> Sweep:
        context = self._context
        return Sweep(
            data=_calibration(self._dense, context),
            scratch=context.scratch,
            threads=context.threads,
            batch_size=context.options.batch_size,
            progress=context.progress,
            refit=context.options.refit,
            ridge=context.options.ridge,
        )


def _selected(model: ir.Model, context: StructureContext) -> tuple[Unit, ...]:
    options = context.options
    chosen = []
    for unit in find_units(model, context.notes):
        reason = options.obstacle(unit.name)
        if reason:
            context.notes.skip(unit.name, reason)
        elif options.share(unit.kind) > 0:
            chosen.append(unit)
    return tuple(chosen)


def _add_biases(model: ir.Model, units: Sequence[Unit], options: PruneStructureOptions) -> dict[str, str]:
    if not options.add_biases or options.refit == "none":
        return {}
    layers = [layer for layer in find_layers(model, units) if layer.tail.bias is None and not layer.obstacle]
    return add_biases(model, [(layer.consumer.reader, layer.matrix.shape[1]) for layer in layers])


def _protected(units: Sequence[Unit], options: PruneStructureOptions) -> dict[str, tuple[int, ...]]:
    """Return the atoms of each unit that must stay."""
    protection = Protection() if options.protect is None else Protection.load(options.protect)
    kept = {}
    for unit in units:
        atoms: set[int] = set()
        for place in (*unit.producers, *unit.consumers):
            held = protection.places(place.weight, place.axis, place.length)
            atoms.update(atom for atom, positions in enumerate(place.positions) if held & set(positions))
        kept[unit.key] = tuple(sorted(atoms))
    return kept


def _calibration(model: ir.Model, context: StructureContext) -> DataSource:
    data = context.calibration
    if data is None or len(data) == 0:
        raise DataError(
            "there is no calibration data to prune with",
            expected="a data source with at least one sample",
            why="scores and refits look at what layers read",
            fix="pass data with --data, or set score to magnitude and refit to none",
        )
    data, remark = without_padding(model, find_structure(model).attentions, data.take(context.options.samples))
    if remark:
        context.notes.remark(remark)
    return data


def _nothing() -> StepError:
    return StepError(
        "prune-structure found nothing to remove",
        expected="heads or channels between two layers of the graph",
        why="the step would change nothing",
        fix="remove the step from the recipe, or widen the options ratio, kinds, only and skip",
    )
