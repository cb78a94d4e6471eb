"""What the process of a step must know before it can begin, as a file that holds plain data."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from edgesmith.errors import PluginError
from edgesmith.host.dialect import Dialect
from edgesmith.host.origin import PluginOrigin
from edgesmith.isolation.folder import REQUEST_FILE

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A data source of the run, which the process of the step reads through it."""

    number: int
    description: str
    has_labels: bool


Work = Literal["check", "apply", "lower", "accept", "build", "finish", "lint"]
"""The first two are of a method, `lint` is of a rule, and the others are of a target."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One piece of work: whose, with what. The model lies beside it."""

    import_path: tuple[str, ...]
    """Where Python looks for modules."""
    plugins: tuple[PluginOrigin, ...]
    work: Work
    record: str
    """Qualified name of the method or lint; of a target its name, or the path of the profile that extends one."""
    directory: str
    """What a target builds into; else empty."""
    options: Mapping[str, Any]
    """Options of a method that were given; defaults are filled in again."""
    dialect: Mapping[str, Any]
    dialect_type: str
    """Dotted path of the dialect's class: a target may say more than `Dialect` does."""
    scratch: str
    checkpoint: str | None
    seed: int
    threads: int
    calibration: SourceFacts | None
    source_calibration: SourceFacts | None
    has_trial: bool
    """Whether the run lowers and times what the step tries."""
    metric: str | None
    """Qualified name of the metric that the run is judged by."""

    def write(self, folder: Path) -> None:
        """Write the request into `folder`."""
        # Python's own JSON keeps infinities and NaN apart, which an option may be.
        (folder / REQUEST_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "StepRequest":
        """Return the request in `folder`."""
        return _REQUEST.validate_python(json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))


_REQUEST = TypeAdapter(StepRequest)


def pack_dialect(dialect: Dialect) -> tuple[dict[str, Any], str]:
    """Return a dialect as JSON data, and the dotted path of its class."""
    kind = type(dialect)
    return TypeAdapter(kind).dump_python(dialect, mode="json"), f"{kind.__module__}:{kind.__qualname__}"


def unpack_dialect(request: StepRequest) -> Dialect:
    """Return the dialect of a request."""
    module, _, name = request.dialect_type.partition(":")
    found: Dialect = TypeAdapter(getattr(importlib.import_module(module), name)).validate_python(request.dialect)
    return found


def load_again(origins: tuple[PluginOrigin, ...]) -> "Registry":
    """Return a registry of just these plugins.

    Raises:
        PluginError: A plugin is another one by now.
    """
    from edgesmith.host.plugin import Plugin
    from edgesmith.host.registry import Registry

    loaded = []
    for origin in origins:
        plugin = origin.candidate().load()
        if isinstance(plugin, Plugin) and plugin.version != origin.version:
            raise PluginError(
                f"{origin.file} was changed while the run works with it",
                expected=f"the content that is known as {origin.distribution} {origin.version}",
                why="A result would be stored under the version of other code.",
                fix="Run the same command again.",
            )
        loaded.append(plugin)
    return Registry(loaded)
