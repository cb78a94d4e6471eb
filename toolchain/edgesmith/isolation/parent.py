"""The run's side of an isolated step: starts its process, answers it, and says how it ended."""

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.errors import PluginError, StepError
from edgesmith.host.context import Context, Notes
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.places import home_of
from edgesmith.host.records import MethodRecord
from edgesmith.host.step import StepResult, author_of
from edgesmith.host.verdict import Verdict
from edgesmith.isolation import faults
from edgesmith.isolation.channel import Channel
from edgesmith.isolation.endings import manner
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.request import (
    AFTER_DIRECTORY,
    BEFORE_DIRECTORY,
    SOURCE_DIRECTORY,
    STACK_FILE,
    StepRequest,
    pack_dialect,
)
from edgesmith.isolation.services import Services
from edgesmith.isolation.stack import place_in
from edgesmith.isolation.watchdog import Watchdog
from edgesmith.model import Model

if TYPE_CHECKING:
    from edgesmith.host.records import MetricRecord
    from edgesmith.host.registry import Registry

_CHILD = (sys.executable, "-P", "-m", "edgesmith.isolation.child")


def check_isolated(
    registry: "Registry", record: MethodRecord, model: Model, context: Context[Any], isolation: Isolation
) -> Verdict:
    """Return whether a method applies to `model`, asked in a process of its own.

    Raises:
        StepError: The process ended without an answer.
        PluginError: The method's class cannot be loaded.
    """
    return _verdict(_run(registry, record, model, context, isolation, only_check=True)[0])


def perform_isolated(
    registry: "Registry", record: MethodRecord, model: Model, context: Context[Any], isolation: Isolation
) -> StepResult:
    """Check and apply one method in a process of its own; see `edgesmith.host.step.perform`.

    Raises:
        StepError: The method crashed, broke a promise, took too long or too much memory, or ended its process.
        PluginError: The method's class cannot be loaded.
    """
    done, after = _run(registry, record, model, context, isolation)
    notes: Notes = context.notes
    notes.remarks.extend(done["notes"]["remarks"])
    notes.skipped.update(done["notes"]["skipped"])
    return StepResult(after or model, _verdict(done), done["seconds"], notes, done["relative_error"])


def _run(
    registry: "Registry",
    record: MethodRecord,
    model: Model,
    context: Context[Any],
    isolation: Isolation,
    *,
    only_check: bool = False,
) -> tuple[Mapping[str, Any], Model | None]:
    """Return what the process said, and the model that it made, if any."""
    with TemporaryDirectory(prefix="isolated-", dir=context.scratch) as name:
        folder = Path(name)
        services = Services(context, folder)
        _write_request(registry, record, context, services, folder, only_check=only_check)
        model.save(folder / BEFORE_DIRECTORY)
        if context.source is not None:
            context.source.save(folder / SOURCE_DIRECTORY)
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*_CHILD, str(theirs.fileno()), name],
                pass_fds=(theirs.fileno(),),
                # Nothing is written to it: it is closed when the run ends, however that happens.
                stdin=subprocess.PIPE,
                # What a plugin prints must not mix with what the command line prints as JSON.
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL,
                start_new_session=True,
            )
        channel = Channel(ours, takes_arrays=False)
        try:
            with process.stdin, Watchdog(process, isolation, channel.hang_up) as watchdog:  # type: ignore[union-attr]
                done = services.serve(channel, watchdog)
                if done is None:
                    watchdog.await_end()
        finally:
            services.close()
            channel.close()
        if done is None:
            home = home_of(registry.plugin_of(record).module.__name__)
            raise _ended(author_of(registry, record, context.options), process, watchdog, isolation, folder, home)
        if "error" in done:
            raise faults.from_json(done["error"])
        # Weights are mapped by now, and stay so when the folder is gone.
        return done, Model.load(folder / AFTER_DIRECTORY) if (folder / AFTER_DIRECTORY).is_dir() else None


def _write_request(
    registry: "Registry",
    record: MethodRecord,
    context: Context[Any],
    services: Services,
    folder: Path,
    *,
    only_check: bool,
) -> None:
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
        method=registry.qualified_name(record),
        only_check=only_check,
        options=context.options.model_dump(mode="json", by_alias=True, exclude_unset=True),
        dialect=dialect,
        dialect_type=dialect_type,
        scratch=str(scratch),
        checkpoint=None if context.checkpoint is None else str(context.checkpoint),
        seed=context.seed,
        threads=context.threads,
        calibration=services.offer(context.calibration),
        measures_latency=None if context.trial is None else context.trial.measures_latency,
        metric=None if metric is None else registry.qualified_name(metric),
    ).write(folder)


def _metric_of(registry: "Registry", context: Context[Any]) -> "MetricRecord | None":
    """Return the record of the metric that the run is judged by."""
    scoring = context.scoring
    if scoring is None:
        return None
    for record in registry.metrics():
        if record.name == scoring.name and registry.load(record) is scoring.make:
            return record
    raise PluginError(
        f"the metric {scoring.name!r} is of no plugin",
        expected="a metric that a plugin registers",
        why="An isolated step makes the metric again in its own process.",
        fix="Register the metric, or run without isolation.",
    )


def _verdict(done: Mapping[str, Any]) -> Verdict:
    parts = done["verdict"]
    return Verdict(parts["status"], parts["reason"], tuple(parts["nodes"]))


def _ended(
    author: str,
    process: "subprocess.Popen[bytes]",
    watchdog: Watchdog,
    isolation: Isolation,
    folder: Path,
    home: Sequence[str],
) -> StepError:
    """Return the error for a process that ended without an answer."""
    how = watchdog.reason or manner(process.returncode, "the step")
    return StepError(
        f"{author}: {how}{place_in(folder / STACK_FILE, home)}",
        expected=f"a step that ends within {isolation.time_limit_seconds:g} s, in {watchdog.memory_mib} MiB of memory, "
        "and leaves its process alone",
        why="The step has no result. The model before it is intact, and a corrected run resumes there.",
        fix="Raise --time-limit-seconds or --memory-limit-mib if the step needs more. Otherwise remove the step, or "
        "report it to the author of the plugin.",
    )
