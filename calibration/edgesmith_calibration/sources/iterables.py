"""Samples that come one by one from Python objects, such as a `datasets.Dataset` or a `DataLoader`."""

import importlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgesmith_calibration.errors import DataError, EdgesmithError
from edgesmith_calibration.sources.base import Array, Batch, DataSource, labels_do_not_match
from edgesmith_calibration.sources.samples import (
    Indices,
    SampleSource,
    key_of_arrays,
    require_samples,
)

_LABELS = ("labels", "label")
_OWN_LABELS = "__labels__"
_ITEMS_PER_BATCH = 8
_NOT_THEIRS = ("<frozen ", importlib.__path__[0], str(Path(__file__).parents[1]))
"""Where a fault of the user's code is not to be looked for: in the import machinery, and here."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the items of an iterable become samples."""

    inputs: tuple[str, ...] = ()
    """Names of the graph inputs. Empty: every numeric field but the labels, which needs items that are mappings."""
    labels: str | None = None
    """Field with the labels. None: "labels" or "label" where there is one. Empty: no labels."""
    batched: bool = False
    """Whether an item is a batch, with samples along the first dimension, rather than one sample."""


@dataclass(frozen=True, slots=True)
class _Sample:
    inputs: dict[str, Array]
    label: Array | None


@dataclass(frozen=True, slots=True)
class _Summary:
    keys: list[bytes]
    labels: Array | None


class CallableSource(SampleSource):
    """Samples from a function that returns a new iterable at every call. Only one batch is held at a time.

    An item is a mapping of input name to value, or, with `layout.inputs` given, a tuple of values or a single value.
    Values are arrays, tensors (anything with `__array__`, or `detach` and `cpu`), numbers or nested lists.

    Args:
        function: Called once per reading; must give the same items each time. What it raises becomes a DataError.
        layout: How items become samples.
        description: Where they come from.
    """

    def __init__(
        self, function: Callable[[], Iterable[Any]], layout: Layout | None = None, description: str = ""
    ) -> None:
        self._function = function
        self._layout = layout or Layout()
        self.description = description or f"the function {getattr(function, '__qualname__', repr(function))}"

    def __len__(self) -> int:
        return len(self._summary.keys)

    @cached_property
    def has_labels(self) -> bool:  # type: ignore[override]
        """Whether the first sample carries a label."""
        return next(self._samples(), _Sample({}, None)).label is not None

    def labels(self) -> Array | None:
        """Return all labels; reads every sample the first time."""
        return self._summary.labels

    def sample_keys(self) -> Sequence[bytes]:
        """Return a content hash per sample; reads every sample the first time."""
        return self._summary.keys

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, which must ascend, since items come in one order only."""
        if (np.diff(indices) <= 0).any():
            raise DataError(
                f"samples of {self.description} were asked for out of order",
                expected="ascending positions",
                why="an iterable is read from front to back, and keeping its items would not bound memory",
                fix="select ascending positions, or pass a sequence with __getitem__ to IterableSource",
            )
        yield from _stacked(self._pick(indices), batch_size, self.description)

    def _pick(self, indices: Indices) -> Iterator[_Sample]:
        wanted = iter(indices.tolist())
        target = next(wanted, None)
        for position, sample in enumerate(self._samples()):
            if target is None:
                return
            if position == target:
                yield sample
                target = next(wanted, None)
        if target is not None:
            raise DataError(
                f"{self.description} ended before sample {target}",
                expected="the same items at every reading",
                why="stages are compared on equal samples",
                fix="return a new iterable over the same data at every call",
            )

    def _samples(self) -> Iterator[_Sample]:
        for item in self._contained(self._function):
            sample = _sample(item, self._layout, self.description)
            if self._layout.batched:
                yield from _unbatched(sample, self.description)
            else:
                yield sample

    def _contained(self, function: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Yield what the user's code gives; whatever it raises becomes an error that names it."""
        try:
            yield from function()
        except EdgesmithError:
            raise
        except Exception as error:  # Code of the user runs here, and may raise anything.
            raise DataError(
                f"{self.description} cannot be read: {fault_of(error)}",
                expected="an iterable of samples that can be read to its end",
                why="samples come from there",
                fix="correct the code that makes the samples",
            ) from error

    @cached_property
    def _summary(self) -> _Summary:
        keys: list[bytes] = []
        labels: list[Array] = []
        for sample in self._samples():
            keys.append(key_of_arrays(sample.inputs))
            if sample.label is not None:
                labels.append(sample.label)
        require_samples(len(keys), self.description)
        if labels and len(labels) != len(keys):
            raise labels_do_not_match(len(labels), len(keys), self.description)
        return _Summary(keys, _stack("labels", labels, self.description) if labels else None)


