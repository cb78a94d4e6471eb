"""What every data source promises: batches that can be read again and again, and always the same ones."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesmith_calibration.errors import DataError

Array = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a graph for some samples. The first dimension of every array counts samples."""

    inputs: Mapping[str, Array]
    """Graph input name to array."""
    labels: Array | None = None
    """Integer class per sample, or token per position; None without labels."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return next((array.shape[0] for array in self.inputs.values()), 0)


class DataSource(ABC):
    """Samples for calibration or evaluation. Reading twice gives the same batches in the same order."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One phrase that says where the samples come from, for errors and reports."""

    @property
    @abstractmethod
    def has_labels(self) -> bool:
        """Whether batches carry labels."""

    @abstractmethod
    def labels(self) -> Array | None:
        """Return the labels of all samples without decoding their inputs; None where there are none."""

    @abstractmethod
    def sample_keys(self) -> Sequence[bytes]:
        """Return a content hash per sample, without its label. Equal samples have equal keys."""

    @abstractmethod
    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, in batches of `batch_size`. Use `batches` from outside."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order; the last batch may be smaller.

        Args:
            batch_size: Samples per batch, at least 1.

        Raises:
            DataError: A sample cannot be read, arrays disagree on the number of samples, or a value is not finite.
        """
        if batch_size < 1:
            raise DataError(
                f"batch size {batch_size}",
                expected="at least 1",
                why="data is read in batches",
                fix="pass a positive batch size",
            )
        for batch in self.read(np.arange(len(self)), batch_size):
            _check(batch, self.description)
            yield batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content: every sample and label, in order, and how raw data becomes inputs."""
        sink = hashlib.sha256(self.settings.encode())
        for key in self.sample_keys():
            sink.update(key)
        labels = self.labels()
        if labels is not None:
            sink.update(array_bytes(np.asarray(labels)))
        return sink.hexdigest()

    @property
    def settings(self) -> str:
        """What besides the samples decides the batches; part of the fingerprint."""
        return ""

    def select(self, indices: ArrayLike) -> "DataSource":
        """Return the samples at `indices`, in that order.

        Raises:
            DataError: An index does not exist.
        """
        return Subset(self, np.asarray(indices))

    def take(self, count: int) -> "DataSource":
        """Return the first `count` samples, or all where there are fewer."""
        return self if count >= len(self) else self.select(np.arange(max(count, 0)))


class Subset(DataSource):
    """Some samples of another source.

    Args:
        source: Where the samples come from.
        indices: Which ones, integers [samples].
    """

    def __init__(self, source: DataSource, indices: Array) -> None:
        if indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(source)):
            raise DataError(
                f"no such samples in {source.description}: {np.array2string(indices, threshold=8)}",
                expected=f"integers from 0 to {len(source) - 1}",
                why="samples are selected by their position",
                fix="select positions that exist",
            )
        self._source = source
        self._indices = indices.astype(np.intp).reshape(-1)

    def __len__(self) -> int:
        return int(self._indices.size)

    @property
    def description(self) -> str:
        """Where the samples come from, and how many of them are used."""
        return f"{len(self)} of {len(self._source)} samples of {self._source.description}"

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""
        return self._source.has_labels

    @property
    def settings(self) -> str:
        """As of the source."""
        return self._source.settings

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
            f"{description} holds no samples",
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


def _check(batch: Batch, description: str) -> None:
    for name, array in batch.inputs.items():
        if array.ndim == 0 or array.shape[0] != batch.size:
            raise DataError(
                f"input '{name}' of shape {list(array.shape)} in {description}",
                expected=f"{batch.size} samples along the first dimension, as the other inputs have",
                why="the first dimension of every input counts samples",
                fix="give every input one entry per sample",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            value = "NaN" if np.isnan(array).any() else "infinity"
            raise DataError(
                f"input '{name}' in {description} holds {value}",
                expected="finite values",
                why="one such value spoils every statistic and score that it reaches",
                fix="remove or repair the samples concerned",
            )
    if batch.labels is not None and batch.labels.shape[:1] != (batch.size,):
        raise labels_do_not_match(batch.labels.shape[0] if batch.labels.ndim else 1, batch.size, description)


def labels_do_not_match(labels: int, samples: int, description: str) -> DataError:
    """Return the error for labels that do not match the samples in number."""
    return DataError(
        f"{labels} labels for {samples} samples in {description}",
        expected="one label per sample",
        why="a score needs to know which label belongs to which sample",
        fix="correct the labels, or remove them to compare with the source model instead",
    )
