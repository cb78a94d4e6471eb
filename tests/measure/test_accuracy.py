"""Evaluation over batches, and the interval of a paired difference."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_models import ArrayData, dense_model

from edgesmith.errors import DataError, MeasurementError
from edgesmith.host.records import Tier
from edgesmith.measure.accuracy import EvaluationPlan, evaluate, paired_difference
from edgesmith.measure.local import LocalRunner


class PercentRight:
    def __init__(self) -> None:
        self.right = self.seen = 0

    def update(self, outputs, labels, reference) -> None:
        if labels is None:
            raise DataError("no labels", expected="labels", why="accuracy counts them", fix="add labels")
        self.right += int((outputs["logits"].argmax(-1) == labels).sum())
        self.seen += len(labels)

    def result(self) -> float:
        return 100 * self.right / self.seen


class LargestGap:
    """A metric that is not a mean over samples."""

    def __init__(self) -> None:
        self.gap = 0.0

    def update(self, outputs, labels, reference) -> None:
        self.gap = max(self.gap, float(np.abs(outputs["logits"] - reference["logits"]).max()))

    def result(self) -> float:
        return self.gap


def test_metric_over_batches_equals_metric_over_everything(small: Path, data: ArrayData):
    runner = LocalRunner()
    parts = evaluate(runner, small, data, PercentRight, plan=EvaluationPlan(batch_size=8))
    whole = evaluate(runner, small, data, PercentRight, plan=EvaluationPlan(batch_size=70))
    logits = np.concatenate([outputs["logits"] for outputs in runner.outputs(small, data.batches(70))])
    assert parts.value == whole.value == pytest.approx(100 * (logits.argmax(-1) == data.labels).mean())
    assert parts.samples == 70
    np.testing.assert_array_equal(parts.scores, 100.0 * (logits.argmax(-1) == data.labels))


def test_data_is_read_once_even_with_a_reference(small: Path, tmp_path: Path, data: ArrayData):
    other = dense_model(tmp_path / "other.onnx", noise=0.1)
    evaluation = evaluate(LocalRunner(), other, data, LargestGap, reference=small)
    assert evaluation.value > 0
    assert data.readings == 1
    assert evaluate(LocalRunner(), small, data, LargestGap, reference=small).value == 0


def test_scores_are_withheld_when_the_metric_is_not_their_mean(small: Path, tmp_path: Path, data: ArrayData):
    other = dense_model(tmp_path / "other.onnx", noise=0.1)
    assert evaluate(LocalRunner(), other, data, LargestGap, reference=small).scores is None


def test_a_metric_that_needs_labels_says_so(small: Path):
    with pytest.raises(DataError, match="no labels"):
        evaluate(LocalRunner(), small, ArrayData(np.ones((4, 16), dtype=np.float32)), PercentRight)


def test_an_input_without_dimensions_may_come_first(small: Path, data: ArrayData):
    class Scaled(ArrayData):
        def batches(self, batch_size: int):
            for batch in super().batches(batch_size):
                yield replace(batch, inputs={"scale": np.float32(2), **batch.inputs})

    evaluation = evaluate(LocalRunner(), small, Scaled(data.x, data.labels), PercentRight)
    assert evaluation.samples == 70
    assert evaluation.value == evaluate(LocalRunner(), small, data, PercentRight).value


def test_no_samples_is_an_error(small: Path):
    with pytest.raises(MeasurementError, match="no sample in arrays"):
        evaluate(LocalRunner(), small, ArrayData(np.ones((0, 16), dtype=np.float32)), PercentRight)


def test_a_metric_that_is_not_a_number_is_an_error(small: Path, data: ArrayData):
    class Broken(PercentRight):
        def result(self) -> float:
            return float("nan")

    with pytest.raises(MeasurementError, match=r"The metric of .* is nan"):
        evaluate(LocalRunner(), small, data, Broken)


def test_interval_of_the_paper_example():
    # 20 samples: 1 gained, 6 lost. Adjusted counts 2/22 and 7/22, z = 1.96.
    before = np.array([1.0] * 13 + [0.0] * 7)
    after = np.array([0.0] * 6 + [1.0] * 7 + [1.0] + [0.0] * 6)
    change = paired_difference(before, after)
    assert change.difference == pytest.approx(-5 / 20)
    centre, half = -5 / 22, 1.959964 * np.sqrt((9 / 22 - (5 / 22) ** 2) / 22)
    assert (change.low, change.high) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_equal_predictions_still_leave_doubt_and_more_samples_less():
    few, many = np.ones(50), np.ones(5000)
    narrow, wide = paired_difference(many, many), paired_difference(few, few)
    assert wide.difference == narrow.difference == 0
    assert wide.low < narrow.low < 0 < narrow.high < wide.high


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.floats(-0.5, 0.5), st.integers(0, 2**31))
def test_interval_contains_the_difference_and_flips_with_the_order(size: int, shift: float, seed: int):
    random = np.random.default_rng(seed)
    before = random.random(size)
    after = before + shift + 0.1 * random.random(size)
    forward, backward = paired_difference(before, after), paired_difference(after, before)
    assert forward.low - 1e-9 <= forward.difference <= forward.high + 1e-9
    assert backward.difference == pytest.approx(-forward.difference)
    assert forward.low == paired_difference(before, after).low


def test_interval_covers_the_truth_about_as_often_as_it_claims():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        before = random.random(120) < 0.9
        flips = random.random(120) < 0.05
        after = np.where(flips, ~before, before)
        truth = 0.05 * (0.1 - 0.9)
        change = paired_difference(before.astype(float), after.astype(float))
        covered += change.low <= truth <= change.high
    assert covered >= 0.92 * 400


def test_constant_scores_that_are_not_right_or_wrong_invent_no_interval():
    scores = np.full(20, 37.0)
    change = paired_difference(scores, scores)
    assert (change.low, change.difference, change.high) == (0.0, 0.0, 0.0)


def test_many_samples_are_resampled_in_bounded_memory():
    random = np.random.default_rng(0)
    before, after = random.random((2, 200_000))
    tracemalloc.start()
    try:
        change = paired_difference(before, after, resamples=40)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64_000_000
    assert change.low < change.difference < change.high


def test_percent_and_fraction_give_the_same_answer():
    before, after = np.array([1.0, 0, 1, 1, 0]), np.array([1.0, 1, 0, 0, 0])
    fraction, percent = paired_difference(before, after), paired_difference(100 * before, 100 * after)
    assert percent.low == pytest.approx(100 * fraction.low)
    number = percent.measurement(unit="points", tier=Tier.REFERENCE)
    assert number.spread == "confidence-95" and number.low < number.value < number.high


def test_scores_of_different_samples_are_refused():
    with pytest.raises(MeasurementError, match="cannot be paired"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(MeasurementError, match="cannot be paired"):
        paired_difference(np.ones(0), np.ones(0))


def test_bundled_metrics_and_sources_fit(small: Path, tmp_path: Path, data: ArrayData):
    from edgesmith_calibration.metrics import Accuracy, Sqnr
    from edgesmith_calibration.sources import ArraySource

    source = ArraySource({"x": data.x}, labels=data.labels)
    runner = LocalRunner()
    assert evaluate(runner, small, source, Accuracy).value == evaluate(runner, small, data, PercentRight).value
    near, far = (dense_model(tmp_path / f"{noise}.onnx", noise=noise) for noise in (1e-3, 1e-1))
    decibels = [evaluate(runner, model, source, Sqnr, reference=small).value for model in (near, far)]
    assert decibels[0] > decibels[1] + 20
