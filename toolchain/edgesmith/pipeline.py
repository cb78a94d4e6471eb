"""The pipeline: from a source through the steps of a plan to a lowered model, each cached, checked and measured."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.budget import conclude, reason_to_undo, untimed_gain
from edgesmith.data import fitted
from edgesmith.errors import ConnectionLostError, DeviceError, RejectedModelError, StepError, TargetError
from edgesmith.graph.cost import count_cost
from edgesmith.host.building import build_files, require_accepted
from edgesmith.host.context import Context, Notes
from edgesmith.host.lint import run_lints
from edgesmith.host.options import hash_named_files
from edgesmith.host.records import Kind
from edgesmith.host.step import run_lowering, run_step
from edgesmith.host.sudden_ends import noted
from edgesmith.host.trial import Scoring
from edgesmith.isolation.limits import Isolation
from edgesmith.ledger import Ledger, LedgerRow
from edgesmith.measure.machine import describe_machine, library_versions
from edgesmith.model import Model
from edgesmith.plan import Plan, PlannedStep, unique_labels
from edgesmith.progress import Progress
from edgesmith.stage import Stage, StageMeter, Yardstick
from edgesmith.store import Store, make_key
from edgesmith.trial import RunnerTrial

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry
    from edgesmith_calibration.sources import DataSource

SOURCE_LABEL = "source"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a run works with, besides the plan."""

    registry: "Registry"
    store: Store
    progress: Progress
    threads: int
    isolation: Isolation | None = None
    """Limits of the processes that steps run in; None runs them in this one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run produced."""

    model: Model
    """The lowered model."""
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class _Change:
    """A model that a step produced, with what the ledger says about the step."""

    model: Model
    row: LedgerRow


def run_plan(
    plan: Plan, source: Model, calibration: "DataSource | None", yardstick: Yardstick, workshop: Workshop
) -> Outcome:
    """Run every step of `plan` on `source`, lower the result, and return it with its ledger.

    Steps and measurements that the store holds are not computed again, so a run that was killed resumes where it
    stopped. With `keep: if-pays` a step that does not pay is undone and stays in the ledger with the reason. A step and
    the recovery right behind it are judged as one, since the one is bought for what the other gives back.

    Raises:
        StepError: A method refused, failed, or broke a promise.
        TargetError: The target does not take the result.
    """
    meter = StageMeter(yardstick, workshop.store, workshop.progress)
    lowering = f"lower to {plan.target_record.name}"
    # Lowering only proves that outputs stay equal, so inputs of the evaluation will do where none are to calibrate on.
    samples = calibration or yardstick.evaluation
    first = _build_stage(plan, SOURCE_LABEL, source, workshop)
    source_row = _row(0, SOURCE_LABEL, source, yardstick).model_copy(update={"remarks": source.provenance.remarks})
    entries = [_Entry(meter.measure(source_row, first, None, first), first)]
    judge = _Judge(plan, meter, workshop, samples, first, yardstick)
    current = judged = first
    labels = unique_labels([step.label for step in plan.steps], reserved=(SOURCE_LABEL, lowering))
    for index, (step, label) in enumerate(zip(plan.steps, labels, strict=True), start=1):
        base = _row(index, label, current.model, yardstick).model_copy(update=_origin(step))
        change = _apply(plan, step, current.model, source, calibration, yardstick, workshop, base)
        if change.row.status == "skipped":
            entries.append(_Entry(change.row))
        else:
            stage = _build_stage(plan, label, change.model, workshop)
            row = meter.measure(_with_cost(change.row, change.model, yardstick), stage, current, first)
            entries.append(_Entry(row, stage, current))
            current = stage
        recovers_next = index < len(plan.steps) and plan.steps[index].record.kind is Kind.RECOVER
        if plan.recipe.keep == "if-pays" and current is not judged and not recovers_next:
            current = judged = _settle(judge, entries, judged, current)
    row = LedgerRow(index=len(entries), stage=lowering, distribution=plan.target_distribution)
    lowered = _lower(plan, row, current.model, samples, workshop)
    stage = _build_stage(plan, lowering, lowered.model, workshop)
    rules = run_lints(
        workshop.registry, plan.target_record, lowered.model, plan.target.dialect, isolation=workshop.isolation
    )
    found = map(str, rules)
    row = _with_cost(lowered.row, lowered.model, yardstick)
    row = row.model_copy(update={"remarks": (*row.remarks, *found)})
    entries.append(_Entry(meter.measure(row, stage, current, first), stage, current))
    rows = _timed(meter, entries, judge.timed_form)
    return Outcome(lowered.model, _ledger(plan, source, rows, calibration, yardstick, workshop))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row on its way into the ledger, with its stage and the one before, if there are any."""

    row: LedgerRow
    stage: Stage | None = None
    before: Stage | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the stage exists and was not undone."""
        return self.stage is not None and self.row.status == "ok"


