"""Scores of a model's outputs, against labels or against the outputs of the source model.

A metric sees one batch at a time and keeps sums only. Names, units and directions of the scores stand in the records
that the host lists.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError

Array = NDArray[Any]
Outputs = Mapping[str, Array]

IGNORED_LABEL = -100
"""Positions with this label are left out of `Perplexity`, as in transformers."""
HIGHEST_DB = 200.0
"""`Sqnr` of outputs that are exactly equal. Float32 arithmetic alone stays below 160 dB."""

_ROWS_PER_BLOCK = 1024


class Metric(ABC):
    """Accumulates a score over batches, from outputs and labels or the outputs of the source."""

    @abstractmethod
    def update(self, outputs: Outputs, labels: Array | None = None, reference: Outputs | None = None) -> None:
        """Add one batch.

        Args:
            outputs: Graph output name to array, samples first.
            labels: Labels of the batch, for metrics that need them.
            reference: Outputs of the source model on the same inputs, for metrics that compare with it.

        Raises:
            DataError: The arrays do not have the form that the metric needs.
        """

    @abstractmethod
    def result(self) -> float:
        """Return the score over all batches.

        Raises:
            DataError: There was nothing to score.
        """


class TopK(Metric):
    """Share of samples whose label is among the `k` highest outputs, in points from 0 to 100.

    Among equal outputs the lower class index ranks higher.

    Args:
        k: How many outputs count.
        output: Name of the output with the logits; empty means the first.
    """

    def __init__(self, k: int = 5, output: str = "") -> None:
        self._k = k
        self._output = output
        self._hits = 0
        self._count = 0

    def update(self, outputs: Outputs, labels: Array | None = None, reference: Outputs | None = None) -> None:
        """Add logits [samples, classes] and labels [samples]."""
        logits = _logits(outputs, self._output, dimensions=2)
        classes = _class_labels(labels, logits)
        own = np.take_along_axis(logits, classes[:, np.newaxis], axis=1)
        before = np.arange(logits.shape[1]) < classes[:, np.newaxis]
        rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
        self._hits += int((rank < self._k).sum())
        self._count += logits.shape[0]

    def result(self) -> float:
        """Return the share in points."""
        _require_count(self._count)
        return 100 * self._hits / self._count


class Accuracy(TopK):
    """Share of samples whose highest output is the label, in points from 0 to 100.

    Args:
        output: Name of the output with the logits; empty means the first.
    """

    def __init__(self, output: str = "") -> None:
        super().__init__(k=1, output=output)


class Perplexity(Metric):
    """Exponential of the mean negative log-likelihood of the labels. Computed in float64.

    Labels are already shifted: the label at a position is the token that follows it.

    Args:
        output: Name of the output with the logits; empty means the first.
    """

    def __init__(self, output: str = "") -> None:
        self._output = output
        self._loss = 0.0
        self._count = 0

    def update(self, outputs: Outputs, labels: Array | None = None, reference: Outputs | None = None) -> None:
        """Add logits [samples, positions, tokens] and labels [samples, positions]."""
        logits = _logits(outputs, self._output, dimensions=3)
        rows = logits.reshape(-1, logits.shape[-1])
        tokens = _require_labels(labels, logits.shape[:2]).reshape(-1)
        kept = np.flatnonzero(tokens != IGNORED_LABEL)
        _require_classes(tokens[kept], rows.shape[1])
        for start in range(0, kept.size, _ROWS_PER_BLOCK):
            chosen = kept[start : start + _ROWS_PER_BLOCK]
            block = rows[chosen].astype(np.float64)
            block -= block.max(axis=1, keepdims=True)
            own = block[np.arange(chosen.size), tokens[chosen]]
            self._loss += float((np.log(np.exp(block).sum(axis=1)) - own).sum())
        self._count += kept.size

    def result(self) -> float:
        """Return the perplexity; infinite where it exceeds what a float64 holds."""
        _require_count(self._count)
        mean = self._loss / self._count
        return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf


class CosineSimilarity(Metric):
    """Mean over samples of the cosine between all outputs of a sample and those of the source model.

    Two outputs that are zero are equal and count 1; one that is zero counts 0.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, outputs: Outputs, labels: Array | None = None, reference: Outputs | None = None) -> None:
        """Add outputs, and the outputs of the source model of the same shapes."""
        actual, expected = _flat_pairs(outputs, reference)
        product = np.einsum("ij,ij->i", actual, expected)
        norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
        equal = (actual == expected).all(axis=1)
        cosine = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
        self._sum += float(np.where(equal, 1.0, cosine.clip(-1, 1)).sum())
        self._count += actual.shape[0]

    def result(self) -> float:
        """Return the mean cosine, from -1 to 1."""
        _require_count(self._count)
        return self._sum / self._count


