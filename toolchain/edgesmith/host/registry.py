"""The registry: everything that is installed, looked up by name. An object you create; there is no global one."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from edgesmith.errors import PluginError
from edgesmith.host.candidate import import_breaks
from edgesmith.host.containment import call_plugin, importing, log_traceback
from edgesmith.host.names import suggest
from edgesmith.host.observers import Observers
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.plugin import Plugin, Tombstone, Trace
from edgesmith.host.records import (
    FrontendRecord,
    LintRecord,
    MethodRecord,
    MetricRecord,
    Record,
    RunnerRecord,
    TargetRecord,
)
from edgesmith.own_code import OWN_DISTRIBUTION

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edgesmith.host.first_imports import FirstImports
    from edgesmith.host.interfaces import Frontend, Method, Target
    from edgesmith.measure.runner import Runner
    from edgesmith_calibration.metrics import Metric

ResultT = TypeVar("ResultT")
RecordT = TypeVar("RecordT", MethodRecord, TargetRecord, FrontendRecord, RunnerRecord, MetricRecord, LintRecord)

WORDS: Mapping[type[Record], str] = {
    MethodRecord: "method",
    TargetRecord: "target",
    FrontendRecord: "frontend",
    RunnerRecord: "runner",
    MetricRecord: "metric",
    LintRecord: "lint",
}
_INTERFACES: Mapping[type[Record], str] = {
    MethodRecord: "edgesmith.host.interfaces:Method",
    TargetRecord: "edgesmith.host.interfaces:Target",
    FrontendRecord: "edgesmith.host.interfaces:Frontend",
    RunnerRecord: "edgesmith.measure.runner:Runner",
    MetricRecord: "edgesmith_calibration.metrics:Metric",
}


class Registry:
    """What plugins brought, and what is wrong with those that broke.

    Args:
        plugins: The loader's results, working and broken.
        trace: Receives one line for each call into a plugin.
        first_imports: Knows which modules break their process; None imports what records name without asking.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin | Tombstone],
        *,
        trace: Trace | None = None,
        first_imports: "FirstImports | None" = None,
    ) -> None:
        self._first_imports = first_imports
        self.plugins: tuple[Plugin, ...] = tuple(plugin for plugin in plugins if isinstance(plugin, Plugin))
        self.tombstones: tuple[Tombstone, ...] = tuple(plugin for plugin in plugins if isinstance(plugin, Tombstone))
        self.observers = Observers(self.plugins, trace=trace)
        # By identity: two distributions may register equal records.
        self._owners = {id(record): plugin for plugin in self.plugins for record in plugin.records}
        # Kept alive, since owners are known by identity.
        self._derived: list[Record] = []
        self._loaded: dict[int, object] = {}
        self._options: dict[int, type[BaseModel]] = {}

    def method(self, name: str) -> MethodRecord:
        """Return the method called `name`, which may be qualified as "distribution:name".

        Raises:
            PluginError: No plugin brings it, more than one does, or the plugin that brings it is broken.
        """
        return self._find(MethodRecord, name)

    def target(self, name: str) -> TargetRecord:
        """Return the target called `name`; errors as for `method`."""
        return self._find(TargetRecord, name)

    def frontend(self, name: str) -> FrontendRecord:
        """Return the frontend called `name`; errors as for `method`."""
        return self._find(FrontendRecord, name)

    def runner(self, name: str) -> RunnerRecord:
        """Return the runner called `name`; errors as for `method`."""
        return self._find(RunnerRecord, name)

    def metric(self, name: str) -> MetricRecord:
        """Return the metric called `name`; errors as for `method`."""
        return self._find(MetricRecord, name)

    def lint(self, name: str) -> LintRecord:
        """Return the lint called `name`; errors as for `method`."""
        return self._find(LintRecord, name)

    def methods(self) -> tuple[MethodRecord, ...]:
        """Return every method, sorted by name, then distribution."""
        return self._all(MethodRecord)

    def targets(self) -> tuple[TargetRecord, ...]:
        """Return every target, sorted by name, then distribution."""
        return self._all(TargetRecord)

    def frontends(self) -> tuple[FrontendRecord, ...]:
        """Return every frontend in the order in which they are asked: highest priority first, then by name."""
        return tuple(sorted(self._all(FrontendRecord), key=lambda record: -record.priority))

    def runners(self) -> tuple[RunnerRecord, ...]:
        """Return every runner, sorted by name, then distribution."""
        return self._all(RunnerRecord)

    def metrics(self) -> tuple[MetricRecord, ...]:
        """Return every metric, sorted by name, then distribution."""
        return self._all(MetricRecord)

    def lints(self) -> tuple[LintRecord, ...]:
        """Return every lint, sorted by name, then distribution."""
        return self._all(LintRecord)

    def plugin_of(self, record: Record) -> Plugin:
        """Return the plugin that registered `record`.

        Raises:
            PluginError: The record does not come from this registry.
        """
        if id(record) not in self._owners:
            raise PluginError(
                f"{WORDS[type(record)]} {record.name!r} is not of this registry",
                expected="a record returned by this registry",
                why="Only the registry knows which distribution brought it.",
                fix=f"Look it up with registry.{WORDS[type(record)]}({record.name!r}).",
            )
        return self._owners[id(record)]

    def derive(self, record: RecordT, base: RecordT) -> RecordT:
        """Return `record`, from now on known to come from the plugin that registered `base`."""
        self._owners[id(record)] = self.plugin_of(base)
        self._derived.append(record)
        return record

    def distribution_of(self, record: Record) -> str:
        """Return the distribution that brought `record` and its version, as "name version"."""
        return self.plugin_of(record).label

    def qualified_name(self, record: Record) -> str:
        """Return "distribution:name", which is unique where the bare name may not be."""
        return f"{self.plugin_of(record).distribution}:{record.name}"

    @overload
    def load(self, record: MethodRecord) -> "type[Method[Any]]": ...
    @overload
    def load(self, record: TargetRecord) -> "type[Target]": ...
    @overload
    def load(self, record: FrontendRecord) -> "type[Frontend]": ...
    @overload
    def load(self, record: RunnerRecord) -> "type[Runner]": ...
    @overload
    def load(self, record: MetricRecord) -> "type[Metric]": ...
    @overload
    def load(self, record: LintRecord) -> Callable[..., Sequence[Any]]: ...
    def load(self, record: Record) -> Any:
        """Return the class that a record names, or a lint's callable. Imported on first use.

        Raises:
            PluginError: It cannot be imported, or is not what the record's type asks for.
        """
        if id(record) not in self._loaded:
            found = self._import(record, "entry", record.entry)
            if isinstance(record, LintRecord):
                self._require(callable(found), record, record.entry, "a callable")
            else:
                interface = _resolve(_INTERFACES[type(record)])
                name = interface.__name__
                is_subclass = isinstance(found, type) and issubclass(found, interface)
                self._require(is_subclass, record, record.entry, f"a subclass of {name}")
                self._require(not inspect.isabstract(found), record, record.entry, f"every method of {name} defined")
            self._loaded[id(record)] = found
        return self._loaded[id(record)]

    def options(self, record: MethodRecord) -> "type[BaseModel]":
        """Return the pydantic model of a method's options. Imported on first use.

        Raises:
            PluginError: It cannot be imported, or is no pydantic model.
        """
        if id(record) not in self._options:
            from pydantic import BaseModel

            found = self._import(record, "options", record.options)
            is_model = isinstance(found, type) and issubclass(found, BaseModel)
            self._require(is_model, record, record.options, "a pydantic model")
            self._options[id(record)] = cast("type[BaseModel]", found)
        return self._options[id(record)]

    def validate_options(self, record: MethodRecord, options: Mapping[str, object]) -> "BaseModel":
        """Return a method's options with defaults filled in.

        Raises:
            RecipeError: An option is unknown, missing, or outside its range; the message names it and the range.
            PluginError: The method's options cannot be imported, or crash.
        """
        from edgesmith.host.options import validate_options

        return self.ask_options(record, lambda model: validate_options(record.name, model, options))

    def ask_options(self, record: MethodRecord, work: "Callable[[type[BaseModel]], ResultT]") -> ResultT:
        """Return what `work` makes of the pydantic model of a method's options, whose validators are the plugin's.

        Raises:
            PluginError: The model cannot be imported, or its code crashes.
        """
        model = self.options(record)
        what = f"method {record.name} {record.version} from {self.distribution_of(record)}: its options"
        return call_plugin(lambda: work(model), what, PluginError, module=self.plugin_of(record).module.__name__)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of recipes, with the options of every installed method."""
        from edgesmith.host.schema import recipe_schema

        return recipe_schema(self)

    def require(self, requirements: Iterable[str]) -> None:
        """Raise PluginError unless each required distribution is loaded, in a version of the given range."""
        from edgesmith.host.needs import unmet_plugins

        problems = unmet_plugins(requirements, self)
        if problems:
            raise PluginError(
                f"the recipe requires {'; '.join(problems)}",
                expected="every plugin that the recipe names, working and in range",
                why="Another version may do something else under the same name.",
                fix="Install what is named. `edgesmith plugins` lists what there is.",
            )

    def _all(self, kind: type[RecordT]) -> tuple[RecordT, ...]:
        found = [(plugin.distribution, record) for plugin, record in self._of(kind)]
        return tuple(record for _, record in sorted(found, key=lambda item: (item[1].name, item[0])))

    def _of(self, kind: type[RecordT]) -> Iterator[tuple[Plugin, RecordT]]:
        for plugin in self.plugins:
            for record in plugin.records:
                if isinstance(record, kind):
                    yield plugin, record

    def _find(self, kind: type[RecordT], name: str) -> RecordT:
        distribution, qualified, bare = name.rpartition(":")
        found = [
            (plugin, record)
            for plugin, record in self._of(kind)
            if record.name == bare and (not qualified or plugin.distribution == distribution)
        ]
        if len(found) == 1:
            return found[0][1]
        if found:
            raise self._clash(WORDS[kind], bare, [plugin for plugin, _ in found])
        raise self._missing(kind, distribution, bare)

    def _clash(self, word: str, name: str, providers: Sequence[Plugin]) -> PluginError:
        qualified = " or ".join(f"`{plugin.distribution}:{name}`" for plugin in providers)
        return PluginError(
            f"{word} {name!r} comes from {' and from '.join(plugin.label for plugin in providers)}",
            expected=f"one {word} of that name, or a qualified name",
            why="Which one runs must not depend on the order of installation.",
            fix=f"Write {qualified}, or uninstall one of them.",
        )

    def _missing(self, kind: type[RecordT], distribution: str, name: str) -> PluginError:
        word = WORDS[kind]
        culprits = [
            tombstone
            for tombstone in self.tombstones
            if name in tombstone.names or distribution == tombstone.distribution or name == tombstone.entry_point
        ]
        if culprits:
            causes = "; ".join(f"{culprit.label} is broken: {culprit.error}" for culprit in culprits)
            return PluginError(
                f"{word} {name!r} cannot be used, since {causes}",
                expected="a plugin that loads",
                why="A broken plugin stays listed, and everything else works without it.",
                fix="See `edgesmith doctor` for the whole error, then repair, update or uninstall the plugin.",
            )
        broken = ", ".join(f"{tombstone.label} ({tombstone.error})" for tombstone in self.tombstones)
        known = [record.name for record in self._all(kind)]
        known += [self.qualified_name(record) for record in self._all(kind)] if distribution else []
        hint = suggest(f"{distribution}:{name}" if distribution else name, known)
        asked = f"{distribution}:{name}" if distribution else name
        expected = f"the name of an installed {word}"
        if kind is TargetRecord:
            expected += ", or a profile file of your own (--target FILE.toml, for validate --set target=FILE.toml)"
        return PluginError(
            f"there is no {word} {asked!r}",
            expected=expected,
            why=f"It may belong to a broken plugin: {broken}." if broken else "No installed plugin brings it.",
            fix=f"{hint} `edgesmith {word}s` lists what is installed."
            if kind in (MethodRecord, TargetRecord)
            else f"{hint} `edgesmith plugins` lists what is installed.",
        )

    def _import(self, record: Record, field: str, path: str) -> object:
        """Return what a dotted path of a record names. Any failure is the plugin's, and says so."""
        plugin = self.plugin_of(record)
        module_name, _, attribute = path.partition(":")
        is_its_own = module_name in (plugin.module.__name__, plugin.distribution.removeprefix("file:"))
        if not is_its_own:
            self._require_survivable(plugin, module_name)
        try:
            if is_its_own:
                return getattr(plugin.module, attribute)
            with importing(f"{module_name} of {plugin.label}"):
                return getattr(importlib.import_module(module_name), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Contains plugin faults: importing runs the plugin's code, which may raise anything.
            log_traceback(f"{WORDS[type(record)]} {record.name} of {plugin.label}: importing {path}", error)
            raise PluginError(
                f"{WORDS[type(record)]} {record.name!r} of {plugin.label} cannot be loaded: "
                f"{field} {path!r} fails with {type(error).__name__}: {error}",
                expected="a dotted path that can be imported",
                why="The record was listed without importing it; the class is needed now.",
                fix="Install what it misses, or update the plugin; `edgesmith doctor` shows what is installed.",
            ) from error

    def _require_survivable(self, plugin: Plugin, module: str) -> None:
        """Raise PluginError if importing a module of a plugin would break this process."""
        if self._first_imports is None or plugin.distribution == OWN_DISTRIBUTION or module in sys.modules:
            return
        fault = self._first_imports.fault_in(PluginOrigin.of(plugin), module)
        if fault:
            raise import_breaks(f"{module} of {plugin.label}", fault)

    def _require(self, holds: bool, record: Record, path: str, expected: str) -> None:
        if not holds:
            raise PluginError(
                f"{WORDS[type(record)]} {record.name!r} of {self.distribution_of(record)} names {path!r}, "
                f"which is not {expected}",
                expected=expected,
                why="The host calls it through that interface.",
                fix="Plugin author: correct the record or the class. User: update the plugin.",
            )


def _resolve(path: str) -> type:
    module, _, attribute = path.partition(":")
    return cast("type", getattr(importlib.import_module(module), attribute))
