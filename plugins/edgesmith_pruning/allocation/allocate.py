"""How many atoms each unit loses, from the options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgesmith.errors import MeasurementError
from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_pruning.allocation.budget import (
    Counts,
    Family,
    cut,
    lowest_level,
    macs_of_atoms,
    remembered,
    saved_cost,
)
from edgesmith_pruning.allocation.global_ranking import Curve, ranked
from edgesmith_pruning.allocation.uniform import kept_width, uniform_counts
from edgesmith_pruning.choice import Ranking
from edgesmith_pruning.finding.records import Kind, Unit
from edgesmith_pruning.options.structure import PruneStructureOptions

_TIMING_SECONDS = 8.0
_TIMED_PLANS, _COUNTED_PLANS = 6, 10


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an allocation looks at."""

    source: Model
    """The model before anything was changed; savings are shares of it."""
    model: Model
    """The model that the units were found in; layers may have got biases."""
    units: Sequence[Unit]
    most: Mapping[str, int]
    """Most atoms that each unit may lose in each group."""
    context: Context[PruneStructureOptions]
    rankings: Callable[[Mapping[str, int]], Mapping[str, tuple[Ranking, float]]]
    """Returns what goes first in each unit, and the energy that its costs are shares of."""

    @property
    def tile(self) -> int:
        """Multiple that widths of channels should be of."""
        return tile_of(self.context)

    def counts(self) -> Counts:
        """Return how many atoms each unit loses in each group."""
        options = self.context.options
        if options.allocation == "uniform":
            if options.budget == "atoms":
                return self._capped(uniform_counts(self.units, self._shares(1.0), self.tile))
            return self._search(self._uniform)
        curves = self._curves()
        if options.budget != "atoms":
            return self._search(ranked(curves))
        counts: dict[str, int] = {}
        for kind in dict.fromkeys(unit.kind for unit in self.units):
            part = {unit.key: curves[unit.key] for unit in self.units if unit.kind == kind}
            counts |= lowest_level(ranked(part), partial(_removed, self.units), options.share(kind), steps=20)
        return counts

    def _uniform(self, level: float) -> Counts:
        return self._capped(
            uniform_counts(self.units, dict.fromkeys((unit.kind for unit in self.units), level), self.tile)
        )

    def _shares(self, factor: float) -> dict[Kind, float]:
        return {unit.kind: factor * self.context.options.share(unit.kind) for unit in self.units}

    def _capped(self, counts: Counts) -> Counts:
        return {key: min(count, self.most[key]) for key, count in counts.items()}

    def _curves(self) -> dict[str, Curve]:
        by_atoms = self.context.options.budget == "atoms"
        saves = {} if by_atoms else macs_of_atoms(self.model.ir, self.units)
        rankings = self.rankings(self.most)
        curves = {}
        for unit in self.units:
            ranking, energy = rankings[unit.key]
            step = 1 if unit.kind in ("heads", "query-heads") else self.tile
            rises = ranking.by_level(unit) / (energy or 1.0)
            curves[unit.key] = Curve(rises, 1.0 if by_atoms else saves[unit.key], step, first=unit.group_size % step)
        return curves

    def _search(self, family: Family) -> Counts:
        """Return the plan that goes as far as the budget asks for, and say so where none does."""
        options = self.context.options
        if options.budget == "latency":
            saved, steps = self._saved_latency(), _TIMED_PLANS
        else:
            what: Literal["macs", "parameters"] = "macs" if options.budget == "macs" else "parameters"
            saved, steps = saved_cost(self.source.ir, partial(cut, self.model.ir, self.units), what), _COUNTED_PLANS
        saved = remembered(saved)
        counts = lowest_level(family, saved, options.ratio, steps)
        reached = saved(counts)
        if reached < options.ratio:
            self.context.notes.remark(
                f"No plan within largest_share saves {100 * options.ratio:.3g} % of {options.budget}; this one saves "
                f"{100 * reached:.3g} %."
            )
        elif options.budget == "latency":
            self.context.notes.remark(f"The plan saved {100 * reached:.3g} % of latency when it was tried.")
        return counts

    def _saved_latency(self) -> Callable[[Counts], float]:
        trial = self.context.trial
        if trial is None or not trial.measures_latency:
            raise MeasurementError(
                "a budget of latency needs times of the target, and nothing is timed in this run",
                expected="a runner that has the device",
                why="what a plan saves is measured and not estimated",
                fix="run where the device is, or set the option budget to macs",
            )
        baseline = trial.lower(self.source)

        def saved(counts: Counts) -> float:
            tried = trial.lower(self.model.with_ir(cut(self.model.ir, self.units, counts)))
            (speedup,) = trial.speedups([tried], baseline, max_seconds=_TIMING_SECONDS)
            return 1 - 1 / speedup.value

        return saved


def _removed(units: Sequence[Unit], counts: Counts) -> float:
    """Return the share of the atoms that go, over the units that counts are given for."""
    sizes = {unit.key: unit.group_size for unit in units}
    return sum(counts.values()) / sum(sizes[key] for key in counts)


def tile_of(context: Context[PruneStructureOptions]) -> int:
    """Return the multiple that widths of channels should be of on the target."""
    chosen = context.options.alignment
    return max(context.dialect.alignment.values(), default=1) if chosen is None else chosen


def most_removable(unit: Unit, kept: Sequence[int], share: float, tile: int) -> int:
    """Return how many atoms of each group may go at most: some stay for protection, some because one must.

    Args:
        unit: What may be pruned.
        kept: Atoms that must stay.
        share: Largest share of a unit that may go.
        tile: Multiple that what stays should be of.
    """
    held = [0] * unit.groups
    for atom in kept:
        held[atom // unit.group_size] += 1
    step = 1 if unit.kind in ("heads", "query-heads") else tile
    return min(unit.group_size - kept_width(unit.group_size, share, step), unit.group_size - max(held))
