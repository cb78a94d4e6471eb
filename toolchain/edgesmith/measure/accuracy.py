"""Quality of a stage on held-out data, streamed, and what a change of it is worth statistically."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from edgesmith.errors import EdgesmithError, MeasurementError
from edgesmith.host.records import Tier
from edgesmith.ledger import Measurement
from edgesmith.measure.runner import Runner
from edgesmith.progress import Progress, SilentProgress

if TYPE_CHECKING:
    import numpy as np

    from edgesmith_calibration.metrics import Metric
    from edgesmith_calibration.sources import DataSource

_DRAWS_PER_BLOCK = 2_000_000
"""Samples that the bootstrap draws at once: 16 bytes each."""
_RIGHT = (1.0, 100.0)
"""Score of a right sample, as a fraction or in percent. A wrong one has 0."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """How to evaluate."""

    batch_size: int = 32
    keep_scores: bool = True
    """Keep one number per sample, so that two stages can be compared sample by sample."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric of one stage."""

    value: float
    samples: int
    scores: "np.ndarray | None" = None
    """Metric of each sample alone, float64 [samples]. None where the metric is not the mean of these."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Change of a metric from one stage to another on the same samples, with its confidence interval."""

    difference: float
    low: float
    high: float
    samples: int

    def measurement(self, *, unit: str, tier: Tier) -> Measurement:
        """Return the change as a ledger number whose `low` and `high` are the interval."""
        return Measurement(
            value=self.difference,
            unit=unit,
            tier=tier,
            samples=self.samples,
            low=self.low,
            high=self.high,
            spread="confidence-95",
        )


def evaluate(
    runner: Runner,
    entry: Path,
    data: "DataSource",
    make_metric: "Callable[[], Metric]",
    *,
    reference: Path | None = None,
    passed_over: Collection[str] = (),
    plan: EvaluationPlan | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `entry` over `data` and return its metric. Holds one batch at a time.

    Args:
        runner: Where the model runs.
        entry: Model file of the stage.
        data: Held-out samples, with labels if the metric wants them.
        make_metric: Returns a fresh metric.
        reference: Model file whose outputs the metric compares with, for metrics that need no labels.
        passed_over: Names of outputs that the metric is not shown, such as those for a cache.
        plan: Batch size, and whether to keep scores per sample.
        progress: Shows the advance.

    Raises:
        MeasurementError: There is no sample, or the metric is not a number.
    """
    plan = plan or EvaluationPlan()
    metric = make_metric()
    scores: list[float] | None = [] if plan.keep_scores else None
    samples = 0
    models = (entry, reference) if reference else (entry,)
    # One reading of the data feeds the metric and every model; tee holds no more than the current batch.
    batches, *feeds = tee(data.batches(plan.batch_size), 1 + len(models))
    streams = [runner.outputs(model, feed) for model, feed in zip(models, feeds, strict=True)]
    total = math.ceil(len(data) / plan.batch_size)
    for batch in (progress or SilentProgress()).track(batches, f"evaluating {entry.stem}", total):
        outputs = _without(next(streams[0]), passed_over)
        expected = _without(next(streams[1]), passed_over) if reference else None
        metric.update(outputs, batch.labels, expected)
        samples += batch.size
        if scores is not None:
            scores = _extend(scores, make_metric, batch.size, outputs, batch.labels, expected)
    if samples == 0:
        raise no_samples(data)
    value = metric.result()
    if not math.isfinite(value):
        raise MeasurementError(
            f"The metric of {entry} is {value}",
            expected="a finite number",
            why="a stage cannot be judged by a metric that is not a number",
            fix="check that the outputs are finite and that the labels belong to this model",
        )
    return Evaluation(value=value, samples=samples, scores=_mean_scores(scores, value))


def _without(outputs: "Mapping[str, np.ndarray]", names: Collection[str]) -> "dict[str, np.ndarray]":
    return {name: array for name, array in outputs.items() if name not in names}


def paired_difference(
    before: "np.ndarray",
    after: "np.ndarray",
    *,
    right: float | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Return mean(after) - mean(before) with a confidence interval for paired samples.

    Scores that are right (1, or 100 percent) or wrong (0) get the adjusted Wald interval of Bonett and Price (Journal
    of Educational and Behavioral Statistics 37, 2012), which stays honest when few samples changed sides. Other scores
    get a percentile bootstrap over samples.

    Args:
        before: Scores per sample, float [samples].
        after: Scores of the same samples in the same order.
        right: Score of a right answer, where it is known; it cannot be told from scores that are all 0.
        confidence: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        MeasurementError: The two do not hold the same number of samples, or none.
    """
    import numpy as np

    if before.shape != after.shape or before.ndim != 1 or before.size == 0:
        raise MeasurementError(
            f"scores of shape {list(before.shape)} cannot be paired with scores of shape {list(after.shape)}",
            expected="one score per sample, from the same samples",
            why="a paired interval needs both stages on every sample",
            fix="evaluate both stages on the same data",
        )
    scores = np.concatenate((before, after))
    for scale in (right,) if right is not None else _RIGHT:
        if np.isin(scores, (0.0, scale)).all():
            low, high = _binary_interval(before == scale, after == scale, confidence)
            low, high = low * scale, high * scale
            break
    else:
        low, high = _bootstrap_interval(after - before, confidence, resamples, seed)
    difference = float(np.mean(after - before))
    return PairedDifference(difference=difference, low=low, high=high, samples=before.size)


def _binary_interval(before: "np.ndarray", after: "np.ndarray", confidence: float) -> tuple[float, float]:
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    size = before.size + 2
    gained = (int((~before & after).sum()) + 1) / size
    lost = (int((before & ~after).sum()) + 1) / size
    centre = gained - lost
    half = quantile * math.sqrt((gained + lost - centre**2) / size)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _bootstrap_interval(differences: "np.ndarray", confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    import numpy as np

    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    rows = max(1, _DRAWS_PER_BLOCK // differences.size)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        chosen = generator.integers(0, differences.size, size=(block, differences.size))
        means.append(differences[chosen].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def _extend(
    scores: list[float],
    make_metric: "Callable[[], Metric]",
    size: int,
    outputs: "Mapping[str, np.ndarray]",
    labels: "np.ndarray | None",
    expected: "Mapping[str, np.ndarray] | None",
) -> list[float] | None:
    """Return `scores` with one score per sample of the batch, or None where samples cannot be told apart."""
    arrays = (*outputs.values(), *(expected or {}).values())
    if any(array.ndim == 0 or array.shape[0] != size for array in arrays):
        return None
    for index in range(size):
        part = slice(index, index + 1)
        metric = make_metric()
        try:
            metric.update(
                {name: array[part] for name, array in outputs.items()},
                None if labels is None else labels[part],
                None if expected is None else {name: array[part] for name, array in expected.items()},
            )
            scores.append(metric.result())
        except (EdgesmithError, ArithmeticError, ValueError):
            # Metrics such as the area under a curve are not defined for one sample.
            return None
    return scores


def _mean_scores(scores: list[float] | None, value: float) -> "np.ndarray | None":
    import numpy as np

    if not scores:
        return None
    array = np.asarray(scores, dtype=np.float64)
    return array if np.isclose(array.mean(), value, rtol=1e-6, atol=1e-9) else None


def no_samples(data: "DataSource") -> MeasurementError:
    """Return the error for evaluation data that turned out empty."""
    return MeasurementError(
        f"no sample in {data.description}",
        expected="at least one sample to evaluate on",
        why="quality is not estimated when it cannot be measured",
        fix="pass evaluation data, or check the path and the format of the file",
    )
