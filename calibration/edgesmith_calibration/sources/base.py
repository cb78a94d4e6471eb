"""What every data source promises: batches that can be read again and again, and always the same ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesmith_calibration.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a graph for some samples. The first dimension of every array counts samples."""

    inputs: Mapping[str, Array]
    """Graph input name to array."""
    labels: Array | None = None
    """Integer class per sample, or token per position; None without labels."""

    @property
    def size(self) -> int:
        """Number of samples: the first dimension of the first array that has one, else 1."""
        return next((array.shape[0] for array in self.inputs.values() if array.ndim), 1)


class DataSource(ABC):
    """Samples for calibration or evaluation. Reading twice gives the same batches in the same order."""

    # Attributes, not abstract properties: a source may set them, or compute them late as a cached property.
    description: str
    """One phrase that says where the samples come from, for errors and reports."""
    has_labels: bool
    """Whether batches carry labels."""
    fingerprint: str
    """Hash of the content: equal for equal batches, on any machine."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order; the last batch may be smaller.

        Args:
            batch_size: Samples per batch, at least 1.

        Raises:
            DataError: A sample cannot be read, arrays disagree on the number of samples, or a value is not finite.
        """

    def select(self, indices: ArrayLike) -> "DataSource":
        """Return the samples at `indices`, which ascend.

        Raises:
            DataError: An index does not exist.
        """
        from edgesmith_calibration.sources.iterables import as_samples

        return as_samples(self).select(indices)

    def take(self, count: int) -> "DataSource":
        """Return the first `count` samples, or all where there are fewer."""
        return self if count >= len(self) else self.select(np.arange(max(count, 0)))

    def sample(self, count: int, *, seed: int = 0) -> "DataSource":
        """Return `count` samples from all over the source, classes in equal shares, or all where there are fewer.

        Which ones depends on their content and on `seed` alone. They keep the source's order.
        """
        from edgesmith_calibration.sources.split import choose

        return self if count >= len(self) else self.select(choose(self, count, seed=seed))


def require_batch_size(batch_size: int) -> None:
    """Refuse a batch size below 1.

    Raises:
        DataError: It is.
    """
    if batch_size < 1:
        raise DataError(
            f"batch size {batch_size}",
            expected="at least 1",
            why="data is read in batches",
            fix="pass a positive batch size",
        )


def check_batch(batch: Batch, description: str, start: int, name_of: Callable[[int], str]) -> None:
    """Refuse a batch that would spoil a statistic or a score.

    Args:
        batch: The batch.
        description: Where it comes from.
        start: Position of its first sample in the source.
        name_of: Returns what a sample is called, by its position in the source.

    Raises:
        DataError: Arrays disagree on the number of samples, or a floating-point input is not finite.
    """
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
            spoilt = ~np.isfinite(array.reshape(array.shape[0], -1)).all(axis=1)
            raise DataError(
                f"input '{name}' holds {value} in {name_of(start + int(spoilt.argmax()))}; it is the first such sample",
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


def whole_labels(labels: Array, description: str) -> Array:
    """Return labels that are integers, also where they are stored as floats.

    Raises:
        DataError: They are texts, objects, fractions, or not finite.
    """
    if labels.dtype.kind in "iub":
        return labels
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and np.array_equal(labels, np.rint(labels)):
        return labels.astype(np.int64)
    shown = ", ".join(repr(one) for one in labels.reshape(-1)[:3].tolist())
    raise DataError(
        f"the labels in {description} are {labels.dtype}: {shown}",
        expected="labels must be integers 0..N-1 for N classes",
        why="a label is the index of the model's output for its class",
        fix="store each label as the index of its class, or leave labels out to compare with the source model instead",
    )