@dataclass(frozen=True, slots=True)
class _Judge:
    """Decides whether a step pays by what would ship: both stages lowered, and timed together with the source."""

    plan: Plan
    meter: StageMeter
    workshop: Workshop
    samples: "DataSource"
    source: Stage
    yardstick: Yardstick

    def judge(self, before: Stage, after: Stage) -> tuple[str, str, tuple[str, ...]]:
        """Return why the step from `before` to `after` does not pay, and what is not known of one that does.

        The third is what is to be known of the times that decided.
        """
        old, new = self._lowered(before), self._lowered(after)
        stages = ((self.source, None), (old, self.source), (new, old))
        rows = [
            self.meter.measure(LedgerRow(index=index, stage=stage.label), stage, earlier, self.source)
            for index, (stage, earlier) in enumerate(stages)
        ]
        source = self.timed_form(self.source)
        forms = ((source, None), (old, source), (new, old))
        try:
            timed = self.meter.time([(row, *pair) for row, pair in zip(rows, forms, strict=True)])
        except RejectedModelError as error:
            # Such as a worker that was killed with all of them loaded.
            return error.what, "", ()
        higher = self.yardstick.metric_record.higher_is_better
        reason = timed[2].untimed or reason_to_undo(
            timed[2], timed[1], timed[0], self.plan.recipe.budget, higher_is_better=higher
        )
        return reason, "" if reason else untimed_gain(timed[2], timed[1]), timed[0].remarks

    def timed_form(self, stage: Stage) -> Stage:
        """Return a stage as the clock takes it: as it was built, or lowered."""
        return self._lowered(stage) if self.yardstick.clock.times_lowered else stage

    def _lowered(self, stage: Stage) -> Stage:
        row = LedgerRow(index=0, stage=f"{stage.label}, lowered")
        lowered = _lower(self.plan, row, stage.model, self.samples, self.workshop)
        return _build_stage(self.plan, row.stage, lowered.model, self.workshop)


def _settle(judge: _Judge, entries: list[_Entry], before: Stage, after: Stage) -> Stage:
    """Return the stage to go on from: `after`, or `before` if what led from there does not pay. Entries tell why."""
    reason, doubt, told = judge.judge(before, after)
    first = next(place for place, entry in enumerate(entries) if entry.stage is before) + 1
    places = [place for place in range(first, len(entries)) if entries[place].is_kept]
    for place in places:
        row = entries[place].row
        others = ", ".join(entries[other].row.stage for other in places if other != place)
        outcome = reason or doubt
        if outcome and others:
            outcome = f"judged together with {others}: {outcome}"
        update = {"status": "undone" if reason else row.status, "reason": outcome or row.reason}
        remarks = (*row.remarks, *told) if place == places[-1] else row.remarks
        entries[place] = replace(entries[place], row=row.model_copy(update={**update, "remarks": remarks}))
    return before if reason else after


