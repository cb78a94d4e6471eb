"""The search of mixed precision: measure formats, groups and whole assignments; keep the best within the budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgesmith.errors import EdgesmithError
from edgesmith.progress import Progress
from edgesmith.serialization import weight_bytes
from edgesmith_quantization.arithmetic.weight_bits import WeightBits
from edgesmith_quantization.search.allocation import Allocation, Choice, allocate, frontier
from edgesmith_quantization.search.attempts import (
    FLOAT,
    Attempt,
    Limits,
    Objective,
    choose,
    clearly_faster,
    clearly_slower,
    dominated,
)
from edgesmith_quantization.search.formats import FORMATS
from edgesmith_quantization.search.layer_groups import LayerGroup
from edgesmith_quantization.search.output_probe import OutputProbe, Quality
from edgesmith_quantization.search.sensitivity import Deadline, Sensitivities, Writer, measure_sensitivities

if TYPE_CHECKING:
    from edgesmith.host.trial import Trial
    from edgesmith.ledger import Measurement
    from edgesmith.model import Model

_SENSITIVITY_SHARE = 0.6
"""Share of the time left after the formats were tried, for measuring groups one by one."""
_TIMING_SHARE = 0.05
"""Share of the whole time for the rounds of one timed comparison."""
_LONGEST_TIMING_S = 30.0
_MOST_KINDS = 6
"""Kinds of layers whose gain is timed: the ones with the most operations."""
_QUICK_SAMPLES = 4
"""Ranges of variants that are only timed come from this many samples: speed does not depend on them."""
_BITS_ROUNDS = 3
"""How often an assignment is drawn up again because it takes more bits than its groups alone."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the search looks for."""

    limits: Limits
    objective: Objective
    seconds: float
    """Time that the search may take."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the search works with."""

    writer: Writer
    probe: OutputProbe
    """Measures whole assignments."""
    quick_probe: OutputProbe
    """Measures single groups: fewer samples."""
    trial: "Trial | None"
    """Times assignments; None where nothing is timed."""
    progress: Progress


@dataclass(frozen=True, slots=True)
class Finding:
    """What the search came to."""

    best: Attempt
    sensitivities: Sensitivities | None
    """None where no format was worth measuring group by group."""
    remarks: tuple[str, ...]
    """What was tried and left out, in sentences."""


