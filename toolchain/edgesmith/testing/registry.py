"""Registries that hold only what a test names, and a way to run one method from them."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgesmith.host.candidate import REGISTER_HOOKS, Candidate
from edgesmith.host.context import Context
from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.loader import file_candidate
from edgesmith.host.plugin import Trace
from edgesmith.host.records import Record
from edgesmith.host.registry import Registry

if TYPE_CHECKING:
    from edgesmith.host.step import StepResult
    from edgesmith.isolation.limits import Isolation
    from edgesmith.model import Model
    from edgesmith_calibration.sources import DataSource


def isolated_registry(
    *plugins: str | Path | ModuleType,
    records: Sequence[Record] = (),
    distribution: str = "test-plugin",
    version: str = "1.0",
    trace: Trace | None = None,
) -> Registry:
    """Return a registry of the named plugins alone, loaded as the host loads them.

    Args:
        plugins: Plugin files or modules. A module counts as a distribution of its own name.
        records: Records to register besides, as if by a distribution.
        distribution: Name of that distribution.
        version: Its version.
        trace: Receives one line for each call into a plugin.
    """
    candidates = [_candidate(plugin, version) for plugin in plugins]
    if records:
        module = module_with(distribution, records)
        candidates.append(Candidate(distribution, version, distribution, lambda: module))
    return Registry([candidate.load(trace) for candidate in candidates], trace=trace)


def run_method(
    registry: Registry,
    name: str,
    model: "Model",
    options: Mapping[str, object] | None = None,
    *,
    calibration: "DataSource | None" = None,
    seed: int = 0,
    isolation: "Isolation | None" = None,
) -> "StepResult":
    """Run one method as the pipeline does, with every check of the host, for the dialect of `fake_dialect`.

    Args:
        registry: Where the method comes from.
        name: Its name.
        model: What it is applied to; it is also the model that the run started from.
        options: As a recipe has them.
        calibration: Samples, for methods that need some.
        seed: Seed of the run.

    Raises:
        EdgesmithError: As `edgesmith.host.step.run_step`.
    """
    from edgesmith.host.step import run_step
    from edgesmith.testing.fakes import fake_dialect

    record = registry.method(name)
    validated = registry.validate_options(record, options or {})
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as scratch:
        context = Context(validated, fake_dialect(), Path(scratch), calibration=calibration, seed=seed, source=model)
        return run_step(registry, record, model, context, isolation=isolation)


def _candidate(plugin: str | Path | ModuleType, version: str) -> Candidate:
    if isinstance(plugin, ModuleType):
        return Candidate(plugin.__name__, version, plugin.__name__, lambda: plugin)
    return file_candidate(Path(plugin))


def module_with(name: str, records: Sequence[Record], **members: object) -> ModuleType:
    """Return a plugin module that registers `records`; entries "NAME:member" of these records find `members`."""
    module = ModuleType(name.replace("-", "_"))
    for hook, kind in REGISTER_HOOKS.items():
        own = [record for record in records if isinstance(record, kind)]
        if own:
            setattr(module, hook, _registering(hook, own))
    for member, value in members.items():
        setattr(module, member, value)
    return module


def _registering(hook: str, records: list[Record]) -> Callable[[], list[Record]]:
    def register() -> list[Record]:
        return records

    register.__name__ = hook
    return hookimpl(register)
