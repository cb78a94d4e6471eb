"""One plugin that was found: whether it fits, what importing it brings, and what is wrong with it if it fails.

Failures are caught as BaseException: a plugin may also call `sys.exit` at import. Only Ctrl-C passes through.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgesmith.errors import PluginError
from edgesmith.host import hookspecs
from edgesmith.host.containment import first_words, importing, log_traceback
from edgesmith.host.names import suggest
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
from edgesmith.host.validation import check_record
from edgesmith.own_code import OWN_DISTRIBUTION

REGISTER_HOOKS: dict[str, type[Record]] = {
    "register_methods": MethodRecord,
    "register_targets": TargetRecord,
    "register_frontends": FrontendRecord,
    "register_runners": RunnerRecord,
    "register_metrics": MetricRecord,
    "register_lints": LintRecord,
}


class Candidate:
    """A plugin that was found and not imported yet.

    Args:
        distribution: Name of the distribution, or "file:NAME".
        version: Its version.
        entry_point: Name of the entry point.
        import_module: Imports the module and returns it.
        requires: The distribution's declared dependencies; None where there is nothing to check.
        origin: Where its code is; None where it is known to be safe to import.
    """

    def __init__(
        self,
        distribution: str,
        version: str,
        entry_point: str,
        import_module: Callable[[], object],
        requires: Sequence[str] | None = None,
        origin: PluginOrigin | None = None,
    ) -> None:
        self.distribution = distribution
        self.version = version
        self.entry_point = entry_point
        self.handles = {canonicalize_name(distribution), canonicalize_name(entry_point)}
        self.is_file = distribution.startswith("file:")
        self._import_module = import_module
        self._requires = requires
        self.origin = origin

    @property
    def fits(self) -> bool:
        """Whether the plugin is for this version of Edgesmith, and so may be imported."""
        try:
            self._check_core_range()
        except PluginError:
            return False
        return True

    def load(
        self, trace: Trace | None = None, *, fault: str = "", known_names: Sequence[str] = ()
    ) -> Plugin | Tombstone:
        """Return the loaded plugin, or a tombstone with the error.

        Args:
            trace: Receives one line for each call into the plugin.
            fault: How importing it broke a process, if it did. It is not imported here then.
            known_names: Names of the records that it brought when it last loaded, for a tombstone.
        """
        stage, records, names = "version", list[Record](), list[str](known_names)
        try:
            self._check_core_range()
            stage = "import"
            if fault:
                raise import_breaks("the plugin", fault)
            if trace is not None:
                # Said before: a module may end the process.
                trace(f"{self.distribution}:{self.entry_point} is imported")
            with importing(f"{self.distribution} {self.version}"):
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
            if not isinstance(error, PluginError):
                log_traceback(f"{self.distribution}:{self.entry_point}", error)
            return self._bury(stage, error, tuple(dict.fromkeys(names)))
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


def import_breaks(what: str, fault: str) -> PluginError:
    """Return the error for what was tried in a process of its own and broke it."""
    return PluginError(
        f"importing {what}: {fault}",
        expected="a module that imports and leaves its process alone",
        why="It was imported in a process of its own first. Here it would take this command with it.",
        fix="Plugin author: move the work out of the module's top level; a changed file is tried again. User: update "
        "or uninstall the plugin; `edgesmith plugins --retry` tries it again. The environment variables "
        "EDGESMITH_IMPORT_SECONDS and EDGESMITH_IMPORT_MIB set other limits for it.",
    )


def first_line(error: BaseException) -> str:
    """Return the one line that a listing shows of `error`: what failed and what was expected, or its type and text."""
    if isinstance(error, PluginError):
        return f"{error.what} (expected: {error.expected})"
    return first_words(error)


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
    """Return a module that fulfils the present contract, by a shim if it was written for the one before."""
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
    if declared != newest and declared in hookspecs.SHIMS:
        hookspecs.SHIMS[declared](module)
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
                expected=f"the name of a hook in edgesmith.host.hookspecs. {suggest(hook, known)}",
                why="A misspelt hook would never be called.",
                fix="Plugin author: correct the name. User: update the plugin or edgesmith.",
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
            raise duplicate_name(expected, record.name)
        taken.add((expected, record.name))
        records.append(record)
    return records


def duplicate_name(kind: type[Record], name: str) -> PluginError:
    """Return the error for a name that one distribution registers twice."""
    return PluginError(
        f"{kind.__name__} {name!r} is registered twice by one distribution",
        expected="one record of each name and type",
        why="`distribution:name` must mean one thing.",
        fix="Plugin author: rename or remove one of them.",
    )
