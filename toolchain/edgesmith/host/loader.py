"""Finds and imports plugins, one at a time. A plugin that fails becomes a tombstone; the others load.

pluggy's own loader stops at the first broken import and does not name the distribution, so this one replaces it.
Failures are caught as BaseException: a plugin may also call `sys.exit` at import. Only Ctrl-C passes through.
"""

import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgesmith.errors import PluginError
from edgesmith.host import hookspecs
from edgesmith.host.names import suggest
from edgesmith.host.plugin import Plugin, Tombstone
from edgesmith.host.records import (
    FrontendRecord,
    LintRecord,
    MethodRecord,
    MetricRecord,
    Record,
    RunnerRecord,
    TargetRecord,
)
from edgesmith.host.registry import Registry, Trace
from edgesmith.host.validation import check_record

ENTRY_POINT_GROUP = "edgesmith"
OWN_DISTRIBUTION = "edgesmith"
REGISTER_HOOKS: dict[str, type[Record]] = {
    "register_methods": MethodRecord,
    "register_targets": TargetRecord,
    "register_frontends": FrontendRecord,
    "register_runners": RunnerRecord,
    "register_metrics": MetricRecord,
    "register_lints": LintRecord,
}


def load_registry(
    *,
    plugins: bool = True,
    disable: Sequence[str] = (),
    files: Sequence[Path] = (),
    trace: Trace | None = None,
) -> Registry:
    """Return a registry of everything that is installed.

    Args:
        plugins: Whether to load distributions other than Edgesmith itself.
        disable: Distributions or entry points to leave out.
        files: Plugin files to load besides. Their distribution is shown as "file:NAME".
        trace: Receives one line for each call into a plugin.

    Raises:
        PluginError: A name in `disable` is not installed, or a file in `files` does not exist.
    """
    candidates = [*_installed(), *map(file_candidate, files)]
    _check_disabled_names(disable, candidates)
    unwanted = {canonicalize_name(name) for name in disable}
    wanted = [
        candidate
        for candidate in candidates
        if not unwanted & candidate.handles
        and (plugins or candidate.is_file or candidate.distribution == OWN_DISTRIBUTION)
    ]
    results = [candidate.load(trace) for candidate in wanted]
    return Registry(_reject_duplicates(results), trace=trace)


class Candidate:
    """A plugin that was found and not imported yet.

    Args:
        distribution: Name of the distribution, or "file:NAME".
        version: Its version.
        entry_point: Name of the entry point.
        import_module: Imports the module and returns it.
        requires: The distribution's declared dependencies; None where there is nothing to check.
    """

    def __init__(
        self,
        distribution: str,
        version: str,
        entry_point: str,
        import_module: Callable[[], object],
        requires: Sequence[str] | None = None,
    ) -> None:
        self.distribution = distribution
        self.version = version
        self.entry_point = entry_point
        self.handles = {canonicalize_name(distribution), canonicalize_name(entry_point)}
        self.is_file = distribution.startswith("file:")
        self._import_module = import_module
        self._requires = requires

    def load(self, trace: Trace | None = None) -> Plugin | Tombstone:
        """Return the loaded plugin, or a tombstone with the error."""
        stage, records, names = "version", list[Record](), list[str]()
        try:
            self._check_core_range()
            stage = "import"
            module = self._import_module()
            stage = "api"
            module = _check_api(module)
            stage = "hooks"
            manager, hooks = _open_hooks(module)
            stage = "records"
            for hook in hooks:
                if hook in REGISTER_HOOKS:
                    returned = self._call(manager, hook, trace)
                    names.extend(_names(returned))
                    records.extend(_checked_records(hook, returned, records))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  contains plugin faults, see the head of this file
            return self._bury(stage, error, tuple(names))
        return Plugin(
            distribution=self.distribution,
            version=self.version,
            entry_point=self.entry_point,
            module=module,
            manager=manager,
            hooks=hooks,
            records=tuple(records),
        )

    def _check_core_range(self) -> None:
        """Raise PluginError unless the distribution declares a range of our version that holds ours."""
        if self._requires is None:
            return
        from edgesmith import __version__

        ranges = [requirement.specifier for requirement in _requirements(self._requires, OWN_DISTRIBUTION)]
        if not any(str(specifier) for specifier in ranges):
            raise PluginError(
                f"{self.distribution} {self.version} declares no version range of edgesmith",
                expected='a dependency such as "edgesmith>=0.1,<0.2" in its package metadata',
                why="Without a range, a change of the plugin contract would show up as a crash in the middle of a run.",
                fix="Plugin author: declare the range. User: update the plugin.",
            )
        if not all(specifier.contains(__version__, prereleases=True) for specifier in ranges):
            declared = ", ".join(str(specifier) for specifier in ranges)
            raise PluginError(
                f"{self.distribution} {self.version} works with edgesmith {declared}, and this is {__version__}",
                expected=f"a range that includes {__version__}",
                why="It was not imported, since it may rely on what this version does not have.",
                fix=f"Install another version of {self.distribution}, or the edgesmith it asks for.",
            )

    def _call(self, manager: pluggy.PluginManager, hook: str, trace: Trace | None) -> object:
        results = getattr(manager.hook, hook)()
        returned = results[0] if results else None
        if trace is not None:
            count = len(returned) if isinstance(returned, Sequence) else 0
            trace(f"{self.distribution}:{self.entry_point}.{hook}() -> {count} records")
        return returned

    def _bury(self, stage: str, error: BaseException, names: tuple[str, ...]) -> Tombstone:
        return Tombstone(
            distribution=self.distribution,
            version=self.version,
            entry_point=self.entry_point,
            stage=stage,
            error=first_line(error),
            traceback="".join(traceback.format_exception(error)),
            names=names,
        )


