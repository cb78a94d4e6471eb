"""The conformance suite: what the host, recipes and users rely on, tried on a plugin before anybody uses it.

CHECKS = conformance(isolated_registry(my_plugin))

@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_it_conforms(check):
    result = check()
    assert result.status != "failed", result
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgesmith.errors import PluginError
from edgesmith.host.names import suggest
from edgesmith.host.records import LintRecord, MethodRecord, MetricRecord, Record, RunnerRecord, TargetRecord
from edgesmith.host.registry import WORDS, Registry
from edgesmith.isolation.limits import Isolation
from edgesmith.model import Model
from edgesmith.testing.conformance.bench import Bench, MethodBench
from edgesmith.testing.conformance.lints import LINT_CHECKS, LintBench
from edgesmith.testing.conformance.methods import METHOD_CHECKS
from edgesmith.testing.conformance.metrics import METRIC_CHECKS, MetricBench
from edgesmith.testing.conformance.records import record_is_complete, registering_is_light
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable
from edgesmith.testing.conformance.runners import RUNNER_CHECKS, RunnerBench
from edgesmith.testing.conformance.targets import TARGET_CHECKS, TargetBench
from edgesmith.testing.subject import loaded

__all__ = ["Check", "CheckResult", "conformance"]

Function = Callable[[Any], CheckResult]

_SUITES: Mapping[type[Record], tuple[type[Bench[Any]], tuple[Function, ...]]] = {
    MethodRecord: (MethodBench, METHOD_CHECKS),
    TargetRecord: (TargetBench, TARGET_CHECKS),
    MetricRecord: (MetricBench, METRIC_CHECKS),
    RunnerRecord: (RunnerBench, RUNNER_CHECKS),
    LintRecord: (LintBench, LINT_CHECKS),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one record; call it to run it."""

    kind: str
    """Type of the record: method, target, metric, runner, lint or frontend."""
    record: str
    """Name of the record."""
    name: str
    """What is asked for, in words."""
    bench: Bench[Any]
    function: Function

    def __str__(self) -> str:
        """Return the record and the check, as an id for pytest."""
        return f"{self.record}: {self.name}"

    @property
    def description(self) -> str:
        """One sentence that says what is asked for."""
        return next(iter((self.function.__doc__ or "").splitlines()), "")

    def __call__(self) -> CheckResult:
        """Run the check. A crash of the plugin in it is a failure that names the place."""
        try:
            obstacle = self.bench.obstacle if self.function not in _FOR_ALL else ""
            return not_applicable(obstacle) if obstacle else self.function(self.bench)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  contains faults of the plugin under test, which may do anything
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = next(iter(str(error).splitlines()), "")
            return failed(
                f"{type(error).__name__}: {text} at {Path(frame.filename).name}:{frame.lineno}",
                "Answer with a result, or raise a member of edgesmith.EdgesmithError with its four parts.",
            )


_FOR_ALL: tuple[Function, ...] = (record_is_complete, registering_is_light)


def conformance(
    registry: Registry,
    name: str | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    options: Mapping[str, object] | None = None,
    thorough: bool = True,
    isolation: Isolation | None = None,
) -> tuple[Check, ...]:
    """Return the checks of everything that `registry` brings, or of one record. Nothing runs until one is called.

    Args:
        registry: The plugins under test, from `isolated_registry`.
        name: Name of one record; None means all.
        models: Further models by name to try a method or target on, besides the tiny ones of every family.
        options: Options for every run of a method: those without a default, and those that make it quick.
        thorough: Repeat runs of a method on every graph it applies to, and not on the smallest and largest only.
        isolation: Limits of a process of its own for each call of a method; None makes all calls in this one.

    Raises:
        PluginError: A plugin does not load, or there is nothing to check: no test must pass for want of a case.
    """
    for broken in registry.tombstones:
        loaded(broken)
    checks = []
    for plugin in registry.plugins:
        for record in plugin.records:
            if name in (None, record.name):
                kind, own = _SUITES.get(type(record), (Bench, ()))
                bench: Bench[Any] = kind(registry, record, models, options, thorough=thorough)
                bench.isolation = isolation
                checks += [_check(record, bench, function) for function in (*_FOR_ALL, *own)]
    if not checks:
        known = [record.name for plugin in registry.plugins for record in plugin.records]
        raise PluginError(
            "there is nothing to check" if name is None else f"there is nothing named {name!r} to check",
            expected=f"the name of a record of the plugin: {', '.join(known) or 'it has none'}",
            why="A suite without checks passes whatever the plugin does.",
            fix=suggest(name, known) if name else "Register a method, target, metric, runner or lint.",
        )
    return tuple(checks)


def _check(record: Record, bench: Bench[Any], function: Function) -> Check:
    name = cast("Any", function).__name__.replace("_", " ")
    return Check(WORDS[type(record)], record.name, name, bench, function)
