"""What the loader makes of one plugin: either a working `Plugin` or a `Tombstone` that says what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import pluggy

from edgesmith.host.records import Record

Trace = Callable[[str], None]
"""Receives one line for each call into a plugin."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that loaded."""

    distribution: str
    """Name of the installed distribution, or "file:NAME" for a file named on the command line."""
    version: str
    entry_point: str
    module: ModuleType = field(repr=False)
    manager: pluggy.PluginManager = field(repr=False)
    """Holds this plugin alone, so that a fault in one hook cannot stop another plugin's."""
    hooks: tuple[str, ...]
    """Names of the hooks that it implements, sorted."""
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        """Distribution and version, as error messages name the plugin."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A plugin that did not load. It stays listed with its error, and everything else still works."""

    distribution: str
    version: str
    entry_point: str
    stage: str
    """What the host was doing: "version", "import", "api", "hooks" or "records"."""
    error: str
    """First line of the error."""
    traceback: str = field(repr=False)
    """Everything that is known, for `edgesmith doctor`."""
    names: tuple[str, ...] = ()
    """Names of the records it would have brought, as far as they are known."""

    @property
    def label(self) -> str:
        """Distribution and version, as error messages name the plugin."""
        return f"{self.distribution} {self.version}"