class PrecisionSearch:
    """Runs the search once. Each step leaves its attempts as candidates, so the best found is always there."""

    def __init__(self, tools: Tools, goal: Goal) -> None:
        self._tools, self._goal = tools, goal
        self._deadline = Deadline.after(goal.seconds)
        self._model = tools.writer.model
        self._lowered_float = self._lower(self._model)
        self._bits = WeightBits.of(self._model.ir)
        self._remarks: list[str] = []

    def run(self, groups: Sequence[LayerGroup], formats: Sequence[str]) -> Finding:
        """Return the best assignment found within the time.

        Args:
            groups: What gets one format each.
            formats: Names of the formats to choose from.
        """
        uniform = self._try_formats(tuple(groups), formats)
        kept = self._worth_measuring(uniform)
        candidates = [self._all_float(tuple(groups)), *uniform.values()]
        sensitivities = None
        if kept and self._deadline.left_s > 0 and not self._settled([uniform[name] for name in kept]):
            until = Deadline.after(self._deadline.left_s * _SENSITIVITY_SHARE)
            tools = self._tools
            sensitivities = measure_sensitivities(groups, kept, tools.writer, tools.quick_probe, until, tools.progress)
            if not sensitivities.complete:
                self._remark("There was no time to measure every group; those not measured stay in float.")
            found = self._search(sensitivities, {name: uniform[name].speedup for name in kept})
            candidates += [found] if found is not None else []
        best = self._without_losing_kinds(self._best(candidates))
        best = self._refined(self._with_small_tables(best, formats))
        return Finding(best, sensitivities, tuple(self._remarks))

    def _all_float(self, groups: tuple[LayerGroup, ...]) -> Attempt:
        drop = None if self._tools.probe.reference_metric is None else 0.0
        bits = self._bits.per_weight(self._model.ir)
        quality = Quality(float("inf"), drop)
        return Attempt(groups, (FLOAT,) * len(groups), self._model, self._lowered_float, quality, bits)

    def _try_formats(self, groups: tuple[LayerGroup, ...], formats: Sequence[str]) -> dict[str, Attempt]:
        """Return each format on everything that takes it, measured and timed."""
        found: dict[str, Attempt] = {}
        for name in self._tools.progress.track(formats, "trying formats", len(formats)):
            if found and self._deadline.left_s <= 0:
                self._remark(f"There was no time to try {name}.")
                continue
            picks = tuple(name if self._tools.writer.nodes(group, name) else FLOAT for group in groups)
            attempt = self._attempt(groups, picks)
            if attempt is not None:
                found[name] = attempt
        timed = dict(zip(found, self._timed(list(found.values())), strict=True))
        for name, attempt in timed.items():
            self._remark(f"Everything in {name}: {attempt.summary}.")
        return timed

    def _worth_measuring(self, uniform: Mapping[str, Attempt]) -> list[str]:
        """Return the formats that no other one beats in everything, and that pay if speed is what counts."""
        by_bits = self._goal.limits.max_bits_per_weight is not None
        objective: Objective = "size" if by_bits else self._goal.objective
        kept = []
        for name, attempt in uniform.items():
            better = [other for other, one in uniform.items() if other != name and dominated(attempt, one, objective)]
            if better:
                self._remark(f"{name} was not tried group by group, since {better[0]} beats it.")
            elif objective == "latency" and clearly_slower(attempt.speedup):
                self._remark(f"{name} was not tried group by group, since it is slower than float here.")
            else:
                kept.append(name)
        return kept

    def _settled(self, uniform: Sequence[Attempt]) -> bool:
        """Return whether a format alone keeps the budget and no other one is cheaper, so that no mixture can be."""
        if self._goal.limits.max_bits_per_weight is not None:
            return False
        cheapest = choose(uniform, Limits(), self._goal.objective)
        if self._goal.limits.shortfall(cheapest) > 0:
            return False
        self._remark("Single groups were not measured: the cheapest format keeps the budget everywhere.")
        return True

    def _search(self, found: Sensitivities, speedups: "Mapping[str, Measurement | None]") -> Attempt | None:
        limit = self._goal.limits.max_bits_per_weight
        return self._within_bits(found, limit) if limit is not None else self._cheapest(found, speedups)

    def _cheapest(self, found: Sensitivities, speedups: "Mapping[str, Measurement | None]") -> Attempt | None:
        """Return the last assignment of the frontier from float to the cheapest that keeps the budget.

        The frontier ranks assignments by measured sensitivities. Errors of groups do not add up exactly, so whole
        assignments are measured, by bisection.
        """
        names = [(FLOAT, *each) for each in found.measured]
        costs = self._costs(found, speedups)
        points = frontier(
            [
                [Choice(costs[index].get(name, 0.0), _noise(found, index, name)) for name in options]
                for index, options in enumerate(names)
            ]
        )
        best, low, high, index = None, 0, len(points), len(points) - 1
        while high - low > 1 and self._deadline.left_s > 0:
            attempt = self._attempt(found.groups, _picks(names, points[index]))
            if attempt is not None and self._goal.limits.shortfall(attempt) == 0:
                best, low = attempt, index
            else:
                high = index
            index = (low + high) // 2
        return best

    def _costs(self, found: Sensitivities, speedups: "Mapping[str, Measurement | None]") -> list[dict[str, float]]:
        """Return what each group in each format costs against float: time, or bytes where time is not the objective.

        Time is a share of the float model's. It was measured for whole models in one format, and is laid to a group
        by its share of all operations; the assignments that follow from it are timed again. Where formats are equally
        fast as far as can be measured, a thousandth of the size decides.
        """
        start, macs = weight_bytes(self._model.ir), max(sum(group.macs for group in found.groups), 1)
        costs = []
        for group, measured in zip(found.groups, found.measured, strict=True):
            sizes = {name: (one.stored_bytes - start) / start for name, one in measured.items()}
            if self._goal.objective == "latency" and all(speedups.get(name) is not None for name in measured):
                times = {name: group.macs / macs * _time_change(speedups[name]) for name in measured}
                sizes = {name: times[name] + 1e-3 * size for name, size in sizes.items()}
            costs.append(sizes)
        return costs

    def _within_bits(self, found: Sensitivities, limit: float) -> Attempt | None:
        """Return the assignment of least noise within the bits, drawn up again while the whole takes more."""
        names = [(FLOAT, *each) for each in found.measured]
        start = weight_bytes(self._model.ir)
        choices = [
            [Choice(_noise(found, index, name), _bytes(found, index, name, start) - start) for name in options]
            for index, options in enumerate(names)
        ]
        capacity, attempt = self._bits.to_bytes(limit) - start, None
        for _ in range(_BITS_ROUNDS):
            allocation = allocate(choices, capacity)
            if allocation is None:
                self._remark(f"No assignment reaches {limit:g} bits per weight; the smallest was taken.")
            attempt = self._attempt(found.groups, _picks(names, allocation or frontier(choices)[0])) or attempt
            if allocation is None or attempt is None or attempt.bits_per_weight <= limit or self._deadline.left_s < 0:
                break
            capacity -= self._bits.to_bytes(attempt.bits_per_weight) - self._bits.to_bytes(limit)
        return attempt

    def _best(self, candidates: Sequence[Attempt]) -> Attempt:
        """Return the best candidate, with those within budget timed in one comparison."""
        limits = self._goal.limits
        nearest = min(limits.shortfall(one) for one in candidates)
        finalists = [one for one in candidates if limits.shortfall(one) == nearest]
        return choose(self._timed(finalists), limits, self._goal.objective)

    def _without_losing_kinds(self, best: Attempt) -> Attempt:
        """Return `best` with those kinds of layers back in float without which it is clearly faster, if it is."""
        kinds = best.largest_kinds(_MOST_KINDS)
        if best.speedup is None or self._goal.objective != "latency" or not kinds or self._deadline.left_s <= 0:
            return best
        quick = self._tools.writer.with_samples(_QUICK_SAMPLES)
        without: dict[str, Model] = {}
        for kind in kinds:
            if self._deadline.left_s <= 0:
                break
            try:
                without[kind] = self._lower(quick.write(best.groups, best.picks_without({kind})))
            except EdgesmithError as error:
                self._remark(f"Whether {kind} pays was not timed: {error.what}.")
        speedups = self._speedups(list(without.values()), best.lowered)
        losing = {kind for kind, speedup in zip(without, speedups, strict=True) if clearly_faster(speedup)}
        if not losing:
            return best
        found = self._attempt(best.groups, best.picks_without(losing))
        if found is None or self._goal.limits.shortfall(found) > self._goal.limits.shortfall(best):
            return best
        timed_best, timed = self._timed([best, found])
        if timed.speedup is None or timed_best.speedup is None or timed.speedup.value <= timed_best.speedup.value:
            return best
        self._remark(f"Back in float, since the model is faster so: {', '.join(sorted(losing))}.")
        return timed

    def _with_small_tables(self, best: Attempt, formats: Sequence[str]) -> Attempt:
        """Return `best` with groups that multiply nothing stored smaller, where it is as fast and keeps the budget.

        Speed says nothing about them, so a format that is slow for products may be right for embedding tables.
        """
        limits, objective = self._goal.limits, self._goal.objective
        if objective != "latency" or limits.max_bits_per_weight is not None:
            return best
        candidates = [best]
        for name in formats:
            picks = tuple(
                name if pick == FLOAT and group.macs == 0 and self._tools.writer.nodes(group, name) else pick
                for group, pick in zip(best.groups, best.picks, strict=True)
            )
            found = self._attempt(best.groups, picks) if picks != best.picks and self._deadline.left_s > 0 else None
            if found is not None and limits.shortfall(found) <= limits.shortfall(best):
                candidates.append(found)
        return choose(self._timed(candidates), limits, objective) if len(candidates) > 1 else best

    def _refined(self, best: Attempt) -> Attempt:
        """Return `best` written the slow and better way, where its formats have one and it is better indeed."""
        if self._deadline.left_s <= 0 or not any(each.refined for each in FORMATS if each.name in best.picks):
            return best
        found = self._attempt(best.groups, best.picks, refine=True)
        limits = self._goal.limits
        if found is None or (limits.shortfall(found), found.quality.noise) >= (
            limits.shortfall(best),
            best.quality.noise,
        ):
            return best
        self._remark(f"Rounded again by second order: {best.quality.sqnr_db:.1f} dB before.")
        return replace(found, speedup=best.speedup)

    def _attempt(
        self, groups: tuple[LayerGroup, ...], picks: tuple[str, ...], *, refine: bool = False
    ) -> Attempt | None:
        """Return an assignment written, lowered and measured; None where a method or the target fails on it."""
        try:
            model = self._tools.writer.write(groups, picks, refine=refine)
            lowered = self._lower(model)
            quality = self._tools.probe.measure(lowered.ir)
        except EdgesmithError as error:
            self._remark(f"An assignment was given up: {error.what}.")
            return None
        return Attempt(groups, picks, model, lowered, quality, self._bits.per_weight(model.ir))

    def _lower(self, model: "Model") -> "Model":
        return model if self._tools.trial is None else self._tools.trial.lower(model)

    def _timed(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return the attempts with their speed-ups over float from one comparison, where there is a trial."""
        speedups = self._speedups([one.lowered for one in attempts], self._lowered_float)
        return [replace(one, speedup=speedup) for one, speedup in zip(attempts, speedups, strict=True)]

    def _speedups(self, models: "Sequence[Model]", baseline: "Model") -> "Sequence[Measurement | None]":
        trial = self._tools.trial
        if trial is None or not trial.measures_latency or not models:
            return (None,) * len(models)
        seconds = min(_LONGEST_TIMING_S, _TIMING_SHARE * self._goal.seconds)
        return trial.speedups(models, baseline, max_seconds=seconds)

    def _remark(self, text: str) -> None:
        self._remarks.append(text)


def _picks(names: Sequence[Sequence[str]], allocation: Allocation) -> tuple[str, ...]:
    return tuple(options[pick] for options, pick in zip(names, allocation.picks, strict=True))


def _noise(found: Sensitivities, index: int, name: str) -> float:
    return 0.0 if name == FLOAT else found.measured[index][name].quality.noise


def _bytes(found: Sensitivities, index: int, name: str, start: int) -> int:
    return start if name == FLOAT else found.measured[index][name].stored_bytes


def _time_change(speedup: "Measurement | None") -> float:
    """Return the change of time against float as a share of it; 0 where the quartiles cannot tell the two apart."""
    if speedup is None or not (clearly_faster(speedup) or clearly_slower(speedup)):
        return 0.0
    return 1 / speedup.value - 1
