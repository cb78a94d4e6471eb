"""Finds plugins and loads them, one at a time. A plugin that fails becomes a tombstone; the others load.

pluggy's own loader stops at the first broken import and does not name the distribution, so this one replaces it.
"""

import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from packaging.utils import canonicalize_name

from edgesmith.errors import PluginError
from edgesmith.files import hash_file
from edgesmith.host.candidate import Candidate, duplicate_name
from edgesmith.host.containment import first_words
from edgesmith.host.first_imports import FirstImports
from edgesmith.host.names import suggest
from edgesmith.host.origin import PluginOrigin
from edgesmith.host.plugin import Plugin, Tombstone, Trace
from edgesmith.host.records import Record
from edgesmith.host.registry import Registry
from edgesmith.host.sudden_ends import sudden_ends
from edgesmith.own_code import OWN_DISTRIBUTION, content, is_editable
from edgesmith.store import default_store_directory

ENTRY_POINT_GROUP = "edgesmith"

_LOGGER = logging.getLogger(__name__)
_SUDDEN_END = (
    "A run ended without a word inside %s. Unless it was ended from outside, that code did it: with --isolate it runs "
    "in a process of its own, and how that ends is said."
)


def load_registry(
    *,
    plugins: bool = True,
    disable: Sequence[str] = (),
    files: Sequence[Path] = (),
    trace: Trace | None = None,
    retry: bool = False,
) -> Registry:
    """Return a registry of everything that is installed.

    Args:
        plugins: Whether to load distributions other than Edgesmith itself.
        disable: Distributions or entry points to leave out.
        files: Plugin files to load besides. Their distribution is shown as "file:NAME".
        trace: Receives one line for each call into a plugin.
        retry: Whether to try again to import what broke its process before.

    Raises:
        PluginError: A name in `disable` is not installed, a file in `files` does not exist, or Edgesmith itself is
            not an installed distribution.
    """
    for words in sudden_ends():
        _LOGGER.warning(_SUDDEN_END, words)
    candidates = [*_installed(), *map(file_candidate, files)]
    _check_disabled_names(disable, candidates)
    unwanted = {canonicalize_name(name) for name in disable}
    wanted = [
        candidate
        for candidate in candidates
        if not unwanted & candidate.handles
        and (plugins or candidate.is_file or candidate.distribution == OWN_DISTRIBUTION)
    ]
    first_imports = FirstImports(default_store_directory(), retry=retry, trace=trace)
    results = _load(wanted, first_imports, trace)
    return Registry(_reject_duplicates(results), trace=trace, first_imports=first_imports)


def load_file(path: Path) -> Plugin | Tombstone:
    """Return the plugin in a Python file, or a tombstone with the error.

    Raises:
        PluginError: There is no such file, or it cannot be read.
    """
    return _load([file_candidate(path)], FirstImports(default_store_directory()), None)[0]


def _load(
    candidates: Sequence[Candidate], first_imports: FirstImports, trace: Trace | None
) -> list[Plugin | Tombstone]:
    loaded = []
    for candidate, fault in zip(candidates, first_imports.faults(candidates), strict=True):
        names = first_imports.names(candidate.origin) if candidate.origin is not None else ()
        loaded.append(candidate.load(trace, fault=fault, known_names=names))
    return loaded


def _installed() -> list[Candidate]:
    found = _entry_point_candidates()
    if not any(candidate.distribution == OWN_DISTRIBUTION for candidate in found):
        raise PluginError(
            "Edgesmith's own entry points are not installed",
            expected="an installed distribution called edgesmith",
            why="Even its own methods and targets are found through entry points.",
            fix="Install it: pip install edgesmith, or pip install -e . in a clone.",
        )
    return sorted(found, key=lambda candidate: (candidate.distribution, candidate.entry_point))


def _entry_point_candidates() -> list[Candidate]:
    try:
        entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    except Exception:  # noqa: BLE001  a malformed file of one distribution, plugin or not, ends the search in all
        return _found_one_by_one()
    return [_entry_point_candidate(entry, entry.dist) for entry in entries if entry.dist is not None]


def _found_one_by_one() -> list[Candidate]:
    """Return the plugins of every distribution whose entry points can be read, and a broken one for each other."""
    found: dict[str, list[Candidate]] = {}
    for distribution in importlib.metadata.distributions():
        # As for imports, what comes first on the path hides what comes later.
        name = canonicalize_name(_said(distribution, "Name", otherwise=str(distribution.locate_file(""))))
        if name in found:
            continue
        try:
            entries = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
            found[name] = [_entry_point_candidate(entry, distribution) for entry in entries]
        except Exception as error:  # noqa: BLE001  contains whatever is wrong with one file
            found[name] = [_unreadable(name, distribution, error)]
    return [candidate for candidates in found.values() for candidate in candidates]