def first_line(error: BaseException) -> str:
    """Return the one line that a listing shows of `error`: what failed, with the type unless it is ours."""
    if isinstance(error, PluginError):
        return error.what
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _installed() -> list[Candidate]:
    found = [
        _entry_point_candidate(entry, entry.dist)
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        if entry.dist is not None
    ]
    return sorted(found, key=lambda candidate: (candidate.distribution, candidate.entry_point))


def _entry_point_candidate(
    entry: importlib.metadata.EntryPoint, distribution: importlib.metadata.Distribution
) -> Candidate:
    name = canonicalize_name(distribution.name)
    requires = None if name == OWN_DISTRIBUTION else tuple(distribution.requires or ())
    return Candidate(name, distribution.version, entry.name, entry.load, requires)


def file_candidate(path: Path) -> Candidate:
    """Return the plugin in a Python file, not imported yet.

    Raises:
        PluginError: There is no such file.
    """
    if path.suffix != ".py" or not path.is_file():
        raise PluginError(
            f"{path} is not a plugin file",
            expected="an existing Python file ending in .py",
            why="A file is loaded only when it is named; folders are never searched.",
            fix="Give the path of the module that holds the hooks.",
        )
    module = _file_module(path)
    return Candidate(f"file:{path.stem}", "0", path.stem, module)


def _file_module(path: Path) -> Callable[[], ModuleType]:
    # Two files of one name, and installed modules of that name, must not meet in sys.modules.
    stem, digest = re.sub(r"\W", "_", path.stem), sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"edgesmith_file_{stem}_{digest}"

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be read as a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return load


def _check_disabled_names(disable: Iterable[str], candidates: Sequence[Candidate]) -> None:
    known = {handle for candidate in candidates for handle in candidate.handles}
    for name in disable:
        if canonicalize_name(name) not in known:
            raise PluginError(
                f"there is no plugin {name!r} to disable",
                expected="the name of an installed distribution or of an entry point",
                why="A misspelt name would leave the plugin in without a word.",
                fix=f"{suggest(name, known)} `edgesmith plugins` lists them.",
            )


def _requirements(requires: Iterable[str], distribution: str) -> Iterator[Requirement]:
    """Yield the unconditional requirements on `distribution`."""
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise PluginError(
                f"its metadata holds the malformed requirement {text!r}",
                expected="requirements as the packaging standard has them",
                why="The range of edgesmith that the plugin supports cannot be read.",
                fix="Plugin author: rebuild the package. User: reinstall the plugin.",
            ) from error
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) == distribution and wanted:
            yield requirement


