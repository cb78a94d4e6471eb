"""Arrays of many batches in one file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


class ArrayArchive:
    """An archive in numpy's format that takes one array after another, so that only one batch is in memory."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w")

    def __enter__(self) -> "ArrayArchive":
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def add(self, index: int, arrays: Facts) -> None:
        """Write the arrays of one batch, by position: an output may be called what no file can."""
        import numpy

        for position, array in enumerate(map(numpy.asarray, arrays.values())):
            # Texts, which numpy would pickle as objects, have a type of their own, which ONNX Runtime takes too.
            plain = array.astype(numpy.str_) if array.dtype.kind == "O" else array
            # Without the time of writing, the same arrays give the same file, and it need not be sent again.
            entry = zipfile.ZipInfo(f"{index}-{position}.npy")
            with self._archive.open(entry, "w", force_zip64=True) as stream:
                numpy.lib.format.write_array(stream, plain, allow_pickle=False)


def read_batch(archive: Any, index: int, names: Sequence[str]) -> Facts:
    """Return the arrays of one batch by name, out of an opened archive."""
    return {name: archive[f"{index}-{position}"] for position, name in enumerate(names)}
