"""The run's side of an isolated step: starts its process, answers it, and says how it ended."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Condition, PluginError, StepError
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.places import home_of
from edgesmith.host.records import MethodRecord, TargetRecord
from edgesmith.host.rules import rule_fault
from edgesmith.host.step import StepResult, author_of
from edgesmith.host.verdict import Verdict
from edgesmith.isolation import faults
from edgesmith.isolation.channel import Channel
from edgesmith.isolation.endings import describe_ending
from edgesmith.isolation.folder import AFTER_DIRECTORY, BEFORE_DIRECTORY, SOURCE_DIRECTORY
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.overheard import Transcript
from edgesmith.isolation.request import StepRequest, Work, pack_dialect
from edgesmith.isolation.services import Services
from edgesmith.isolation.starting import start_child
from edgesmith.isolation.watchdog import Watchdog
from edgesmith.model import Model

if TYPE_CHECKING:
    from edgesmith.host.records import LintRecord, MetricRecord, Record
    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work of a plugin for a process of its own."""

    registry: "Registry"
    record: "Record"
    work: Work
    author: str
    """How errors name whose work it is."""
    isolation: Isolation
    directory: str = ""
    """What a target builds into."""


def check_isolated(
    registry: "Registry", record: MethodRecord, model: Model, context: Context[Any], isolation: Isolation
) -> Verdict:
    """Return whether a method applies to `model`, asked in a process of its own.

    Raises:
        StepError: The process ended without an answer.
        PluginError: The method's class cannot be loaded.
    """
    job = Job(registry, record, "check", author_of(registry, record, context.options), isolation)
    return verdict_in(run_isolated(job, model, context)[0])


def perform_isolated(
    registry: "Registry", record: MethodRecord, model: Model, context: Context[Any], isolation: Isolation
) -> StepResult:
    """Check and apply one method in a process of its own; see `edgesmith.host.step.perform`.

    Raises:
        StepError: The method crashed, broke a promise, took too long or too much memory, or ended its process.
        PluginError: The method's class cannot be loaded.
    """
    job = Job(registry, record, "apply", author_of(registry, record, context.options), isolation)
    done, after = run_isolated(job, model, context)
    note(done, context)
    return StepResult(after or model, verdict_in(done), done["seconds"], context.notes, done["relative_error"])


def ask_rule_isolated(
    registry: "Registry", record: "LintRecord", model: Model, dialect: Dialect, isolation: Isolation
) -> tuple[Finding, ...]:
    """Return what a rule finds in a process of its own, or how it failed; see `edgesmith.host.rules.ask_rule`."""
    job = Job(registry, record, "lint", f"lint {record.name}", isolation)
    with TemporaryDirectory(prefix="edgesmith-") as scratch:
        try:
            done, _ = run_isolated(job, model, Context(None, dialect, Path(scratch)))
        except StepError as error:
            return (rule_fault(registry, record, error.what.removeprefix(f"{job.author}: ")),)
    return tuple(Finding(one["hazard"], one["fix"], tuple(one["nodes"]), one["is_note"]) for one in done["findings"])


def note(done: Mapping[str, Any], context: Context[Any]) -> None:
    """Add the notes of an answer to those of the run."""
    context.notes.remarks.extend(done["notes"]["remarks"])
    context.notes.skipped.update(done["notes"]["skipped"])
    context.notes.missed.extend(done["notes"]["missed"])


def verdict_in(done: Mapping[str, Any]) -> Verdict:
    """Return the verdict in an answer."""
    parts = done["verdict"]
    return Verdict(parts["status"], parts["reason"], tuple(parts["nodes"]))


