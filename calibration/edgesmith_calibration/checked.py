"""Holds data against the inputs that a graph declares, before anything expensive runs."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources.base import Array, Batch, DataSource


@dataclass(frozen=True, slots=True)
class InputForm:
    """What a graph declares of one input."""

    dtype: str
    """NumPy name, such as "float32" or "int64"."""
    shape: tuple[int | None, ...] | None = None
    """None for a free dimension; the first counts samples and is not compared. None altogether: of unknown rank."""
    empty: bool = False
    """Whether data may leave the input out: it gets an array of length 0 along its free dimensions, such as a cache
    before the first token."""


class CheckedSource(DataSource):
    """Another source, with every batch held against the graph's inputs.

    Arrays for inputs that the graph does not have are left out, and inputs that may be empty need none. Values are
    converted to the declared type where that keeps their kind: between floating-point types, and between integer types,
    where all values fit.

    Args:
        source: Where the samples come from.
        inputs: Graph input name to its declared form.
        batch_size: The one batch size that the graph takes, whatever a caller asks for; samples that do not fill a
            last batch are left out. None for a graph that takes any.

    Raises:
        DataError: There are fewer samples than one batch needs.
    """

    def __init__(self, source: DataSource, inputs: Mapping[str, InputForm], batch_size: int | None = None) -> None:
        self._source = source if batch_size is None else source.take(len(source) // batch_size * batch_size)
        self._batch_size = batch_size
        self._inputs = dict(inputs)
        self.description = source.description
        self.has_labels = source.has_labels
        if batch_size is not None and not self._source:
            raise DataError(
                f"there are {len(source)} samples in {source.description}",
                expected=f"at least {batch_size}, the batch size that the graph insists on",
                why="the graph cannot run on fewer",
                fix="give more samples, or export the model with a dynamic batch axis",
            )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the source's fingerprint and the declared forms."""
        return hashlib.sha256(
            f"{self._source.fingerprint}{sorted(self._inputs.items())}{self._batch_size}".encode()
        ).hexdigest()

    def select(self, indices: ArrayLike) -> DataSource:
        """Return the samples at `indices`, checked alike."""
        return CheckedSource(self._source.select(indices), self._inputs, self._batch_size)

    def take(self, count: int) -> DataSource:
        """Return the first `count` samples, rounded up to whole batches of the graph, or all where there are fewer."""
        return super().take(self._in_whole_batches(count))

    def sample(self, count: int, *, seed: int = 0) -> DataSource:
        """Return `count` samples from all over the source, rounded up to whole batches of the graph."""
        chosen = self._source.sample(self._in_whole_batches(count), seed=seed)
        return CheckedSource(chosen, self._inputs, self._batch_size)

    def _in_whole_batches(self, count: int) -> int:
        whole = self._batch_size or 1
        return -(-count // whole) * whole

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches with exactly the inputs of the graph.

        Raises:
            DataError: An input is missing, or its type, rank or a fixed dimension is another.
        """
        for batch in self._source.batches(self._batch_size or batch_size):
            inputs = {}
            for name, form in self._inputs.items():
                if name in batch.inputs:
                    inputs[name] = _fit(name, batch.inputs[name], form)
                elif form.empty and form.shape is not None:
                    inputs[name] = np.zeros([batch.size, *(size or 0 for size in form.shape[1:])], form.dtype)
                else:
                    raise self._missing(name, batch)
            yield Batch(inputs, batch.labels)

    def _missing(self, name: str, batch: Batch) -> DataError:
        return DataError(
            f"there is no array for the input '{name}' in the data: {self.description}",
            expected=f"arrays named {', '.join(self._inputs)}; there are {', '.join(batch.inputs) or 'none'}",
            why="every input of the graph needs a value",
            fix="rename the arrays like the inputs of the graph",
        )


def _fit(name: str, array: Array, form: InputForm) -> Array:
    wanted = np.dtype(form.dtype)
    converted = _converted(array, wanted)
    if converted is None:
        raise DataError(
            f"input '{name}' is given as {array.dtype}",
            expected=f"{wanted}, or values of its kind that it can hold",
            why="a graph computes in the types it declares",
            fix=f"store the array as {wanted}",
        )
    if form.shape is not None and not _is_of_shape(array, form.shape):
        declared = ", ".join("?" if size is None else str(size) for size in form.shape)
        raise DataError(
            f"input '{name}' is given with shape {list(array.shape)}",
            expected=f"[{declared}], the first being the samples",
            why="the graph's fixed dimensions do not stretch",
            fix="reshape, crop or pad the data, or correct the preprocessing of the model",
        )
    return converted


def _is_of_shape(array: Array, shape: tuple[int | None, ...]) -> bool:
    if array.ndim != len(shape):
        return False
    sizes = list(zip(shape, array.shape, strict=True))
    return all(size is None or size == found for size, found in sizes[1:])


def _converted(array: Array, wanted: "np.dtype[np.generic]") -> Array | None:
    """Return the values in the wanted type, or None where that would change their kind or lose a value."""
    if array.dtype == wanted:
        return array
    kinds = (array.dtype.kind, wanted.kind)
    if kinds == ("f", "f"):
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
        return converted if np.isfinite(converted).all() else None
    if kinds[0] in "iub" and kinds[1] in "iub":
        converted = array.astype(wanted)
        return converted if np.array_equal(converted, array) else None
    return None
