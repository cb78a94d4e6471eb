"""Finds what a user wants checked: a plugin file, an installed distribution, or one record of one."""

from pathlib import Path

from packaging.utils import canonicalize_name

from edgesmith.errors import PluginError
from edgesmith.host.loader import load_file
from edgesmith.host.names import suggest
from edgesmith.host.plugin import Plugin, Tombstone
from edgesmith.host.registry import Registry


def find_subject(word: str, registry: Registry) -> tuple[Registry, str | None]:
    """Return the registry that holds what `word` names, and the name of a record if it is only one.

    Args:
        word: The path of a plugin file, the name of a distribution or entry point, or the name of a record.
        registry: What is installed.

    Raises:
        PluginError: There is no such plugin, or it does not load.
    """
    if word.endswith(".py") or Path(word).is_file():
        return Registry([loaded(load_file(Path(word)))]), None
    name = canonicalize_name(word)
    everything: list[Plugin | Tombstone] = [*registry.plugins, *registry.tombstones]
    named = [
        plugin
        for plugin in everything
        if name in (plugin.distribution, canonicalize_name(plugin.entry_point)) or word in _names(plugin)
    ]
    if not named:
        known = [known for plugin in registry.plugins for known in (plugin.distribution, *_names(plugin))]
        raise PluginError(
            f"there is no plugin {word!r}",
            expected="a Python file, the name of an installed distribution, or the name of something that one brings",
            why="A plugin is loaded only when it is installed or its file is named; folders are never searched.",
            fix=f"{suggest(word, known)} `edgesmith plugins` lists what is installed; a project is installed with "
            "`python -m pip install --editable .` in its folder.",
        )
    found = [loaded(plugin) for plugin in named]
    whole = any(name in (plugin.distribution, canonicalize_name(plugin.entry_point)) for plugin in found)
    return Registry(found), None if whole else word


def _names(plugin: Plugin | Tombstone) -> tuple[str, ...]:
    return plugin.names if isinstance(plugin, Tombstone) else tuple(record.name for record in plugin.records)


def loaded(plugin: Plugin | Tombstone) -> Plugin:
    """Return a plugin that is whole.

    Raises:
        PluginError: It does not load.
    """
    if isinstance(plugin, Plugin):
        return plugin
    raise PluginError(
        f"{plugin.label} does not load: at {plugin.stage}, {plugin.error}",
        expected="a plugin whose module imports and whose records are valid",
        why="Nothing of it can be checked, listed or used.",
        fix="`edgesmith doctor` shows the whole error; for a file, `edgesmith --plugin FILE doctor`.",
    )
