"""What of an artifact goes to the device, and the model that it holds."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgesmith.artifact import MANIFEST_FILE, PROFILE_FILE, REBUILT, holds, read_entry, read_use
from edgesmith.errors import ModelError
from edgesmith.model import Model

BUILD_RECIPE, BUILD_SCRIPT, SHELL_SCRIPT = "build.json", "build.py", "build.sh"
ENGINE = "engine.plan"
_TRAVELS = REBUILT | {BUILD_RECIPE, BUILD_SCRIPT, SHELL_SCRIPT}


@dataclass(frozen=True, slots=True)
class Shipment:
    """An artifact whose files are what they were when it was compiled."""

    entry: Path
    target: str
    """Name of the target that it was compiled for, or the profile in it that extends one."""
    files: tuple[Path, ...]
    """The model with its weights, and how to build an engine from it."""
    as_written: bool
    """Whether the graph is for another runtime, and ONNX Runtime runs it in its place, as it is written."""

    @property
    def size_bytes(self) -> int:
        """Size of everything that is copied."""
        return sum(file.stat().st_size for file in self.files)


def read_shipment(directory: Path) -> Shipment:
    """Return what of the artifact in `directory` goes to a device.

    Raises:
        ModelError: It is no artifact, or a file is missing or not what was compiled.
    """
    entry = read_entry(directory)
    manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    known = manifest.get("files") if isinstance(manifest.get("files"), dict) else {}
    built = dict(manifest["build"]) if isinstance(manifest.get("build"), dict) else {}
    files = []
    for name in _travelling(sorted(known), entry.name, built):
        file, facts = directory / name, known[name]
        inside = directory.resolve() == file.resolve().parent
        if name in REBUILT and not file.exists():
            continue
        # An engine was built by whoever was last; `build.py` takes it on the device if its record says that it fits.
        if not inside or not (name in REBUILT or holds(file, dict(facts).get("sha256"))):
            raise _changed(directory, name)
        files.append(file)
    if entry not in files:
        raise _changed(directory, entry.name)
    as_written = built.get("runtime") != "onnxruntime"  # as the artifact's own validator reads it
    target = str(manifest.get("target", ""))
    if PROFILE_FILE in known:
        target = str(directory / PROFILE_FILE)
        if not holds(directory / PROFILE_FILE, dict(known[PROFILE_FILE]).get("sha256")):
            raise _changed(directory, PROFILE_FILE)
    return Shipment(entry, target, tuple(files), as_written)


def stage_files(entry: Path) -> tuple[Path, ...]:
    """Return what goes to a device of a stage whose files a target has just built around `entry`."""
    recipe = entry.parent / BUILD_RECIPE
    built = json.loads(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    names = sorted(file.name for file in entry.parent.iterdir() if file.is_file())
    return tuple(entry.parent / name for name in _travelling(names, entry.name, built))


def load_model(entry: Path) -> Model:
    """Return the model of an artifact as it is, with the task and the assets that travel with it.

    Raises:
        ModelError: A file is missing or damaged.
    """
    task, assets = read_use(entry.parent)
    return replace(Model.load(entry), task=task, assets=assets)


def _travelling(names: Iterable[str], entry: str, built: Mapping[str, object]) -> list[str]:
    """Return which files an engine or a session is made from."""
    # Weights of a large model stand beside it, in files whose names start with its own.
    # What an engine is built from may be another graph than the one that the reference runs.
    stems = (entry, str(built.get("model") or entry))
    return [name for name in names if name in _TRAVELS or name.startswith(stems)]


def _changed(directory: Path, name: str) -> ModelError:
    return ModelError(
        f"The file {name} of the artifact {directory} is missing or was changed.",
        expected="the files that `edgesmith compile` wrote, with the hashes in the manifest",
        why="Numbers would be written down for another model than the one that was compiled.",
        fix="Compile again.",
    )
