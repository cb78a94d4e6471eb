"""The store: results of steps, builds and measurements, kept under a key that covers everything they depend on.

A key is a full SHA-256 over canonical JSON, so a change of content, options, method version, library version, data or
seed is another key. Entries are written atomically: a run killed at any point leaves complete entries or none. What
is read back is held against the hash it was written with; a damaged entry counts as absent. A refused or failed step
is never stored.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgesmith.files import hash_directory, replace_directory, write_atomically
from edgesmith.own_code import own_version

if TYPE_CHECKING:
    from edgesmith.model import Model

FORMAT = 2
"""Raised when the layout of entries changes, so that old entries are not found."""

_FACTS = "facts.json"
_FILES = "files"

Facts = Mapping[str, Any]
"""JSON data about a result."""


def default_store_directory() -> Path:
    """Return `$EDGESMITH_STORE`, or `edgesmith` in the user's cache directory."""
    named = os.environ.get("EDGESMITH_STORE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgesmith"


def make_key(parts: Mapping[str, object]) -> str:
    """Return the key of a result that depends on exactly `parts`, which must be JSON data, and on Edgesmith's code."""
    text = json.dumps(
        {"format": FORMAT, "code": own_version(), **parts}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """Files from the store, with what was noted when they were made."""

    directory: Path
    digest: str
    """Hash of the files, names included."""
    facts: Facts


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model from the store, with what was noted when it was made."""

    model: "Model"
    facts: Facts


class Store:
    """A directory of finished results. Safe to share between processes; delete it at any time."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_store_directory()

    def files(self, area: str, key: str) -> StoredFiles | None:
        """Return the files stored under `key` in `area`, or None."""
        entry = self._entry(area, key)
        noted = _read_json(entry / _FACTS)
        if noted is None or not isinstance(noted.get("facts"), dict):
            return None
        try:
            digest = hash_directory(entry / _FILES)
        except OSError:
            return None
        return StoredFiles(entry / _FILES, digest, noted["facts"]) if digest == noted.get("digest") else None

    def keep_files(self, area: str, key: str, write: Callable[[Path], Facts]) -> StoredFiles:
        """Store what `write` puts into the empty directory it is given, with the JSON facts that it returns.

        Raises:
            OutputError: The store cannot be written.
        """
        entry = self._entry(area, key)
        with replace_directory(entry) as partial:
            (partial / _FILES).mkdir()
            facts = write(partial / _FILES)
            digest = hash_directory(partial / _FILES)
            noted = {"digest": digest, "facts": facts}
            (partial / _FACTS).write_text(json.dumps(noted, sort_keys=True, allow_nan=False))
        return StoredFiles(entry / _FILES, digest, facts)

    def model(self, key: str) -> StoredModel | None:
        """Return the model stored under `key`, or None."""
        from edgesmith.errors import ModelError
        from edgesmith.model import Model

        found = self.files("models", key)
        if found is None:
            return None
        try:
            return StoredModel(Model.load(found.directory), found.facts)
        except ModelError:
            return None

    def keep_model(self, key: str, model: "Model", facts: Facts) -> StoredModel:
        """Store `model` with JSON `facts` and return it as it will be read back.

        Raises:
            OutputError: The store cannot be written.
        """
        from edgesmith.model import Model

        def write(directory: Path) -> Facts:
            model.save(directory)
            return facts

        # Going on with the stored form makes a resumed run and an uninterrupted one the same.
        return StoredModel(Model.load(self.keep_files("models", key, write).directory), facts)

    @contextmanager
    def unfinished(self, key: str) -> Iterator[Path]:
        """Yield the directory for the state of the work that will be stored under `key`. It need not exist.

        What was written there stays when the process is killed or stopped with Ctrl-C, and is there when the same work
        starts again. It is removed when the block ends, also with an error: work that failed starts afresh.
        """
        directory = self._entry("unfinished", key)
        try:
            yield directory
        except KeyboardInterrupt:
            raise
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)

    def facts(self, key: str) -> Facts | None:
        """Return the JSON facts (a measurement) stored under `key`, or None."""
        return _read_json(self._entry("facts", key).with_suffix(".json"))

    def keep_facts(self, key: str, facts: Facts) -> None:
        """Store JSON `facts` under `key`.

        Raises:
            OutputError: The store cannot be written.
        """
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
        write_atomically(self._entry("facts", key).with_suffix(".json"), text)

    def _entry(self, area: str, key: str) -> Path:
        return self.directory / area / key[:2] / key


def _read_json(path: Path) -> Facts | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return cast("Facts", data) if isinstance(data, dict) else None
