"""The method `analyse-units`: which units serve an attribute, and which of them must stay. The graph is not changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError
from edgesmith.host.context import Context, Notes
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.options.units import AnalyseUnitsOptions
from edgesmith_pruning.roles.ablation import divergence, prepare, random_groups
from edgesmith_pruning.roles.assignment import Shares, assign_roles, most_mixed
from edgesmith_pruning.roles.record import UNITS_ASSET, Effect, Role, UnitGroup, UnitRoles
from edgesmith_pruning.roles.slices import Slices, open_slices
from edgesmith_pruning.roles.statistics import Statistics, atom_costs, measure, stored_places, unit_scores

Float64 = NDArray[np.float64]


class AnalyseUnits(Method[AnalyseUnitsOptions]):
    """Gives each head and channel a role, and leaves roles and protection among the assets of the model."""

    def check(self, model: Model, context: Context[AnalyseUnitsOptions]) -> Verdict:
        """Return whether there are units, and two slices to tell them apart by."""
        try:
            units = _units(model, context.options, context.notes)
            if not units:
                return Verdict.skip(f"the graph has no {' and no '.join(context.options.kinds)} that could be removed")
            open_slices(model, context)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        return Verdict.ok(nodes=tuple(dict.fromkeys(unit.name for unit in units)))

    def apply(self, model: Model, context: Context[AnalyseUnitsOptions]) -> Model:
        """Return the same graph with the files `units.json` and `protection.json` among the assets.

        Raises:
            DataError: A slice cannot be read, is empty, or makes an activation infinite or NaN.
            RecipeError: The options name no attribute.
        """
        analysis = _Analysis.of(model, context)
        roles = analysis.roles()
        found = analysis.record(roles)
        for remark in _remarks(found, roles):
            context.notes.remark(remark)
        protection = analysis.protection(roles)
        files = {
            UNITS_ASSET: found.model_dump_json(indent=1).encode(),
            PROTECTION_ASSET: protection.model_dump_json(indent=1).encode(),
        }
        return replace(model.clone(), assets={**model.assets, **files})


@dataclass(frozen=True, slots=True)
class _Analysis:
    """Scores of all units of a model, one behind the other."""

    model: Model
    context: Context[AnalyseUnitsOptions]
    units: Sequence[Unit]
    held_out: Slices
    description: str
    statistics: tuple[Statistics, Statistics]
    """On the attribute, and on the utility."""
    attribute: Float64
    utility: Float64
    costs: Float64

    @classmethod
    def of(cls, model: Model, context: Context[AnalyseUnitsOptions]) -> "_Analysis":
        """Return the scores of a model's units on the two slices."""
        options, graph = context.options, model.graph
        units = _units(model, options, context.notes)
        whole = open_slices(model, context)
        known, held_out = whole.apart(context.seed) if options.ablations else (whole, whole)
        known, remark = known.unpadded(model)
        if remark:
            context.notes.remark(remark)
        measured = partial(
            measure, model.ir, units, batch_size=options.batch_size, threads=context.threads, progress=context.progress
        )
        statistics = measured(known.attribute), measured(known.utility)
        first, second = (np.concatenate([unit_scores(graph, unit, each) for unit in units]) for each in statistics)
        costs = np.concatenate([atom_costs(graph, unit) for unit in units])
        held_out, _ = held_out.unpadded(model)
        return cls(model, context, units, held_out, whole.description, statistics, first, second, costs)

    def roles(self) -> list[Role]:
        """Return the role of each unit."""
        options = self.context.options
        shares = Shares(options.redundant_share, options.attribute_share, options.utility_share)
        return assign_roles(self.attribute, self.utility, self.costs, shares)

    def record(self, roles: Sequence[Role]) -> UnitRoles:
        """Return what was found, with ablations where the options ask for them."""
        named = np.array(roles)
        shares = {role: float(self.costs[named == role].sum() / self.costs.sum()) for role in get_args(Role)}
        groups = tuple(
            UnitGroup(
                layer=unit.name,
                kind=unit.kind,
                roles=tuple(roles[part]),
                attribute=tuple(self.attribute[part].tolist()),
                utility=tuple(self.utility[part].tolist()),
                parameters=tuple(int(cost) for cost in self.costs[part]),
            )
            for unit, part in self._parts()
        )
        return UnitRoles(
            model=self.model.digest(),
            data=self.description,
            shares=shares,
            groups=groups,
            ablations=tuple(self._effects(roles)) if self.context.options.ablations else (),
        )

    def protection(self, roles: Sequence[Role]) -> Protection:
        """Return every place of the units that serve the attribute, in the layers that make and read them."""
        share = self.context.options.protected_mixed_share
        kept = np.array(roles) == "attribute"
        kept[most_mixed(roles, self.attribute, self.costs, share)] = True
        weights: dict[str, dict[int, ProtectedAxis]] = {}
        for unit, part in self._parts():
            atoms = np.flatnonzero(kept[part]).tolist()
            for place in stored_places(self.model.graph, unit) if atoms else ():
                axes = weights.setdefault(place.weight, {})
                places = {position for atom in atoms for position in place.positions[atom]}
                places |= set(axes[place.axis].kept) if place.axis in axes else set()
                if places:
                    axes[place.axis] = ProtectedAxis(length=place.length, kept=tuple(sorted(places)))
        return Protection(
            model=self.model.digest(),
            data=self.description,
            weights={name: each for name, each in weights.items() if each},
        )

    def _parts(self) -> Iterator[tuple[Unit, slice]]:
        start = 0
        for unit in self.units:
            yield unit, slice(start, start + unit.size)
            start += unit.size

    def _effects(self, roles: Sequence[Role]) -> Iterator[Effect]:
        context, named = self.context, np.array(roles)
        ablation = prepare(self.model.ir, self.units)
        open_keys = {unit.key for unit in ablation.units}
        if len(open_keys) < len(self.units):
            context.notes.remark(f"Ablations leave out {len(self.units) - len(open_keys)} layers that cannot be cut.")
        means = {name: (mean + self.statistics[1].mean[name]) / 2 for name, mean in self.statistics[0].mean.items()}
        tested: tuple[Role, ...] = ("attribute", "utility", "redundant")
        for role in context.progress.track(tested, "ablating", len(tested)):
            group = {
                unit.key: np.flatnonzero(named[part] == role).tolist()
                for unit, part in self._parts()
                if unit.key in open_keys and (named[part] == role).any()
            }
            if not group:
                continue
            tries = [group, *random_groups(group, ablation.units, context.options.ablations, context.seed)]
            moved = [self._moved(ablation.without(each, means)) for each in tries]
            yield Effect(
                role=role,
                units=sum(map(len, group.values())),
                attribute=moved[0][0],
                utility=moved[0][1],
                random_attribute=tuple(each[0] for each in moved[1:]),
                random_utility=tuple(each[1] for each in moved[1:]),
            )

    def _moved(self, other: ir.Model) -> tuple[float, float]:
        """Return how far the outputs of another graph lie from the dense ones, on attribute and utility."""
        options = self.context.options
        moved = partial(divergence, self.model.ir, other, batch_size=options.batch_size, threads=self.context.threads)
        return moved(self.held_out.attribute), moved(self.held_out.utility)


def _units(model: Model, options: AnalyseUnitsOptions, notes: Notes) -> tuple[Unit, ...]:
    """Return the units, none within another."""
    return tuple(unit for unit in find_units(model.ir, notes) if unit.kind in options.kinds and unit.nesting is None)


def _remarks(found: UnitRoles, roles: Sequence[Role]) -> Iterator[str]:
    parts = ", ".join(
        f"{role} {sum(each == role for each in roles)} ({share:.1%} of parameters)"
        for role, share in found.shares.items()
    )
    yield f"Of {len(roles)} units: {parts}."
    for effect in found.ablations:
        yield _tested(effect)
    if not found.ablations:
        yield "Roles were not tested; set ablations to hold them against random groups."


def _tested(effect: Effect) -> str:
    words = [
        f"the {name}'s outputs by {value:.2%} (random groups {min(spread):.2%} to {max(spread):.2%})"
        for name, value, spread in (
            ("attribute", effect.attribute, effect.random_attribute),
            ("utility", effect.utility, effect.random_utility),
        )
    ]
    verdict = "so the role counts" if effect.counts else "within what random groups do, so the role does not count"
    return f"Removing {effect.units} {effect.role} units moves {' and '.join(words)}: {verdict}."