def _check_api(module: object) -> ModuleType:
    if not isinstance(module, ModuleType):
        raise PluginError(
            f"the entry point names an object of type {type(module).__name__}",
            expected="a module that holds the hook implementations",
            why="Hooks are looked up on a module.",
            fix="Plugin author: write the entry point as \"name = 'package.module'\".",
        )
    newest = hookspecs.API_VERSION
    accepted = (newest, newest - 1) if newest > 1 else (newest,)
    declared = getattr(module, "EDGESMITH_API", newest)
    if declared not in accepted:
        raise PluginError(
            f"it is written for plugin contract {declared!r}",
            expected=f"EDGESMITH_API in {', '.join(map(str, sorted(accepted)))}",
            why="The host supports its own contract and the one before it.",
            fix="Update the plugin, or install the edgesmith that it was written for.",
        )
    return module


def _open_hooks(module: ModuleType) -> tuple[pluggy.PluginManager, tuple[str, ...]]:
    """Return a manager that holds `module` alone, and the names of the hooks it implements.

    Raises:
        PluginError: A hook is unknown, or asks for an argument that its specification does not have.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    known = _hook_names()
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"one of its hooks does not fit: {str(error).splitlines()[-1]}",
            expected="hook implementations with arguments that edgesmith.host.hookspecs has",
            why="The host would not know what to pass.",
            fix="Plugin author: remove the argument. User: update the plugin or edgesmith.",
        ) from error
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(module) or ()))
    for hook in hooks:
        if hook not in known:
            raise PluginError(
                f"it implements the unknown hook {hook!r}",
                expected="the name of a hook in edgesmith.host.hookspecs",
                why="A misspelt hook would never be called.",
                fix=suggest(hook, known),
            )
    manager.check_pending()
    return manager, hooks


def _hook_names() -> tuple[str, ...]:
    marker = f"{hookspecs.PROJECT_NAME}_spec"
    return tuple(name for name, member in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(member, marker))


def _names(returned: object) -> Iterator[str]:
    """Yield the names in what a hook returned, so that a broken plugin is found by what it would have brought."""
    if isinstance(returned, list | tuple):
        for record in returned:
            name = getattr(record, "name", None)
            if isinstance(name, str):
                yield name


def _checked_records(hook: str, returned: object, before: Sequence[Record]) -> list[Record]:
    """Return the records a hook returned, each checked, none of them named twice."""
    expected = REGISTER_HOOKS[hook]
    if not isinstance(returned, list | tuple):
        raise PluginError(
            f"{hook} returned an object of type {type(returned).__name__}",
            expected=f"a list or tuple of {expected.__name__}",
            why="The host lists what is installed from these records alone.",
            fix="Plugin author: return a list; an empty one where there is nothing to register.",
        )
    taken = {(type(record), record.name) for record in before}
    records: list[Record] = []
    for record in returned:
        check_record(record, expected)
        if (expected, record.name) in taken:
            raise _duplicate(expected, record.name)
        taken.add((expected, record.name))
        records.append(record)
    return records


def _duplicate(kind: type[Record], name: str) -> PluginError:
    return PluginError(
        f"{kind.__name__} {name!r} is registered twice by one distribution",
        expected="one record of each name and type",
        why="`distribution:name` must mean one thing.",
        fix="Plugin author: rename or remove one of them.",
    )


def _reject_duplicates(results: Iterable[Plugin | Tombstone]) -> list[Plugin | Tombstone]:
    """Bury a plugin whose record names another entry point of the same distribution already took."""
    taken: set[tuple[str, type[Record], str]] = set()
    kept: list[Plugin | Tombstone] = []
    for result in results:
        if isinstance(result, Plugin):
            own = {(result.distribution, type(record), record.name) for record in result.records}
            clash = sorted(own & taken, key=lambda item: item[2])
            if clash:
                kept.append(_bury_duplicate(result, _duplicate(clash[0][1], clash[0][2])))
                continue
            taken |= own
        kept.append(result)
    return kept


def _bury_duplicate(plugin: Plugin, error: PluginError) -> Tombstone:
    names = tuple(record.name for record in plugin.records)
    return Tombstone(plugin.distribution, plugin.version, plugin.entry_point, "records", error.what, str(error), names)