def _timed(meter: StageMeter, entries: Sequence[_Entry], timed_form: Callable[[Stage], Stage]) -> tuple[LedgerRow, ...]:
    """Return all rows, those of stages with their times from one comparison.

    Args:
        meter: Times them.
        entries: The rows, of which the last is lowered already.
        timed_form: Returns a stage as the clock takes it.
    """
    rows = {entry.row.index: entry.row for entry in entries}
    forms: dict[str, Stage] = {}
    for entry in entries:
        if entry.stage is None:
            continue
        try:
            forms[entry.stage.label] = entry.stage if entry is entries[-1] else timed_form(entry.stage)
        except TargetError as error:
            rows[entry.row.index] = _untimed(entry.row, f"it cannot be lowered by itself: {error.what}")
    stages = [
        (rows[entry.row.index], forms[entry.stage.label], forms.get(entry.before.label) if entry.before else None)
        for entry in entries
        if entry.stage is not None and entry.stage.label in forms
    ]
    if entries[0].stage is not None and entries[0].stage.label in forms:
        rows |= {row.index: row for row in _times_of(meter, stages)}
    else:
        reason = "the source cannot be lowered by itself, and all are timed against it"
        rows |= {row.index: _untimed(row, reason) for row, _, _ in stages}
    first, *others = (rows[entry.row.index] for entry in entries)
    # What holds for all times is said once.
    kept = (tuple(remark for remark in row.remarks if remark not in first.remarks) for row in others)
    return first, *(row.model_copy(update={"remarks": remarks}) for row, remarks in zip(others, kept, strict=True))


def _times_of(meter: StageMeter, stages: Sequence[tuple[LedgerRow, Stage, Stage | None]]) -> Sequence[LedgerRow]:
    """Return the rows with their times, or with why a device that is there could not time them together."""
    try:
        return meter.time(stages)
    except ConnectionLostError:
        raise
    except DeviceError as error:
        # Such as a small one that runs out of memory: what was found until here is no less worth.
        return [_untimed(row, error.what) for row, _, _ in stages]


def _untimed(row: LedgerRow, reason: str) -> LedgerRow:
    return row.model_copy(update={"untimed": reason})


def _ledger(
    plan: Plan,
    source: Model,
    rows: tuple[LedgerRow, ...],
    calibration: "DataSource | None",
    yardstick: Yardstick,
    workshop: Workshop,
) -> Ledger:
    higher, chosen = yardstick.metric_record.higher_is_better, len(rows) - 1
    verdict = conclude(rows, chosen, plan.recipe.budget, higher_is_better=higher)
    if yardstick.clock.times_lowered and rows[chosen].speedup is not None:
        verdict += " The source was timed lowered, as the device can run it."
    return Ledger(
        source=source.provenance.source,
        target=plan.target_record.name,
        metric=yardstick.metric_record.name,
        metric_higher_is_better=higher,
        rows=rows,
        chosen=chosen,
        verdict=verdict,
        budget=plan.recipe.budget.model_dump(exclude_none=True),
        seed=plan.recipe.seed,
        threads=workshop.threads,
        data=_describe_data(calibration, yardstick),
        versions=library_versions(),
        machine=describe_machine(),
        device=yardstick.clock.facts,
        plugins=tuple(sorted({plugin.label for plugin in workshop.registry.plugins})),
    )


