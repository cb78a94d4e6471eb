"""The store: results of steps and measurements, kept under a key that covers everything they depend on.

A key is a full SHA-256 over canonical JSON, so a change of content, options, method version, library version, data or
seed is another key. Entries are written atomically: a run killed at any point leaves complete entries or none. A
refused or failed step is never stored.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgesmith.files import replace_directory, write_atomically

if TYPE_CHECKING:
    from edgesmith.model import Model

FORMAT = 1
"""Raised when the layout of entries changes, so that old entries are not found."""

_FACTS = "facts.json"


def default_store_directory() -> Path:
    """Return `$EDGESMITH_STORE`, or `edgesmith` in the user's cache directory."""
    named = os.environ.get("EDGESMITH_STORE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgesmith"


def make_key(parts: Mapping[str, object]) -> str:
    """Return the key of a result that depends on exactly `parts`, which must be JSON data."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model from the store, with what was noted when it was made."""

    model: "Model"
    facts: Mapping[str, object]


class Store:
    """A directory of finished results. Safe to share between processes; delete it at any time."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_store_directory()

    def model(self, key: str) -> StoredModel | None:
        """Return the model stored under `key`, or None. A damaged entry counts as absent."""
        from edgesmith.errors import ModelError
        from edgesmith.model import Model

        entry = self._entry("models", key)
        facts = _read_json(entry / _FACTS)
        if facts is None:
            return None
        try:
            return StoredModel(Model.load(entry / "model"), facts)
        except ModelError:
            return None

    def keep_model(self, key: str, model: "Model", facts: Mapping[str, object]) -> StoredModel:
        """Store `model` with JSON `facts` and return it as it will be read back.

        Raises:
            OutputError: The store cannot be written.
        """
        from edgesmith.model import Model

        entry = self._entry("models", key)
        with replace_directory(entry) as partial:
            model.save(partial / "model")
            (partial / _FACTS).write_text(json.dumps(facts, sort_keys=True, allow_nan=False))
        # Going on with the stored form makes a resumed run and an uninterrupted one the same.
        return StoredModel(Model.load(entry / "model"), facts)

    def facts(self, key: str) -> Mapping[str, object] | None:
        """Return the JSON facts (a measurement) stored under `key`, or None."""
        return _read_json(self._entry("facts", key).with_suffix(".json"))

    def keep_facts(self, key: str, facts: Mapping[str, object]) -> None:
        """Store JSON `facts` under `key`.

        Raises:
            OutputError: The store cannot be written.
        """
        write_atomically(
            self._entry("facts", key).with_suffix(".json"), json.dumps(facts, sort_keys=True, allow_nan=False)
        )

    def _entry(self, area: str, key: str) -> Path:
        return self.directory / area / key[:2] / key


def _read_json(path: Path) -> Mapping[str, object] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return cast("Mapping[str, object]", data) if isinstance(data, dict) else None