def run_isolated(job: Job, model: Model | None, context: Context[Any]) -> tuple[Mapping[str, Any], Model | None]:
    """Return what the process said, and the model that it made, if any.

    Raises:
        StepError: The process ended without an answer.
        EdgesmithError: What the work was refused with.
    """
    with TemporaryDirectory(prefix="isolated-", dir=context.scratch) as name:
        folder = Path(name)
        services = Services(context, folder)
        _write_request(job, context, services, folder)
        if model is not None:
            model.save(folder / BEFORE_DIRECTORY)
        if context.source is not None:
            context.source.save(folder / SOURCE_DIRECTORY)
        process, ours = start_child("edgesmith.isolation.child", folder)
        channel = Channel(ours, takes_arrays=False)
        try:
            with process.stdin, Watchdog(process, job.isolation, channel.hang_up) as watchdog:  # type: ignore[union-attr]
                done = services.serve(channel, watchdog)
                if done is None:
                    watchdog.await_end()
        finally:
            services.close()
            channel.close()
            Transcript(folder).log_again()
        if done is None:
            raise _ended(job, watchdog, folder)
        if "error" in done:
            raise faults.from_json(done["error"])
        # Weights are mapped by now, and stay so when the folder is gone.
        return done, Model.load(folder / AFTER_DIRECTORY) if (folder / AFTER_DIRECTORY).is_dir() else None


def _write_request(job: Job, context: Context[Any], services: Services, folder: Path) -> None:
    registry, record = job.registry, job.record
    metric = _metric_of(registry, context)
    dialect, dialect_type = pack_dialect(context.dialect)
    plugins = [registry.plugin_of(one) for one in (record, metric) if one is not None]
    # A target in a file of its own has its class there, and such a module cannot be imported by name.
    plugins += [one for one in registry.plugins if one.module.__name__ == dialect_type.partition(":")[0]]
    scratch = folder / "scratch"
    scratch.mkdir()
    StepRequest(
        import_path=tuple(sys.path),
        plugins=tuple(dict.fromkeys(PluginOrigin.of(plugin) for plugin in plugins)),
        work=job.work,
        record=_name_of(registry, record),
        directory=job.directory,
        options={} if context.options is None else _given_options(context),
        dialect=dialect,
        dialect_type=dialect_type,
        scratch=str(scratch),
        checkpoint=None if context.checkpoint is None else str(context.checkpoint),
        seed=context.seed,
        threads=context.threads,
        calibration=services.offer(context.calibration),
        source_calibration=services.offer(context.source_calibration),
        has_trial=context.trial is not None,
        metric=None if metric is None else registry.qualified_name(metric),
    ).write(folder)


def _given_options(context: Context[Any]) -> dict[str, Any]:
    given: dict[str, Any] = context.options.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return given


def _name_of(registry: "Registry", record: "Record") -> str:
    """Return how the process finds the record; a user's profile is read again."""
    if isinstance(record, TargetRecord) and record.extends:
        return record.profile
    return registry.qualified_name(record)


def _metric_of(registry: "Registry", context: Context[Any]) -> "MetricRecord | None":
    """Return the record of the metric that the run is judged by."""
    scoring = context.scoring
    if scoring is None:
        return None
    # What makes contained metrics says of what kind they are.
    made = getattr(scoring.make, "kind", scoring.make)
    for record in registry.metrics():
        if record.name == scoring.name and registry.load(record) is made:
            return record
    raise PluginError(
        f"the metric {scoring.name!r} is of no plugin",
        expected="a metric that a plugin registers",
        why="An isolated step makes the metric again in its own process.",
        fix="Register the metric, or run without isolation.",
    )


def _ended(job: Job, watchdog: Watchdog, folder: Path) -> StepError:
    """Return the error for a process that ended without an answer."""
    home = home_of(job.registry.plugin_of(job.record).module.__name__)
    return StepError(
        f"{job.author}: {describe_ending(watchdog, 'the step', folder, home)}",
        expected=f"a step that ends within {job.isolation.time_limit_seconds:g} s, in {watchdog.memory_mib} MiB of "
        "memory, and leaves its process alone",
        why="The step has no result. The model before it is intact, and a corrected run resumes there.",
        fix="Raise --time-limit-seconds or --memory-limit-mib if the step needs more. Otherwise remove the step, or "
        "report it to the author of the plugin.",
    ).broke(Condition.NO_CRASH)
