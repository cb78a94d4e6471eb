"""Where a plugin's code is, so that another process can load it again."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesmith.host.candidate import Candidate
    from edgesmith.host.plugin import Plugin


@dataclass(frozen=True, slots=True)
class PluginOrigin:
    """How to load one plugin again."""

    distribution: str
    version: str
    entry_point: str
    value: str
    """What its entry point names: a module, or something in one ("package.module:name")."""
    file: str
    """The plugin's own file where it was named by its path; else empty."""

    @property
    def package(self) -> str:
        """The top-level package or module of what its entry point names."""
        return self.value.partition(":")[0].partition(".")[0].strip()

    @classmethod
    def of(cls, plugin: "Plugin") -> "PluginOrigin":
        """Return the origin of a plugin that is loaded."""
        file = plugin.module.__file__ if plugin.distribution.startswith("file:") else None
        return cls(plugin.distribution, plugin.version, plugin.entry_point, plugin.module.__name__, file or "")

    def candidate(self) -> "Candidate":
        """Return the plugin, not imported yet.

        Raises:
            PluginError: Its file is gone.
        """
        from edgesmith.host.candidate import Candidate
        from edgesmith.host.loader import file_candidate

        if self.file:
            return file_candidate(Path(self.file))
        entry = EntryPoint(self.entry_point, self.value, "")
        return Candidate(self.distribution, self.version, self.entry_point, entry.load)
