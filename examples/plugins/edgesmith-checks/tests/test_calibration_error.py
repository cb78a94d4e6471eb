"""The metric against numbers that can be counted by hand, and in a whole run."""

import edgesmith_checks
import numpy as np
import pytest
from edgesmith_checks.calibration_error import CalibrationError
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.errors import DataError
from edgesmith.testing import conformance, isolated_registry, run_recipe, tiny_bert

REGISTRY = isolated_registry(edgesmith_checks)


def logits_for(confidence: list[float]) -> np.ndarray:
    """Return logits of two classes that prefer the first with that confidence."""
    share = np.array(confidence)
    return np.stack([np.log(share / (1 - share)), np.zeros(len(share))], axis=1)


def scored(logits, labels, batch: int = 100) -> float:
    metric = CalibrationError()
    for start in range(0, len(labels), batch):
        metric.update({"logits": logits[start : start + batch]}, labels[start : start + batch])
    return metric.result()


def test_confidence_that_is_right_as_often_as_it_says_has_no_error():
    labels = np.array([0] * 9 + [1])
    assert scored(logits_for([0.9] * 10), labels) == pytest.approx(0, abs=1e-9)


def test_the_gap_is_counted_bin_by_bin():
    # 0.9 and right 5 of 10, 0.6 and right 10 of 10: gaps of 40 and 40 points on halves of the data.
    logits = logits_for([0.9] * 10 + [0.6] * 10)
    labels = np.array([0, 1] * 5 + [0] * 10)
    assert scored(logits, labels) == pytest.approx(40)


@given(st.integers(1, 7), st.integers(0, 5))
def test_batches_do_not_matter(batch, seed):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(23, 4)) * 3, generator.integers(0, 4, 23)
    whole = scored(logits, labels)
    assert scored(logits, labels, batch) == pytest.approx(whole)
    assert 0 <= whole <= 100


def test_large_logits_do_not_overflow():
    assert scored(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), np.array([0, 1])) == 0


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((2, 2)), None),
        (np.zeros((2, 2, 2)), np.zeros(2, int)),
        (np.zeros((2, 2)), np.zeros(3, int)),
        (np.array([[np.nan, 0.0]]), np.zeros(1, int)),
    ],
)
def test_what_cannot_be_scored_is_refused(logits, labels):
    with pytest.raises(DataError):
        CalibrationError().update({"logits": logits}, labels)
    with pytest.raises(DataError, match="nothing to score"):
        CalibrationError().result()


def test_a_recipe_is_scored_by_it(tmp_path):
    artifact = run_recipe(REGISTRY, tiny_bert(), {"steps": [], "metric": "calibration-error"}, out=tmp_path)
    assert artifact.ledger.metric == "calibration-error"
    assert not artifact.ledger.metric_higher_is_better
    assert all(0 <= row.metric.value <= 100 and row.metric.unit == "%" for row in artifact.ledger.rows)


@pytest.mark.parametrize("check", conformance(REGISTRY, thorough=False), ids=str)
def test_they_conform(check):
    result = check()
    assert result.status != "failed", result
