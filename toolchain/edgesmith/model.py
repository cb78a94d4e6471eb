"""Model: a graph with its task and its provenance, loaded safely and saved atomically."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir
from pydantic import TypeAdapter, ValidationError

from edgesmith.digest import digest_graph
from edgesmith.errors import ModelError
from edgesmith.files import hash_file, replace_directory
from edgesmith.serialization import read_onnx, write_onnx
from edgesmith.task import Task

MODEL_FILE = "model.onnx"
METADATA_FILE = "edgesmith.json"
ASSETS_DIRECTORY = "assets"
FORMAT = 1
"""Version of the directory layout and of `edgesmith.json`."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a Model comes from: its source, who read it, and the steps that it has been through."""

    source: str
    """What the user named: a path, a hub id, or the class of a module."""
    frontend: str
    digest: str
    """Hash of the source's content."""
    steps: tuple[str, ...] = ()
    """Steps applied since, each as "name version"."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that produced the graph."""
    remarks: tuple[str, ...] = ()
    """What reading the source could not do or undid, in sentences for the report."""
    fixed_sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes that were written into open dimensions of the source's inputs, by the dimension's name."""


@dataclass(frozen=True, slots=True)
class Model:
    """The one intermediate representation: an `onnx_ir` graph, what it is for, and where it comes from.

    A Model is a value: methods return new ones and never edit `ir` in place. Use `clone` to start a rewrite.
    """

    ir: onnx_ir.Model
    task: Task
    provenance: Provenance
    assets: Mapping[str, bytes] = field(default_factory=dict)
    """Files that preprocessing needs (tokenizer and so on), by plain file name."""

    @property
    def graph(self) -> onnx_ir.Graph:
        """The main graph."""
        return self.ir.graph

    def clone(self) -> "Model":
        """Return a Model whose graph can be edited freely. Weight arrays are shared until replaced."""
        return replace(self, ir=self.ir.clone())

    def with_ir(self, graph: onnx_ir.Model) -> "Model":
        """Return this Model around another graph."""
        return replace(self, ir=graph)

    def metadata(self) -> dict[str, Any]:
        """Return task, provenance and asset names as JSON data."""
        return {
            "format": FORMAT,
            "task": self.task.model_dump(mode="json"),
            "provenance": _PROVENANCE.dump_python(self.provenance, mode="json"),
            "assets": sorted(self.assets),
        }

    def digest(self) -> str:
        """Return a hash of graph, weights, task and assets, the same for equal models in every process and file layout.

        Provenance is left out: it says where a model comes from, not what it is.
        """
        assets = {name: hashlib.sha256(content).hexdigest() for name, content in self.assets.items()}
        parts = {"graph": digest_graph(self.ir), "task": self.task.model_dump(mode="json"), "assets": assets}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, directory: str | Path, *, external_data: bool | None = None) -> Path:
        """Write `model.onnx`, `edgesmith.json` and the assets to `directory`, as a whole or not at all.

        Args:
            directory: A new or empty directory, or one that holds an earlier saved Model, which is replaced.
            external_data: Put weights into `model.onnx.data`. The default does so above 256 MiB.

        Returns:
            The directory.

        Raises:
            OutputError: It could not be written. An earlier Model there is unchanged.
        """
        for name in self.assets:
            _require_plain(name)
        with replace_directory(directory, marker=METADATA_FILE) as partial:
            write_onnx(self.ir, partial / MODEL_FILE, external_data=external_data)
            if self.assets:
                (partial / ASSETS_DIRECTORY).mkdir()
            for name, content in self.assets.items():
                (partial / ASSETS_DIRECTORY / name).write_bytes(content)
            text = json.dumps(self.metadata(), indent=2, sort_keys=True, ensure_ascii=False)
            (partial / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
        return Path(directory)

    @classmethod
    def load(cls, path: str | Path) -> "Model":
        """Return the Model in a directory that `save` wrote, or the graph of a plain `.onnx` file as it is.

        Weights in external data are mapped, not read.

        Raises:
            ModelError: The graph or its metadata is missing, damaged or unsafe (see `serialization.read_onnx`).
        """
        path = Path(path)
        if not path.is_dir():
            graph = read_onnx(path)
            return cls(graph, Task(), Provenance(str(path), "onnx", hash_file(path)))
        graph = read_onnx(path / MODEL_FILE)
        task, provenance, names = _read_metadata(path / METADATA_FILE)
        return cls(graph, task, provenance, {name: _read_asset(path / ASSETS_DIRECTORY, name) for name in names})


_PROVENANCE = TypeAdapter(Provenance)


def _read_metadata(path: Path) -> tuple[Task, Provenance, list[str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise _bad_metadata(path, f"has format {data['format']!r}, this version reads {FORMAT}")
        return Task.model_validate(data["task"]), _PROVENANCE.validate_python(data["provenance"]), list(data["assets"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        reason = f"lacks the entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise _bad_metadata(path, f"cannot be read: {reason}") from error


def _read_asset(directory: Path, name: str) -> bytes:
    _require_plain(name)
    file = directory / name
    if file.is_symlink() or not file.is_file():
        raise _bad_metadata(file, "is named by the metadata and is not a regular file of the model's directory")
    return file.read_bytes()


def _require_plain(name: str) -> None:
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith(".") or "\0" in name:
        raise ModelError(
            f"{name!r} cannot be the name of an asset.",
            expected="a plain file name without directories",
            why="Assets are written into the model's directory and nowhere else.",
            fix="Rename the file.",
        )


def _bad_metadata(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"`{path}` {reason}.",
        expected=f"a directory written by Edgesmith, with `{MODEL_FILE}` and `{METADATA_FILE}`",
        why="Without its metadata a model has no preprocessing and no task.",
        fix=f"Save the model again, or name the `{MODEL_FILE}` file itself.",
    )