def _apply(
    plan: Plan,
    step: PlannedStep,
    model: Model,
    source: Model,
    calibration: "DataSource | None",
    yardstick: Yardstick,
    workshop: Workshop,
    row: LedgerRow,
) -> _Change:
    parts = {
        "kind": "step",
        "input": model.digest(),
        "source": source.digest(),
        "method": step.record.name,
        "method_version": step.record.version,
        "distribution": step.distribution,
        "options": step.options.model_dump(mode="json"),
        "named_files": hash_named_files(step.options),
        "dialect": _as_json(asdict(plan.target.dialect)),
        "data": calibration.fingerprint if calibration is not None else None,
        "scoring": f"{yardstick.metric_record.name} {yardstick.metric_record.version}",
        "seed": plan.recipe.seed,
        "threads": workshop.threads,
        "versions": library_versions(),
    }
    conditions = yardstick.clock.conditions(yardstick.inputs).as_mapping()
    timed = {"conditions": conditions, "measures_cost": yardstick.clock.measures_cost}

    def work(notes: Notes, scratch: Path, checkpoint: Path) -> tuple[Model, float, str]:
        samples = None if calibration is None else fitted(calibration, model)
        context = Context(
            options=step.options,
            dialect=plan.target.dialect,
            scratch=scratch,
            calibration=samples,
            seed=plan.recipe.seed,
            threads=workshop.threads,
            progress=workshop.progress,
            notes=notes,
            trial=_trial(plan, calibration, yardstick, workshop, scratch, notes),
            scoring=_scoring(yardstick),
            source=source.clone(),
            source_calibration=None if samples is calibration else calibration,
            checkpoint=checkpoint,
        )
        result = run_step(workshop.registry, step.record, model, context, index=row.index, isolation=workshop.isolation)
        if result.verdict.status == "refuse":
            raise StepError(
                f"Step {row.index} ({step.label}) refuses this model: {result.verdict.reason}",
                expected=f"a model that {step.distribution} can apply {step.label} to",
                why="A step that cannot do its work would be a silent gap in the artifact.",
                fix="Remove the step from the recipe, change its options, or see `edgesmith inspect`.",
            )
        skipped = result.verdict.reason if result.verdict.status == "skip" else ""
        return result.model, result.seconds, skipped

    # A step that times decided is another one on another device.
    keys = (make_key(parts), make_key(parts | timed))
    return _cached(keys, row, workshop, work, deterministic=step.record.deterministic)


def _trial(
    plan: Plan,
    calibration: "DataSource | None",
    yardstick: Yardstick,
    workshop: Workshop,
    scratch: Path,
    notes: Notes,
) -> RunnerTrial:
    """Return what a step may try."""
    context = Context(
        options=None,
        dialect=plan.target.dialect,
        scratch=scratch,
        calibration=calibration or yardstick.evaluation,
        seed=plan.recipe.seed,
        threads=workshop.threads,
        progress=workshop.progress,
        notes=notes,
    )
    return RunnerTrial(plan, yardstick.clock, yardstick.inputs, calibration, yardstick.latency_plan, context)


def _scoring(yardstick: Yardstick) -> Scoring:
    record = yardstick.metric_record
    return Scoring(record.name, yardstick.make_metric, record.higher_is_better, record.unit, record.needs_labels)


def _lower(plan: Plan, row: LedgerRow, model: Model, samples: "DataSource", workshop: Workshop) -> _Change:
    key = make_key(
        {
            "kind": "lower",
            "input": model.digest(),
            "target": plan.target_record.name,
            "target_version": plan.target_record.version,
            "distribution": plan.target_distribution,
            "data": samples.fingerprint,
            "seed": plan.recipe.seed,
            "threads": workshop.threads,
            "versions": library_versions(),
        }
    )

    def work(notes: Notes, scratch: Path, _: Path) -> tuple[Model, float, str]:
        context = Context(
            options=None,
            dialect=plan.target.dialect,
            scratch=scratch,
            calibration=fitted(samples, model),
            seed=plan.recipe.seed,
            threads=workshop.threads,
            progress=workshop.progress,
            notes=notes,
        )
        with noted_target(plan, workshop, "lowering"):
            result = run_lowering(plan.target_record, plan.target, model, context)
        return result.model, result.seconds, ""

    lowered = _cached((key, key), row, workshop, work)
    with noted_target(plan, workshop, "check"):
        require_accepted(plan.target_record, plan.target, lowered.model)
    return lowered


