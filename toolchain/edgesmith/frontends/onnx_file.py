"""The frontend for `.onnx` files and for directories that `Model.save` wrote."""

import hashlib
from dataclasses import replace
from pathlib import Path

from edgesmith.files import hash_directory, hash_file
from edgesmith.frontends.normalize import normalize_with_remarks
from edgesmith.host.interfaces import Frontend
from edgesmith.measure.machine import library_versions
from edgesmith.model import METADATA_FILE, Model, Provenance
from edgesmith.serialization import external_files, read_with_files
from edgesmith.task import Task


class OnnxFrontend(Frontend):
    """Reads an ONNX graph from any exporter, safely, and normalizes it."""

    def accepts(self, source: object) -> bool:
        """Return whether `source` names an `.onnx` file, existing or not, or a directory with a saved Model."""
        if not isinstance(source, str | Path):
            return False
        path = Path(source)
        return path.suffix == ".onnx" or (path / METADATA_FILE).is_file()

    def load(self, source: object, *, example_inputs: object = None) -> Model:
        """Return the normalized Model; its remarks say what could not be cleaned or upgraded.

        Raises:
            ModelError: The file is missing, damaged, unsafe or not a valid graph, or ONNX Runtime does not load it.
            UnsupportedOperatorError: It uses an operator that nothing here can run.
        """
        path = Path(str(source))
        if path.is_dir():
            model = Model.load(path)
        else:
            graph, files = read_with_files(path)
            versions = library_versions(("onnxscript", "onnx_ir", "onnx"))
            provenance = Provenance(str(path), "onnx", _hash_files(path, *files), versions=versions)
            model = Model(graph, Task(), provenance)
        normalized = normalize_with_remarks(model.ir)
        remarks = (*model.provenance.remarks, *normalized.remarks)
        provenance = replace(model.provenance, remarks=tuple(dict.fromkeys(remarks)))
        return replace(model, ir=normalized.model, provenance=provenance)

    def fingerprint(self, source: object, *, example_inputs: object = None) -> str:
        """Return a hash of the file and of its external data, or of all files of a saved Model."""
        path = Path(str(source))
        if path.is_dir():
            return hash_directory(path)
        return _hash_files(path, *external_files(path))


def _hash_files(*files: Path) -> str:
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()
