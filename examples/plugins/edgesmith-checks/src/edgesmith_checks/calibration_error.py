"""Expected calibration error: whether a classifier that says 90 % is right nine times in ten.

Quantization often keeps accuracy and loses this. Whoever acts on confidence, as with a threshold for early exit or for
asking a human, sees it first.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith import Metric
from edgesmith.errors import DataError

Array = NDArray[Any]


class CalibrationError(Metric):
    """Mean gap between confidence and accuracy over bins of equal width, in points from 0 to 100.

    Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.

    Args:
        bins: Number of bins of confidence.
    """

    def __init__(self, bins: int = 15) -> None:
        self._hits = np.zeros(bins)
        self._confidence = np.zeros(bins)
        self._count = 0

    def update(
        self, outputs: Mapping[str, Array], labels: Array | None = None, reference: Mapping[str, Array] | None = None
    ) -> None:
        """Add logits [samples, classes], the first output, and labels [samples]."""
        logits = next(iter(outputs.values()), np.empty(0))
        if labels is None or logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise DataError(
                f"logits of shape {list(logits.shape)} and labels of shape {None if labels is None else labels.shape}",
                expected="logits [samples, classes] as the first output, and one label per sample",
                why="The metric compares the confidence of each answer with whether it is right.",
                fix="Give labelled evaluation data, or choose another metric.",
            )
        if not np.isfinite(logits).all():
            raise DataError(
                "the logits hold NaN or infinity",
                expected="finite logits",
                why="There is no confidence in an answer that is no number.",
                fix="Find the step that broke the model in the ledger, and leave it out or change its options.",
            )
        exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        confidence = exponentials.max(axis=1) / exponentials.sum(axis=1)
        bins = np.minimum((confidence * len(self._hits)).astype(int), len(self._hits) - 1)
        np.add.at(self._hits, bins, logits.argmax(axis=1) == labels)
        np.add.at(self._confidence, bins, confidence)
        self._count += len(labels)

    def result(self) -> float:
        """Return the error in points."""
        if self._count == 0:
            raise DataError(
                "there was nothing to score",
                expected="at least one labelled sample",
                why="A mean of nothing is undefined.",
                fix="Give evaluation data that is not empty.",
            )
        return float(100 * np.abs(self._hits - self._confidence).sum() / self._count)
