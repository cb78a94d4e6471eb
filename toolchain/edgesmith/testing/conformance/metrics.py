"""Checks of a metric. It is fed random outputs of classifiers and of language models, whichever it takes."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError
from edgesmith.host.records import MetricRecord
from edgesmith.testing.conformance.bench import Bench
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok

_SAMPLES, _POSITIONS, _CLASSES = 12, 6, 20
_EQUAL = 1e-6
"""Relative difference that another order of float64 sums may make, with much room."""

Array = NDArray[np.float32]


class MetricBench(Bench[MetricRecord]):
    """A metric, and outputs to score."""

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of outputs that the metric takes: samples x classes, samples x positions x classes, or both."""
        shapes = ((_SAMPLES, _CLASSES), (_SAMPLES, _POSITIONS, _CLASSES))
        return tuple(shape for shape in shapes if self._takes(shape))

    def outputs(self, shape: Sequence[int]) -> Array:
        """Return random outputs of a model that is sure of itself, so that being right means being sure and right."""
        return np.random.default_rng(0).normal(0, 30, shape).astype(np.float32)

    def score(self, outputs: Array, truth: Array, batches: int = 1) -> float:
        """Return the score of `outputs` where `truth` would be perfect: its best classes are the labels."""
        metric = self.registry.load(self.record)()
        for part in np.array_split(np.arange(len(outputs)), batches):
            labels = truth[part].argmax(axis=-1) if self.record.needs_labels else None
            metric.update({"y": outputs[part]}, labels, {"y": truth[part]})
        return metric.result()

    def _takes(self, shape: Sequence[int]) -> bool:
        try:
            self.score(self.outputs(shape), self.outputs(shape))
        except DataError:
            return False
        return True


def it_takes_common_outputs(bench: MetricBench) -> CheckResult:
    """Outputs of classifiers or of language models are scored, with a finite number or an infinite one at the best."""
    for shape in bench.shapes:
        score = bench.score(_disturbed(bench.outputs(shape)), bench.outputs(shape))
        if not isinstance(score, float) or not math.isfinite(score):
            return failed(f"its score of outputs {list(shape)} is {score!r}", "Return a finite float.")
    return ok() if bench.shapes else not_applicable("It takes neither outputs of classifiers nor of language models.")


def better_outputs_score_better(bench: MetricBench) -> CheckResult:
    """Outputs that are perfect score better than disturbed ones, in the direction that the record declares."""
    for shape in bench.shapes:
        truth = bench.outputs(shape)
        perfect, worse = bench.score(truth, truth), bench.score(_disturbed(truth), truth)
        if not (perfect > worse if bench.record.higher_is_better else perfect < worse):
            return failed(
                f"outputs {list(shape)} score {perfect:g} where they are perfect and {worse:g} where they are not",
                f"Check higher_is_better={bench.record.higher_is_better} of the record, or the arithmetic.",
            )
    return ok() if bench.shapes else not_applicable("There is nothing that it scores.")


def batches_do_not_matter(bench: MetricBench) -> CheckResult:
    """Three batches give the score of one."""
    for shape in bench.shapes:
        truth = bench.outputs(shape)
        whole, parts = (bench.score(_disturbed(truth), truth, batches) for batches in (1, 3))
        if not math.isclose(whole, parts, rel_tol=_EQUAL):
            return failed(
                f"outputs {list(shape)} score {whole:g} in one batch and {parts:g} in three",
                "Keep sums and counts in `update`, and divide in `result`.",
            )
    return ok() if bench.shapes else not_applicable("There is nothing that it scores.")


def nothing_is_no_score(bench: MetricBench) -> CheckResult:
    """`result` before any batch, and labels that are missing, are refused with a DataError."""
    try:
        score = bench.registry.load(bench.record)().result()
    except DataError:
        pass
    else:
        return failed(f"the score of nothing is {score!r}", "Raise edgesmith.errors.DataError without samples.")
    if bench.record.needs_labels and bench.shapes:
        try:
            bench.registry.load(bench.record)().update({"y": bench.outputs(bench.shapes[0])}, None, None)
        except DataError:
            return ok()
        return failed("it takes outputs without labels", "Raise edgesmith.errors.DataError where labels are None.")
    return ok()


METRIC_CHECKS = (it_takes_common_outputs, better_outputs_score_better, batches_do_not_matter, nothing_is_no_score)


def _disturbed(truth: Array) -> Array:
    """Return outputs that are turned around in every other sample and a little off in the others."""
    noisy = truth + np.random.default_rng(1).normal(0, 0.01, truth.shape).astype(np.float32)
    noisy[::2] *= -1
    return noisy
