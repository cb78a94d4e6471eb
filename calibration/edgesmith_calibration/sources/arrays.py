"""Samples that are arrays already: in memory or in an .npz file."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources.base import Array, Batch, labels_do_not_match, whole_labels
from edgesmith_calibration.sources.samples import (
    Indices,
    SampleSource,
    chunks,
    key_of_arrays,
    missing_file,
    require_samples,
)

_DAMAGED = (ValueError, OSError, EOFError, KeyError, MemoryError, OverflowError, NotImplementedError)
"""What NumPy and zipfile raise for damaged or hostile files, besides errors of their own."""
_LABEL_NAMES = ("labels", "label")


class ArraySource(SampleSource):
    """Arrays in memory.

    Args:
        inputs: Graph input name to array [samples, ...].
        labels: Labels [samples, ...], or None.
        description: Where they come from.

    Raises:
        DataError: There is no sample, arrays disagree on the number of samples, or labels are not integers.
    """

    def __init__(
        self, inputs: Mapping[str, Array], labels: Array | None = None, description: str = "arrays in memory"
    ) -> None:
        self._inputs = {name: np.asarray(array) for name, array in inputs.items()}
        self._labels = None if labels is None else np.asarray(labels)
        self.description = description
        self.has_labels = labels is not None
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in self._inputs.items()}
        self._length = min(lengths.values(), default=0)
        require_samples(self._length, description)
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"arrays of different lengths in {description}: {lengths}",
                expected="one entry per sample in every array",
                why="the first dimension of every input counts samples",
                fix="store the arrays with equal first dimensions",
            )
        if self._labels is not None and self._labels.shape[:1] != (self._length,):
            raise labels_do_not_match(len(np.atleast_1d(self._labels)), self._length, description)
        if self._labels is not None:
            self._labels = whole_labels(self._labels, description)

    def __len__(self) -> int:
        return self._length

    def labels(self) -> Array | None:
        """Return the labels as they were given."""
        return self._labels

    def sample_keys(self) -> Sequence[bytes]:
        """Return a content hash per sample."""
        return [
            key_of_arrays({name: array[index] for name, array in self._inputs.items()}) for index in range(self._length)
        ]

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`."""
        for chosen in chunks(indices, batch_size):
            labels = None if self._labels is None else self._labels[chosen]
            yield Batch({name: array[chosen] for name, array in self._inputs.items()}, labels)


class NpzSource(ArraySource):
    """An .npz file of arrays named like the graph's inputs, with an optional array of labels.

    Args:
        path: The file. Pickled objects in it are refused.
        labels: Name of the array of labels. None: `labels` or `label`, if there is one.

    Raises:
        DataError: The file is missing, truncated, not an .npz file, holds objects, or its arrays do not match.
    """

    def __init__(self, path: Path, labels: str | None = None) -> None:
        if not path.is_file():
            raise missing_file(path, "an .npz file")
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is truncated, or another kind of file")
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} cannot be read: {error}",
                expected="an .npz file of numeric arrays named like the inputs of the graph",
                why="each array becomes one input",
                fix="write it with numpy.savez(path, input_name=array, labels=labels)",
            ) from error
        if labels is not None and labels not in arrays:
            raise DataError(
                f"there is no array '{labels}' in {path}",
                expected=f"the labels under that name; there are {', '.join(arrays) or 'no arrays'}",
                why="the data description says that the labels are there",
                fix="correct `labels` in the data description, or leave it out for samples without labels",
            )
        chosen = labels or next((name for name in _LABEL_NAMES if name in arrays), "")
        super().__init__({name: arrays[name] for name in arrays if name != chosen}, arrays.get(chosen), str(path))
