"""What the checks share: the models, and every run of a method, made once."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgesmith.data import RandomInputs
from edgesmith.errors import Condition, EdgesmithError, StepError
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith.host.needs import check_needs
from edgesmith.host.records import MethodRecord, Record, TargetRecord
from edgesmith.host.registry import Registry
from edgesmith.host.step import CHECK_CRASHED, StepResult, check_method, run_step
from edgesmith.host.verdict import Verdict
from edgesmith.isolation.limits import Isolation
from edgesmith.model import Model
from edgesmith.plan import PlannedStep
from edgesmith.testing.data import tiny_data
from edgesmith.testing.fakes import fake_dialect
from edgesmith.testing.models import TINY_MODELS, tiny_models
from edgesmith_calibration.sources import DataSource

RecordT = TypeVar("RecordT", bound=Record)

_REPRESENTATIVES = 2
"""Graphs that stand for all where a check that is not thorough runs a method once more."""


class Bench(Generic[RecordT]):
    """The record under test and the models that it is tried on.

    Args:
        registry: Where the record comes from.
        record: What is tested.
        models: Further models by name, besides the tiny ones.
        options: Options of a method in every run, for those without a default or that make it cheap.
        thorough: Repeat runs on every graph, and not on a few that stand for all.
    """

    def __init__(
        self,
        registry: Registry,
        record: RecordT,
        models: Mapping[str, Model] | None = None,
        options: Mapping[str, object] | None = None,
        *,
        thorough: bool = True,
    ) -> None:
        self.registry = registry
        self.record = record
        self.thorough = thorough
        self.options = dict(options or {})
        self._further = dict(models or {})

    isolation: Isolation | None = None
    """Limits of a process of its own for each call of a method; None makes them in this one."""

    @property
    def label(self) -> str:
        """How results name the record."""
        return f"{self.record.name} from {self.registry.distribution_of(self.record)}"

    @cached_property
    def models(self) -> Mapping[str, Model]:
        """All models by name."""
        return tiny_models(Path(self.scratch)) | self._further

    @cached_property
    def scratch(self) -> str:
        """A folder that lives as long as the bench."""
        self._folder = tempfile.TemporaryDirectory(prefix="edgesmith-conformance-")
        return self._folder.name

    @property
    def origin(self) -> dict[str, str | None]:
        """Where another process finds the plugin: its file, or the name of its module; both None if nowhere."""
        plugin = self.registry.plugin_of(self.record)
        path = getattr(plugin.module, "__file__", None)
        if plugin.distribution.startswith("file:"):
            return {"file": path, "module": None}
        return {"file": None, "module": plugin.module.__name__ if path else None}

    @cached_property
    def obstacle(self) -> str:
        """Why a method or target cannot be used here at all, or nothing."""
        try:
            if isinstance(self.record, MethodRecord | TargetRecord):
                check_needs(self.record)
        except EdgesmithError as error:
            return error.what
        return ""

    def data(self, name: str, *, seed: int = 0) -> DataSource:
        """Return samples for the model of that name."""
        model = self.models[name]
        return tiny_data(model, seed=seed) if name not in self._further else RandomInputs(model)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a method on one model: what came of it, or the error."""

    model: str
    options: Mapping[str, object]
    result: StepResult | None
    error: EdgesmithError | None

    @property
    def applied(self) -> Model | None:
        """The new model, where the method applied."""
        return self.result.model if self.result is not None and self.result.verdict.status == "ok" else None

    @property
    def condition(self) -> Condition | None:
        """What the method broke, if anything."""
        return self.error.condition if isinstance(self.error, StepError) else None

    @property
    def where(self) -> str:
        """The model, and the options that are not the usual ones."""
        changed = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"model {self.model!r}" + (f" with {changed}" if changed else "")

    @property
    def problem(self) -> str:
        """Where it failed and how, in one line; empty where it applied, or where the method refused in words."""
        if self.error is not None and (self.condition is not None or not _is_complete(self.error)):
            return f"{self.where}: {self.error.what}"
        crashed = self.result is not None and self.result.verdict.reason.startswith(CHECK_CRASHED)
        return f"{self.where}: {self.result.verdict.reason}" if self.result is not None and crashed else ""


class MethodBench(Bench[MethodRecord]):
    """A method, and its runs."""

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """One run on each model, with the usual options."""
        return tuple(self.attempt(name) for name in self.models)

    @cached_property
    def applied(self) -> tuple[Attempt, ...]:
        """The runs in which the method applied, those of small graphs first."""
        found = (attempt for attempt in self.attempts if attempt.applied is not None)
        return tuple(sorted(found, key=lambda attempt: len(self.models[attempt.model].graph)))

    @property
    def representatives(self) -> tuple[Attempt, ...]:
        """The runs to repeat: all in which the method applied, or the smallest and the largest graph."""
        if self.thorough or len(self.applied) <= _REPRESENTATIVES:
            return self.applied
        return (self.applied[0], self.applied[-1])

    def attempt(self, name: str, options: Mapping[str, object] | None = None, *, seed: int = 0) -> Attempt:
        """Run the method on the model of that name, as the pipeline does."""
        return self.attempt_on(name, self.models[name], self.data(name), options or {}, seed=seed)

    def attempt_on(
        self,
        name: str,
        model: Model,
        data: DataSource | None,
        options: Mapping[str, object] | None = None,
        *,
        seed: int = 0,
    ) -> Attempt:
        """Run the method on any model."""
        options = options or {}
        try:
            validated = self.registry.validate_options(self.record, {**self.options, **options})
            with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
                context = Context(validated, fake_dialect(), Path(scratch), data, seed, source=model)
                result = run_step(self.registry, self.record, model, context, isolation=self.isolation)
                return Attempt(name, options, result, None)
        except EdgesmithError as error:
            return Attempt(name, options, None, error)

    def verdicts(self, dialect: Dialect) -> Iterator[tuple[str, Verdict]]:
        """Yield the verdict on each model for a dialect: with data, and without where the method can do without."""
        validated: Any = self.registry.validate_options(self.record, self.options)
        step = PlannedStep(self.record, validated, self.registry.distribution_of(self.record))
        for name, model in self.models.items():
            for data in (self.data(name), *(() if step.needing.needs.data else (None,))):
                with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
                    context = Context(validated, dialect, Path(scratch), data, source=model)
                    verdict = check_method(self.registry, self.record, model, context, isolation=self.isolation)
                words = f"model {name!r}, target {dialect.name!r}, {'with' if data else 'without'} data"
                yield words, verdict

    def bytes_request(self) -> str:
        """Return what another process needs to repeat the runs that are repeated, as JSON."""
        own = TINY_MODELS.keys() - self._further.keys()
        models = [attempt.model for attempt in self.representatives if attempt.model in own]
        request = {"method": self.record.name, "options": self.options, "models": models}
        return json.dumps(request | self.origin)


def _is_complete(error: EdgesmithError) -> bool:
    """Return whether an error has all four parts."""
    return all((error.what, error.expected, error.why, error.fix))