def _unreadable(name: str, distribution: importlib.metadata.Distribution, error: Exception) -> Candidate:
    _LOGGER.warning("%s: its entry_points.txt cannot be read, and plugins in it are left out", name)
    version = _said(distribution, "Version", otherwise="of no version")
    return Candidate(name, version, "entry_points.txt", partial(_refuse_file, distribution, error))


def _refuse_file(distribution: importlib.metadata.Distribution, error: Exception) -> NoReturn:
    raise PluginError(
        f"its entry_points.txt in {distribution.locate_file('')} cannot be read",
        expected="sections such as [edgesmith] with lines name = package.module, in UTF-8",
        why=f"Python finds plugins by these lines: {first_words(error)}.",
        fix="Reinstall or uninstall that distribution; other programs read the same file.",
    ) from error


def _entry_point_candidate(
    entry: importlib.metadata.EntryPoint, distribution: importlib.metadata.Distribution
) -> Candidate:
    name, version = entry.name, "of no version"
    try:
        name = canonicalize_name(_declared(distribution, "Name"))
        version = _declared(distribution, "Version")
        if name == OWN_DISTRIBUTION:
            return Candidate(name, version, entry.name, entry.load, None)
        if not entry.pattern.match(entry.value):
            raise ValueError(f"{entry.value!r} cannot be a module")
        origin = PluginOrigin(name, version, entry.name, entry.value, "")
        if is_editable(distribution):
            origin = replace(origin, version=version + content(origin.package))
        return Candidate(name, origin.version, entry.name, entry.load, tuple(distribution.requires or ()), origin)
    except Exception as error:  # noqa: BLE001  contains whatever is wrong with what one distribution says of itself
        return Candidate(name, version, entry.name, partial(_refuse, entry, distribution, error))


def _declared(distribution: importlib.metadata.Distribution, field: str) -> str:
    if field not in distribution.metadata:
        raise ValueError(f"no {field} in its METADATA")
    return distribution.metadata[field]


def _said(distribution: importlib.metadata.Distribution, field: str, *, otherwise: str) -> str:
    try:
        return _declared(distribution, field)
    except Exception:  # noqa: BLE001  a METADATA file may be malformed in any way
        return otherwise


def _refuse(
    entry: importlib.metadata.EntryPoint, distribution: importlib.metadata.Distribution, error: Exception
) -> NoReturn:
    raise PluginError(
        f"the metadata of its distribution in {distribution.locate_file('')} cannot be used",
        expected=f"a METADATA file with name and version, and a module in the entry point {entry.name} = {entry.value}",
        why=f"It was not imported: {first_words(error)}.",
        fix="Plugin author: write the entry point as \"name = 'package.module'\". User: reinstall the plugin.",
    )


def file_candidate(path: Path) -> Candidate:
    """Return the plugin in a Python file, not imported yet. Its version follows the content: results are cached by it.

    Raises:
        PluginError: There is no such file, or it cannot be read.
    """
    if path.suffix != ".py" or not path.is_file() or not os.access(path, os.R_OK):
        raise PluginError(
            f"{path} is not a plugin file",
            expected="a readable Python file ending in .py",
            why="A file is loaded only when it is named; folders are never searched.",
            fix="Give the path of the module that holds the hooks.",
        )
    module = _file_module(path)
    # The name of a file need not be UTF-8; this one is written into artifacts and printed.
    name = os.fsencode(path.stem).decode(errors="backslashreplace")
    origin = PluginOrigin(f"file:{name}", f"0+{hash_file(path)[:12]}", name, "", str(path.resolve()))
    return Candidate(origin.distribution, origin.version, origin.entry_point, module, origin=origin)


def _file_module(path: Path) -> Callable[[], ModuleType]:
    # Two files of one name, and installed modules of that name, must not meet in sys.modules.
    stem, digest = re.sub(r"\W", "_", path.stem), sha256(os.fsencode(path.resolve())).hexdigest()[:12]
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


def _reject_duplicates(results: Iterable[Plugin | Tombstone]) -> list[Plugin | Tombstone]:
    """Bury a plugin whose record names another entry point of the same distribution already took."""
    taken: set[tuple[str, type[Record], str]] = set()
    kept: list[Plugin | Tombstone] = []
    for result in results:
        if isinstance(result, Plugin):
            own = {(result.distribution, type(record), record.name) for record in result.records}
            clash = sorted(own & taken, key=lambda item: item[2])
            if clash:
                kept.append(_bury_duplicate(result, duplicate_name(clash[0][1], clash[0][2])))
                continue
            taken |= own
        kept.append(result)
    return kept


def _bury_duplicate(plugin: Plugin, error: PluginError) -> Tombstone:
    names = tuple(record.name for record in plugin.records)
    return Tombstone(plugin.distribution, plugin.version, plugin.entry_point, "records", error.what, str(error), names)