class IterableSource(CallableSource):
    """Samples from an object that can be iterated again and again, such as a list, a `Dataset` or a `DataLoader`.

    Args:
        iterable: The object. A generator is refused, since it can be read only once.
        layout: How items become samples.
        description: Where they come from.

    Raises:
        DataError: The object is an iterator.
    """

    def __init__(self, iterable: Iterable[Any], layout: Layout | None = None, description: str = "") -> None:
        if isinstance(iterable, Iterator):
            raise DataError(
                f"a {type(iterable).__name__} can be read only once",
                expected="an object that can be iterated again and again",
                why="calibration, every stage and the comparison read the same samples",
                fix="pass a list, or use CallableSource with a function that returns a new generator",
            )
        super().__init__(lambda: iter(iterable), layout, description or f"a {type(iterable).__name__}")
        # Objects that can be indexed are spared the reading of everything before a sample.
        indexed = hasattr(iterable, "__getitem__") and hasattr(iterable, "__len__")
        self._items: Any = iterable if indexed and not self._layout.batched else None

    def __len__(self) -> int:
        if self._items is None:
            return super().__len__()
        require_samples(len(self._items), self.description)
        return len(self._items)

    def read(self, indices: Indices, batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`; in ascending order, unless the object can be indexed."""
        if self._items is None:
            yield from super().read(indices, batch_size)
        else:
            items = self._contained(lambda: (self._items[index] for index in indices.tolist()))
            samples = (_sample(item, self._layout, self.description) for item in items)
            yield from _stacked(samples, batch_size, self.description)


def as_samples(source: DataSource) -> SampleSource:
    """Return a source whose samples can be selected and split, whatever kind of source it is given."""
    if isinstance(source, SampleSource):
        return source

    def items() -> Iterator[dict[str, Array | None]]:
        for batch in source.batches(_ITEMS_PER_BATCH):
            yield {**batch.inputs, _OWN_LABELS: batch.labels}

    layout = Layout(labels=_OWN_LABELS if source.has_labels else "", batched=True)
    return CallableSource(items, layout, source.description)


def fault_of(error: Exception) -> str:
    """Return what an exception of the user's code says, and where that code raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    place = f" (line {theirs[-1].lineno} of {theirs[-1].filename})" if theirs else ""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _sample(item: object, layout: Layout, description: str) -> _Sample:
    """Return an item as arrays; of a batched item all samples together."""
    fields = _fields(item, layout, description)
    named = layout.labels if layout.labels is not None else next((name for name in _LABELS if name in fields), None)
    label = fields.get(named) if named else None
    if label is None and layout.labels:
        raise _missing(layout.labels, fields, description)
    names = layout.inputs or tuple(name for name in fields if name != named)
    arrays = {name: _array(fields[name], name, description) for name in names if name in fields}
    if layout.inputs:
        for name in layout.inputs:
            if name not in arrays:
                raise _missing(name, fields, description)
    else:
        # Raw text and the like stands beside the encoded fields in many data sets.
        arrays = {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}
    if not arrays:
        raise _missing("with numbers", fields, description)
    return _Sample(arrays, None if label is None else _array(label, named or "labels", description))


def _fields(item: object, layout: Layout, description: str) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items() if value is not None}
    several = isinstance(item, tuple) or (isinstance(item, list) and any(hasattr(part, "shape") for part in item))
    values = list(cast("Sequence[object]", item)) if several else [item]
    names = layout.inputs
    if names and len(values) == len(names):
        return dict(zip(names, values, strict=True))
    if names and len(values) == len(names) + 1:
        return dict(zip((*names, layout.labels or _LABELS[0]), values, strict=True))
    raise DataError(
        f"an item of {description} is a {type(item).__name__} with {len(values)} value(s)",
        expected="a mapping of input names to values, or as many values as inputs are named (one more is the label)",
        why="values reach the graph by the names of its inputs",
        fix="yield dictionaries, or name the inputs in the layout",
    )


def _array(value: Any, name: str, description: str) -> Array:
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _not_an_array(name, description, str(error)) from error
    if array.dtype.hasobject:
        raise _not_an_array(name, description, f"it holds {type(value).__name__} objects")
    return array


def _unbatched(batch: _Sample, description: str) -> Iterator[_Sample]:
    arrays = [*batch.inputs.values()] + ([] if batch.label is None else [batch.label])
    sizes = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(sizes) != 1:
        raise DataError(
            f"a batch of {description} has arrays with {sorted(sizes)} samples",
            expected="equal first dimensions",
            why="the first dimension of every array counts samples",
            fix="correct the function, or set `batched` to false if items are single samples",
        )
    for index in range(sizes.pop()):
        inputs = {name: array[index] for name, array in batch.inputs.items()}
        yield _Sample(inputs, None if batch.label is None else batch.label[index])


def _stacked(samples: Iterator[_Sample], batch_size: int, description: str) -> Iterator[Batch]:
    while group := list(islice(samples, batch_size)):
        names = group[0].inputs.keys()
        for sample in group:
            if sample.inputs.keys() != names:
                raise _missing(", ".join(sorted(names ^ sample.inputs.keys())), sample.inputs, description)
        labels = [sample.label for sample in group if sample.label is not None]
        if labels and len(labels) != len(group):
            raise labels_do_not_match(len(labels), len(group), description)
        inputs = {name: _stack(name, [sample.inputs[name] for sample in group], description) for name in names}
        yield Batch(inputs, _stack("labels", labels, description) if labels else None)


def _stack(name: str, arrays: list[Array], description: str) -> Array:
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({str(list(array.shape)) for array in arrays})
        raise DataError(
            f"samples of '{name}' in {description} have different shapes: {', '.join(shapes[:4])}",
            expected="one shape",
            why="samples of a batch are stacked into one array",
            fix="pad or crop the samples, or use a batch size of 1",
        )
    return np.stack(arrays)


def _missing(name: str, fields: Mapping[str, object], description: str) -> DataError:
    return DataError(
        f"a sample of {description} has no field {name}",
        expected=f"the same fields in every sample; this one has {', '.join(sorted(fields)) or 'none'}",
        why="each field becomes one input of the graph",
        fix="name the fields like the inputs of the graph, or name them in the layout",
    )


def _not_an_array(name: str, description: str, reason: str) -> DataError:
    return DataError(
        f"'{name}' in a sample of {description} is not an array: {reason}",
        expected="numbers, nested lists of equal lengths, NumPy arrays or tensors of a NumPy type",
        why="inputs of a graph are arrays",
        fix="convert the value, for instance with .float() or numpy.asarray",
    )
