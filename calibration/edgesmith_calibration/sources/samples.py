"""Sources that know their samples one by one: what can be selected, compared and split."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources.base import Array, Batch, DataSource, check_batch, require_batch_size

Indices = NDArray[np.intp]


class SampleSource(DataSource):
    """A source with a label and a content hash per sample."""

    settings: str = ""
    """What besides the samples decides the batches; part of the fingerprint."""

    @abstractmethod
    def labels(self) -> Array | None:
        """Return the labels of all samples, without decoding inputs where possible; None where there are none."""

    @abstractmethod
    def sample_keys(self) -> Sequence[bytes]:
        """Return a content hash per sample, without its label. Equal samples have equal keys."""

    @abstractmethod
    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, in batches of `batch_size`."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order; the last batch may be smaller."""
        require_batch_size(batch_size)
        start = 0
        for batch in self.read(np.arange(len(self)), batch_size):
            check_batch(batch, self.description, start, self.name_of)
            start += batch.size
            yield batch

    def name_of(self, index: int) -> str:
        """Return what the sample at `index` is called in errors: its position, from 0, in the data as it came."""
        return f"sample {index} of {self.description}"

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of every sample and label, in order, and of how raw data becomes inputs."""
        sink = hashlib.sha256(self.settings.encode())
        for key in self.sample_keys():
            sink.update(key)
        labels = self.labels()
        if labels is not None:
            sink.update(array_bytes(labels))
        return sink.hexdigest()

    def select(self, indices: ArrayLike) -> "SampleSource":
        """Return the samples at `indices`, in that order.

        Raises:
            DataError: An index does not exist.
        """
        return Subset(self, np.asarray(indices))


class Subset(SampleSource):
    """Some samples of another source.

    Args:
        source: Where the samples come from.
        indices: Which ones, integers [samples].
    """

    def __init__(self, source: SampleSource, indices: Array) -> None:
        if indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(source)):
            raise DataError(
                f"no such samples in {source.description}: {np.array2string(indices, threshold=8)}",
                expected=f"integers from 0 to {len(source) - 1}",
                why="samples are selected by their position",
                fix="select positions that exist",
            )
        self._source = source
        self._indices = indices.astype(np.intp).reshape(-1)
        self.description = f"{self._indices.size} of {len(source)} samples of {source.description}"
        self.has_labels = source.has_labels
        self.settings = source.settings

    def __len__(self) -> int:
        return int(self._indices.size)

    def name_of(self, index: int) -> str:
        """Return what the selected sample at `index` is called: its position in what it was selected from."""
        return self._source.name_of(int(self._indices[index]))

    def labels(self) -> Array | None:
        """Return the labels of the selected samples."""
        labels = self._source.labels()
        return None if labels is None else labels[self._indices]

    def sample_keys(self) -> Sequence[bytes]:
        """Return a content hash per selected sample."""
        keys = self._source.sample_keys()
        return [keys[index] for index in self._indices.tolist()]

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices` of this selection."""
        return self._source.read(self._indices[indices], batch_size)


def chunks(indices: Indices, batch_size: int) -> Iterator[Indices]:
    """Yield `indices` in pieces of `batch_size`."""
    for start in range(0, indices.size, batch_size):
        yield indices[start : start + batch_size]


def array_bytes(array: Array) -> bytes:
    """Return what an array is, as bytes to hash: dtype, shape and values."""
    head = f"{array.dtype.str}{array.shape}"
    # Strings of an object array have no fixed layout; their printed form is their content.
    body = repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
    return head.encode() + body


def key_of_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Return the content hash of one sample given as named arrays."""
    sink = hashlib.sha256()
    for name in sorted(arrays):
        sink.update(f"{len(name)}:{name}".encode())
        sink.update(array_bytes(arrays[name]))
    return sink.digest()


def require_samples(count: int, description: str) -> None:
    """Refuse a source without samples.

    Raises:
        DataError: `count` is 0.
    """
    if count == 0:
        raise DataError(
            f"there are no samples in {description}",
            expected="at least one sample",
            why="nothing can be calibrated or measured without data",
            fix="check the path and the format of the data",
        )


def missing_file(path: Path, expected: str) -> DataError:
    """Return the error for data that is not where it should be."""
    found = "is a folder" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
    return DataError(
        f"{path} {found}",
        expected=expected,
        why="calibration and evaluation need data",
        fix="correct the path; relative paths start at the folder of the data file",
    )
