"""One pruning of one model: finds units, allocates, sweeps, cuts."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.data import required_data
from edgesmith.errors import StepError
from edgesmith.execution.unpadded import without_padding
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context, Notes
from edgesmith.model import Model
from edgesmith.protection import Protection
from edgesmith_calibration.sources import DataSource
from edgesmith_pruning.allocation.allocate import Allocation, most_removable, tile_of
from edgesmith_pruning.allocation.output_error import OutputError
from edgesmith_pruning.choice import Measured, Ranking, rank
from edgesmith_pruning.finding.biases import add_biases
from edgesmith_pruning.finding.layers import Layer, find_layers, with_first_level
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.selection import protected_atoms, selected_units
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.removal import Decision
from edgesmith_pruning.statistics.held_out import HeldOut
from edgesmith_pruning.statistics.network_scores import network_scores
from edgesmith_pruning.sweep import Outcome, Sweep

StructureContext = Context[PruneStructureOptions]
Float64 = NDArray[np.float64]


class Pruning:
    """What is found and decided about one model.

    Args:
        model: The model; it is not changed.
        context: Options, data and the rest.

    Raises:
        RecipeError: The protection was made for another model.
        StepError: There is nothing to remove.
    """

    def __init__(self, model: Model, context: StructureContext) -> None:
        self._options, self._context, self._source = context.options, context, model
        dense = model.ir.clone()
        units = selected_units(dense, self._options, context.notes)
        self.added = _with_biases(dense, units, self._options)
        if self.added:
            units = selected_units(dense, self._options, Notes())
        if not units:
            raise _nothing()
        self.units, self._model = units, model.with_ir(dense)
        self._layers = find_layers(dense, units)
        protection = Protection.chosen(self._options.protect, model.assets)
        self._kept = protected_atoms(units, protection)
        self._rankings: dict[str, tuple[Ranking, float]] = {}
        self._scores: Mapping[str, Float64] = {}
        self._data: DataSource | None = None
        self._output_error: OutputError | None = None
        self.working = dense.clone()
        self.outcomes: list[Outcome] = []

    def run(self) -> tuple[Decision, ...]:
        """Return what goes; `working` is refitted for it and not cut yet.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            StepError: So little is to go that nothing does.
        """
        self._scores = network_scores(self._model.ir, self.units, self._layers, self._calibration, self._context)
        counts = self._allocate()
        if not any(counts.values()):
            raise _nothing()
        at_once = bool(self._scores) or not self._options.reads_data
        apart = [unit for unit in self.units if len(unit.consumers) > 1 or at_once]
        self._rank({unit.key: counts[unit.key] for unit in apart if unit.key not in self._rankings})
        decided = {unit.key: self._rankings[unit.key][0].first(unit, counts[unit.key]) for unit in apart}
        if self._options.reads_data:
            present = self.working if self._options.sequential else self._model.ir
            sweep = self._sweep()
            layers = self._layers
            if self._options.refit == "two-step":
                layers = with_first_level(self._model.ir, self.units, layers)
            for layer, moments in sweep.measure(self._model.ir, present, layers, "pruning"):
                self._treat(layer, moments, counts, decided, sweep)
        return tuple(decided[unit.key] for unit in self.units)

    def _allocate(self) -> Mapping[str, int]:
        options, tile = self._options, tile_of(self._context)
        most = {}
        for unit in self.units:
            share = options.share(unit.kind)
            largest = share if options.budget == "atoms" and options.allocation == "uniform" else options.largest_share
            most[unit.key] = most_removable(unit, self._kept[unit.key], largest, tile)
        return Allocation(self._source, self._model, self.units, most, self._context, self._rank).counts()

    def _rank(self, counts: Mapping[str, int]) -> Mapping[str, tuple[Ranking, float]]:
        """Rank units on the dense network, and return all rankings so far with the energy behind each."""
        units = [unit for unit in self.units if counts.get(unit.key)]
        layers = [layer for layer in self._layers if any(unit.key in layer.rows for unit in units)]
        waiting: dict[str, list[tuple[Layer, HeldOut | None]]] = {unit.key: [] for unit in units}
        for layer, moments in self._measured(layers):
            for unit in units:
                if unit.key not in layer.rows:
                    continue
                waiting[unit.key].append((layer, moments))
                if len(waiting[unit.key]) == len(unit.consumers):
                    found = waiting.pop(unit.key)
                    energy = sum(each.total.energy for _, each in found if each is not None)
                    ranking = self._ranking(unit, counts[unit.key], found)
                    if self._options.allocation == "measured":
                        ranking, energy = self._at_outputs(unit, counts[unit.key], found, ranking), 1.0
                    self._rankings[unit.key] = ranking, energy
        for unit in self.units:
            self._rankings.setdefault(unit.key, (Ranking((), np.zeros(0)), 0.0))
        return self._rankings

    def _ranking(self, unit: Unit, count: int, measured: Measured) -> Ranking:
        return rank(unit, measured, count, self._kept[unit.key], self._options, self._scores.get(unit.key))

    def _at_outputs(self, unit: Unit, count: int, measured: Measured, ranking: Ranking) -> Ranking:
        """Return the ranking with costs measured at the outputs of the network."""
        known = [(layer, held) for layer, held in measured if held is not None]
        few = [(layer, held.fit.rows) for layer, held in known if held.fit.rows < layer.inputs]
        if few:
            layer, rows = few[0]
            # A refit to fewer rows than inputs fits anything, so what it costs cannot be measured.
            self._context.notes.skip(unit.name, f"{rows:.0f} rows to fit {layer.inputs} inputs on; pass more samples")
            return Ranking((), np.zeros(0))
        if self._output_error is None:
            context = self._context
            self._output_error = OutputError(
                self._model.ir, self._calibration(), self._options.batch_size, context.threads
            )
        return self._output_error.costs(unit, known, ranking, partial(self._ranking, unit, count))

    def _measured(self, layers: Sequence[Layer]) -> Iterator[tuple[Layer, HeldOut | None]]:
        """Yield layers with moments in the dense network, or without where scores need none."""
        if layers and self._options.reads_data and (not self._scores or self._options.allocation == "measured"):
            yield from self._sweep().measure(self._model.ir, self._model.ir, layers, "ranking")
        else:
            yield from ((layer, None) for layer in layers)

    def _treat(
        self, layer: Layer, moments: HeldOut, counts: Mapping[str, int], decided: dict[str, Decision], sweep: Sweep
    ) -> None:
        """Decide what nobody decided before, and refit the layer."""
        gone = np.zeros(layer.inputs, np.bool_)
        for unit in self.units:
            if unit.key not in layer.rows:
                continue
            if unit.key not in decided:
                ranking = self._ranking(unit, counts[unit.key], [(layer, moments)])
                decided[unit.key] = ranking.first(unit, counts[unit.key])
            for atom in decided[unit.key].removed:
                gone[list(layer.rows[unit.key][atom])] = True
        if gone.any() or self._options.sequential:
            self.outcomes.append(sweep.repair(self.working, layer, moments, ~gone, layer.tail.bias))

    def _sweep(self) -> Sweep:
        context = self._context
        return Sweep(
            data=self._calibration(),
            scratch=context.scratch,
            threads=context.threads,
            batch_size=self._options.batch_size,
            progress=context.progress,
            options=self._options,
        )

    def _calibration(self) -> DataSource:
        if self._data is None:
            self._data = _calibration(self._model.ir, self._context)
        return self._data


def _with_biases(model: ir.Model, units: Sequence[Unit], options: PruneStructureOptions) -> Mapping[str, str]:
    """Give layers that have none a bias, and return its name by layer."""
    if not options.add_biases or options.refit == "none":
        return {}
    layers = [layer for layer in find_layers(model, units) if layer.tail.bias is None and not layer.obstacle]
    return add_biases(model, [(layer.consumer.reader, layer.matrix.shape[1]) for layer in layers])


def _calibration(model: ir.Model, context: StructureContext) -> DataSource:
    given = required_data(
        context.calibration,
        "prune-structure",
        why="scores and refits look at what layers read",
        fix="set score to magnitude and refit to none",
    )
    data, remark = without_padding(model, find_structure(model).attentions, given.take(context.options.samples))
    if remark:
        context.notes.remark(remark)
    return data


def _nothing() -> StepError:
    return StepError(
        "prune-structure found nothing to remove",
        expected="heads or channels between two layers of the graph, and a ratio that is worth at least one of them",
        why="the step would change nothing",
        fix="remove the step from the recipe, widen the options ratio, kinds, only and skip, or set alignment to 1: "
        "narrow layers may have no smaller width that is a multiple of what the target likes",
    )