class Sqnr(Metric):
    """Energy of the source model's outputs over the energy of the difference, in decibels, at most `HIGHEST_DB`."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._count = 0

    def update(self, outputs: Outputs, labels: Array | None = None, reference: Outputs | None = None) -> None:
        """Add outputs, and the outputs of the source model of the same shapes."""
        actual, expected = _flat_pairs(outputs, reference)
        self._signal += float(np.square(expected).sum())
        self._noise += float(np.square(expected - actual).sum())
        self._count += actual.shape[0]

    def result(self) -> float:
        """Return the ratio in decibels, from -`HIGHEST_DB` to `HIGHEST_DB`."""
        _require_count(self._count)
        if self._noise == 0:
            return HIGHEST_DB
        if self._signal == 0:
            return -HIGHEST_DB
        ratio = 10 * (math.log10(self._signal) - math.log10(self._noise))
        return max(-HIGHEST_DB, min(HIGHEST_DB, ratio))


def _logits(outputs: Outputs, name: str, dimensions: int) -> Array:
    if not outputs or (name and name not in outputs):
        raise DataError(
            f"the model has no output '{name}'" if name else "the model has no outputs",
            expected=f"an output with logits; there are {', '.join(outputs) or 'none'}",
            why="the metric is computed from the logits",
            fix="name the output that holds the logits",
        )
    found = name or next(iter(outputs))
    logits = outputs[found]
    if logits.ndim != dimensions or logits.shape[-1] < 2:
        form = "[samples, classes]" if dimensions == 2 else "[samples, positions, tokens]"
        raise DataError(
            f"output '{found}' has shape {list(logits.shape)}",
            expected=f"logits of shape {form} with at least two classes",
            why="the metric compares the logits of all classes",
            fix="choose another metric, such as cosine or sqnr, or name the output that holds the logits",
        )
    if np.isnan(logits).any():
        raise _not_finite(found)
    return logits


def _class_labels(labels: Array | None, logits: Array) -> NDArray[np.intp]:
    classes = _require_labels(labels, logits.shape[:1])
    _require_classes(classes, logits.shape[1])
    return classes


def _require_labels(labels: Array | None, shape: tuple[int, ...]) -> NDArray[np.intp]:
    if labels is None:
        raise DataError(
            "the evaluation data has no labels",
            expected=f"integer labels of shape {list(shape)} for this batch",
            why="the metric compares outputs with labels",
            fix="add labels to the data, or choose a metric that compares with the source model: cosine or sqnr",
        )
    if labels.shape != shape or labels.dtype.kind not in "iub":
        raise DataError(
            f"labels of shape {list(labels.shape)} and dtype {labels.dtype}",
            expected=f"integers of shape {list(shape)}, which is what the logits ask for",
            why="each label belongs to one row of logits",
            fix="correct the labels, or choose the metric that fits them",
        )
    return labels.astype(np.intp)


def _require_classes(labels: NDArray[np.intp], classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} for {classes} classes",
            expected=f"labels from 0 to {classes - 1}",
            why="a label is the position of its class among the outputs",
            fix="number the labels as the model does, from 0 in the order of its outputs",
        )


def _flat_pairs(outputs: Outputs, reference: Outputs | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all floating-point outputs and their references, float64 [samples, values]."""
    if reference is None:
        raise DataError(
            "no outputs of the source model to compare with",
            expected="reference outputs for every batch",
            why="the metric measures the distance to the source model",
            fix="evaluate with the source model as the reference",
        )
    names = [name for name, array in outputs.items() if name in reference and array.dtype.kind == "f"]
    for name in names:
        found, wanted = outputs[name].shape, reference[name].shape
        if found != wanted:
            raise DataError(
                f"output '{name}' has shape {list(found)}, and {list(wanted)} in the source model",
                expected="equal shapes",
                why="outputs are compared value by value",
                fix="compare models with the same outputs",
            )
        if not (np.isfinite(outputs[name]).all() and np.isfinite(reference[name]).all()):
            raise _not_finite(name)
    if not names:
        raise DataError(
            f"no floating-point output in common: {', '.join(outputs)} and {', '.join(reference)}",
            expected="an output of the same name in both models",
            why="outputs are compared by name",
            fix="compare models with the same outputs",
        )
    sizes = {outputs[name].shape[0] if outputs[name].ndim else 1 for name in names}
    # Recurrent states and the like do not start with the samples; then the batch counts as one sample.
    samples = sizes.pop() if len(sizes) == 1 else 1
    return _flatten(outputs, names, samples), _flatten(reference, names, samples)


def _flatten(outputs: Outputs, names: list[str], samples: int) -> NDArray[np.float64]:
    # A width of -1 would be ambiguous for empty arrays.
    rows = [outputs[name].reshape(samples, outputs[name].size // max(samples, 1)) for name in names]
    return np.concatenate(rows, axis=1, dtype=np.float64)


def _not_finite(name: str) -> DataError:
    return DataError(
        f"output '{name}' holds NaN or infinity",
        expected="finite outputs",
        why="a score of outputs that are not numbers means nothing",
        fix="check that the source's own outputs are finite on this data; where they are, leave out the step or change "
        "its options, and calibrate on samples as large as these",
    )


def _require_count(count: int) -> None:
    if count == 0:
        raise DataError(
            "there was nothing to score",
            expected="at least one labelled sample",
            why="a mean of nothing is undefined",
            fix="pass evaluation data that is not empty",
        )