def _cached(
    keys: tuple[str, str],
    row: LedgerRow,
    workshop: Workshop,
    work: Callable[[Notes, Path, Path], tuple[Model, float, str]],
    *,
    deterministic: bool = True,
) -> _Change:
    """Return the stored change, or the result of `work`, stored under the second of `keys` where times decided it.

    What a method that is not deterministic made before is no answer to what it would make now.
    """
    found = workshop.store.model(keys[0]) or workshop.store.model(keys[1]) if deterministic else None
    cached = found is not None
    if found is None:
        notes = Notes()
        with workshop.store.unfinished(keys[0]) as checkpoint:
            with tempfile.TemporaryDirectory(prefix="edgesmith-") as scratch:
                model, seconds, skipped = work(notes, Path(scratch), checkpoint)
            facts = {
                "seconds": seconds,
                "remarks": notes.remarks,
                "skipped": notes.skipped,
                "missed": notes.missed,
                "reason": skipped,
            }
            found = workshop.store.keep_model(keys[notes.depends_on_times], model, facts)
    status = "skipped" if found.facts["reason"] else "ok"
    known = row.model_dump() | dict(found.facts) | {"status": status, "cached": cached}
    return _Change(found.model, LedgerRow.model_validate(known))


def _build_stage(plan: Plan, label: str, model: Model, workshop: Workshop) -> Stage:
    """Build the target's files for `model` in the store, or take those that are there."""
    key = make_key(
        {
            "kind": "build",
            "input": model.digest(),
            "target": plan.target_record.name,
            "target_version": plan.target_record.version,
            "distribution": plan.target_distribution,
            "versions": library_versions(),
        }
    )

    def write(directory: Path) -> dict[str, object]:
        with noted_target(plan, workshop, "building"):
            return {"entry": build_files(plan.target_record, plan.target, model, directory).entry}

    found = workshop.store.files("builds", key)
    if found is None:
        with workshop.progress.stage(f"building {label}"):
            found = workshop.store.keep_files("builds", key, write)
    return Stage(label, model, found.directory / found.facts["entry"], found.digest)


def noted_target(plan: Plan, workshop: Workshop, doing: str) -> AbstractContextManager[None]:
    """Leave a note while the target works in this process; see `edgesmith.host.sudden_ends`."""
    if workshop.isolation is not None:
        return nullcontext()
    record = plan.target_record
    author = f"target {record.name} {record.version} from {plan.target_distribution}"
    return noted(workshop.registry.plugin_of(record), f"the {doing} of {author}")


def _row(index: int, label: str, model: Model, yardstick: Yardstick) -> LedgerRow:
    return _with_cost(LedgerRow(index=index, stage=label), model, yardstick)


def _with_cost(row: LedgerRow, model: Model, yardstick: Yardstick) -> LedgerRow:
    cost = count_cost(model.ir, yardstick.dimensions(model))
    remarks = row.remarks
    if cost.unknown:
        remarks += (f"MACs leave out {len(cost.unknown)} nodes whose shapes are not known.",)
    return row.model_copy(update={"parameters": cost.parameters, "macs": cost.macs, "remarks": remarks})


def _origin(step: PlannedStep) -> dict[str, object]:
    return {
        "method": step.record.name,
        "distribution": step.distribution,
        "options": step.options.model_dump(mode="json"),
    }


def _describe_data(calibration: "DataSource | None", yardstick: Yardstick) -> dict[str, str]:
    roles = {"calibration": calibration, "evaluation": yardstick.evaluation}
    return {
        role: f"{_counted(data)}, sha256 {data.fingerprint[:16]}" for role, data in roles.items() if data is not None
    }


def _counted(data: "DataSource") -> str:
    """Return what the data is, with its length where that does not say it already, as "12 of 60 samples of" does."""
    known = data.description.startswith(f"{len(data)} of ")
    return data.description if known else f"{data.description}, {len(data)} samples"


def _as_json(data: Mapping[str, object]) -> dict[str, object]:
    """Return dataclass fields as JSON data; sets become sorted lists."""
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in data.items()}
