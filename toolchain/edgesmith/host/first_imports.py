"""Plugins not seen before are imported in a process of their own first, since every command imports every plugin.

An exception at import is contained where it happens. A module that ends its process, never ends or takes all memory
would take every command with it, so that is found out once, and the answer is kept in the store's folder until the
plugin, the environment or Edgesmith changes. Plugins of Edgesmith's own distribution are exempt: they are tested
together with the host, and cannot be newer than it.
"""

import hashlib
import importlib.util
import json
import logging
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith import __version__
from edgesmith.errors import OutputError
from edgesmith.host.origin import PluginOrigin

if TYPE_CHECKING:
    from edgesmith.host.candidate import Candidate
    from edgesmith.host.plugin import Trace

_LOGGER = logging.getLogger(__name__)
_OWN_PACKAGES = ("edgesmith", "edgesmith_calibration")
_CODE = (".py", ".so", ".pyd")
_INSTALLED = (*_CODE, ".pth", ".dist-info", ".egg-info")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of an import, as it is kept in the store's folder."""

    identity: str = ""
    """Hash of what the answer depends on."""
    file: str = ""
    """The plugin's own file where it was named by its path; else empty."""
    fault: str = ""
    """How it breaks its process; empty for most."""
    names: tuple[str, ...] = ()
    """Names of the records that the plugin brought when it last loaded."""


class FirstImports:
    """Knows which imports of plugins break their process.

    Args:
        directory: Where answers are kept; the store's folder. One that cannot be written is tolerated.
        retry: Whether to ask again about everything that broke its process before.
        trace: Receives one line for each import that is tried.
    """

    def __init__(self, directory: Path, *, retry: bool = False, trace: "Trace | None" = None) -> None:
        environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
        self._file = directory / f"imports-{environment}.json"
        self._retry = retry
        self._trace = trace
        self._answers: dict[str, _Answer] | None = None
        self._asked: set[str] = set()
        self._told = False

    def faults(self, candidates: "Sequence[Candidate]") -> list[str]:
        """Return how importing each candidate breaks its process; an empty string for most."""
        wanted = [(one.origin, "") if one.origin is not None and one.fits else None for one in candidates]
        self._ask([one for one in wanted if one is not None])
        return [self._known(*one).fault if one is not None else "" for one in wanted]

    def names(self, origin: PluginOrigin) -> tuple[str, ...]:
        """Return the names of the records that a plugin brought when it last loaded."""
        return self._known(origin, "").names

    def fault_in(self, origin: PluginOrigin, module: str) -> str:
        """Return how importing a module that one of a plugin's records names breaks the process, or nothing."""
        if module.partition(".")[0] in _OWN_PACKAGES:
            return ""
        self._ask([(origin, module)])
        return self._known(origin, module).fault

    def _ask(self, wanted: Iterable[tuple[PluginOrigin, str]]) -> None:
        """Try every import for which there is no answer, all in one process."""
        unknown = [
            (origin, module, identity)
            for origin, module in wanted
            if (identity := self._identity(origin, module)) != self._known(origin, module).identity
            or (self._retry and self._known(origin, module).fault and _key(origin, module) not in self._asked)
        ]
        if not unknown:
            return
        from edgesmith.isolation.imports import Import, try_imports

        for origin, module, _ in unknown:
            if self._trace is not None:
                self._trace(f"{origin.distribution}:{origin.entry_point} {module} is tried in a process of its own")
        answers = try_imports(
            [Import(origin, module) for origin, module, _ in unknown],
            [_home(module or origin.package, origin.file) for origin, module, _ in unknown],
        )
        if None in answers and not self._told:
            self._told = True
            _LOGGER.warning("No process can be started to try plugins in; they are imported untried this time.")
        known = self._load()
        for (origin, module, identity), answer in zip(unknown, answers, strict=True):
            if answer is None:
                continue
            # A plugin that broke is found by the names that it brought before.
            names = self._known(origin, module).names if answer.names is None else answer.names
            known[_key(origin, module)] = _Answer(identity, origin.file, answer.fault, names)
            self._asked.add(_key(origin, module))
        self._keep()

    def _identity(self, origin: PluginOrigin, module: str) -> str:
        """Return a hash of what the answer for an import depends on: the code, and what is installed beside it."""
        parts = [
            *(__version__, sys.version, origin.version, origin.value),
            *self._installed,
            *_stamps(sorted({*_home(origin.package, origin.file), *_home(module, "")})),
        ]
        # Names of files need not be UTF-8.
        return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def _installed(self) -> list[str]:
        # Where a command is started is no part of the environment: every answer would change with it.
        scripts = sysconfig.get_path("scripts")
        return [stamp for folder in sys.path if folder not in ("", scripts) for stamp in _installed_in(folder)]

    def _known(self, origin: PluginOrigin, module: str) -> _Answer:
        return self._load().get(_key(origin, module), _Answer())

    def _load(self) -> dict[str, _Answer]:
        if self._answers is None:
            self._answers = self._read()
        return self._answers

    def _read(self) -> dict[str, _Answer]:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return {key: answer for key, one in found.items() if (answer := _as_answer(one)) is not None}
        return {}

    def _keep(self) -> None:
        """Write the answers of this command among those that others wrote meanwhile, except of files that are gone."""
        from edgesmith.files import write_atomically

        answers = self._read() | {key: answer for key, answer in self._load().items() if key in self._asked}
        there = {key: asdict(one) for key, one in answers.items() if not one.file or Path(one.file).exists()}
        # Without a place for answers the next command asks again.
        with suppress(OutputError, OSError):
            write_atomically(self._file, json.dumps(there, indent=1, sort_keys=True))


def _key(origin: PluginOrigin, module: str) -> str:
    return " ".join((origin.file or origin.distribution, origin.entry_point, module)).strip()


def _as_answer(found: object) -> _Answer | None:
    """Return what was kept as a record; None where it is something else."""
    match found:
        case {"identity": str(identity), "file": str(file), "fault": str(fault), "names": list(names)} if all(
            isinstance(name, str) for name in names
        ):
            return _Answer(identity, file, fault, tuple(names))
    return None


def _home(module: str, file: str) -> tuple[str, ...]:
    """Return the files and folders of a plugin's code, without importing it."""
    if file:
        return (file,)
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    return tuple(spec.submodule_search_locations or ()) or ((spec.origin,) if spec.origin else ())


def _stamps(home: Iterable[str]) -> list[str]:
    """Return name, size and time of change of each file of code."""
    files = [
        file
        for place in map(Path, home)
        for file in ([place] if place.is_file() else sorted(place.rglob("*")))
        if file.suffix in _CODE
    ]
    return [f"{file} {_changed(file)}" for file in files]


def _installed_in(folder: str) -> list[str]:
    """Return name, size and time of change of the modules, packages and distributions at the top of a folder."""
    try:
        if Path(folder).samefile("."):
            return []
        found = sorted(Path(folder).iterdir())
    except OSError:
        return []
    files = [one if one.suffix in _INSTALLED else one / "__init__.py" for one in found]
    return [f"{file} {changed}" for file in files if (changed := _changed(file)) != (0, 0)]


def _changed(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns
