"""Scores equal their definitions on the whole data, whatever the batching, and refuse what they cannot score."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.metrics import HIGHEST_DB, Accuracy, CosineSimilarity, Metric, Perplexity, Sqnr, TopK

LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(2, 6)), elements=st.floats(-20, 20, width=32))


def score(metric: Metric, outputs, labels=None, reference=None, cuts=()):
    whole = [part for part in (outputs, labels, reference) if part is not None]
    bounds = [0, *sorted(cuts), len(whole[0])]
    for start, end in itertools.pairwise(bounds):
        metric.update(
            {"logits": outputs[start:end]},
            None if labels is None else labels[start:end],
            None if reference is None else {"logits": reference[start:end]},
        )
    return metric.result()


def draw_cuts(data, size):
    return data.draw(st.lists(st.integers(0, size), max_size=3))


@settings(deadline=None, max_examples=80)
@given(LOGITS, st.integers(1, 6), st.data())
def test_top_k_equals_sorting(logits, k, data):
    labels = np.array(
        data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits)))
    )
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = 100 * np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert score(TopK(k), logits, labels, cuts=draw_cuts(data, len(logits))) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.data())
def test_accuracy_is_top_1_in_points(logits, data):
    labels = logits.argmax(axis=1)
    assert score(Accuracy(), logits, labels, cuts=draw_cuts(data, len(logits))) == 100.0
    wrong = (labels + 1) % logits.shape[1]
    assert score(Accuracy(), logits, wrong) == 0.0
    half = np.where(np.arange(len(labels)) % 2 == 0, labels, wrong)
    assert score(Accuracy(), logits, half) == pytest.approx(100 * math.ceil(len(labels) / 2) / len(labels))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 9), st.integers(0, 99), st.data())
def test_perplexity_equals_its_definition(samples, length, tokens, seed, data):
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((samples, length, tokens)) * 30).astype(np.float32)
    labels = generator.integers(0, tokens, (samples, length))
    labels[0, 0] = -100 if labels.size > 1 else labels[0, 0]
    exact = logits.astype(np.float64)
    losses = [
        np.logaddexp.reduce(exact[i, j]) - exact[i, j, labels[i, j]]
        for i in range(samples)
        for j in range(length)
        if labels[i, j] != -100
    ]
    found = score(Perplexity(), logits, labels, cuts=draw_cuts(data, samples))
    assert found == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)


def test_perplexity_of_many_rows_and_of_hopeless_models():
    uniform = np.zeros((3, 1000, 50), np.float32)
    assert score(Perplexity(), uniform, np.ones((3, 1000), np.int64)) == pytest.approx(50)
    certain = np.zeros((1, 1, 2), np.float32)
    certain[0, 0, 0] = 3e38
    assert score(Perplexity(), certain, np.array([[1]])) == math.inf


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.integers(0, 99), st.data())
def test_cosine_and_sqnr_equal_their_definitions(reference, seed, data):
    outputs = reference + np.random.default_rng(seed).standard_normal(reference.shape).astype(np.float32)
    exact, noisy = reference.astype(np.float64), outputs.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(noisy, axis=1)
    cosines = np.where(norms > 0, (exact * noisy).sum(axis=1) / np.where(norms > 0, norms, 1), 0)
    cuts = draw_cuts(data, len(outputs))
    assert score(CosineSimilarity(), outputs, reference=reference, cuts=cuts) == pytest.approx(cosines.mean(), abs=1e-9)
    signal, noise = np.square(exact).sum(), np.square(exact - noisy).sum()
    if signal > 1e-15 and noise > 0:
        expected = np.clip(10 * np.log10(signal / noise), -HIGHEST_DB, HIGHEST_DB)
        assert score(Sqnr(), outputs, reference=reference, cuts=cuts) == pytest.approx(expected, abs=1e-6)


def test_equal_and_vanished_outputs():
    ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert score(Sqnr(), ones, reference=ones) == HIGHEST_DB
    assert score(Sqnr(), ones, reference=zeros) == -HIGHEST_DB
    assert score(Sqnr(), zeros, reference=ones) == 0.0
    assert score(CosineSimilarity(), zeros, reference=zeros) == 1.0
    assert score(CosineSimilarity(), zeros, reference=ones) == 0.0
    assert score(CosineSimilarity(), -ones, reference=ones) == pytest.approx(-1.0)


def test_all_outputs_count_and_integers_do_not():
    outputs = {"a": np.ones((2, 1)), "b": np.zeros((2, 1)), "index": np.array([1, 2])}
    reference = {"a": np.ones((2, 1)), "b": np.ones((2, 1)), "index": np.array([3, 4])}
    metric = CosineSimilarity()
    metric.update(outputs, reference=reference)
    assert metric.result() == pytest.approx(math.sqrt(0.5))


def test_outputs_that_do_not_start_with_samples_make_the_batch_one_sample():
    outputs = {"score": np.ones((3, 1)), "state": np.ones((2, 3, 4))}
    metric = CosineSimilarity()
    metric.update(outputs, reference={name: 2 * array for name, array in outputs.items()})
    assert metric.result() == pytest.approx(1.0)


def test_the_output_can_be_named():
    metric = Accuracy(output="second")
    metric.update({"first": np.eye(2), "second": np.eye(2)[::-1]}, np.array([1, 0]))
    assert metric.result() == 100.0


GOOD = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        (Accuracy(), {"y": GOOD}, None, "has no labels"),
        (Accuracy(), {"y": GOOD}, np.arange(4), r"labels of shape \[4\]"),
        (Accuracy(), {"y": GOOD}, np.zeros((3, 1), np.int64), r"labels of shape \[3, 1\]"),
        (Accuracy(), {"y": GOOD}, np.zeros(3), "dtype float64"),
        (Accuracy(), {"y": GOOD}, np.array([0, 1, 3]), "labels from 0 to 3 for 3 classes"),
        (Accuracy(), {"y": GOOD}, np.array([0, -1, 2]), "labels from -1 to 2"),
        (Accuracy(), {"y": GOOD[None]}, np.arange(3), r"output 'y' has shape \[1, 3, 3\]"),
        (Accuracy(), {"y": GOOD[:, :1]}, np.zeros(3, np.int64), r"output 'y' has shape \[3, 1\]"),
        (Accuracy(), {"y": GOOD * np.nan}, np.arange(3), "output 'y' holds NaN"),
        (Accuracy("z"), {"y": GOOD}, np.arange(3), "no output 'z'"),
        (Accuracy(), {}, np.arange(3), "no outputs"),
        (Perplexity(), {"y": GOOD}, np.arange(3), r"output 'y' has shape \[3, 3\]"),
        (Perplexity(), {"y": GOOD[None]}, np.arange(3), r"labels of shape \[3\]"),
        (Perplexity(), {"y": GOOD[None]}, np.array([[0, 1, 3]]), "labels from 0 to 3 for 3 classes"),
        (Sqnr(), {"y": GOOD}, None, "no outputs of the source model"),
        (CosineSimilarity(), {"y": GOOD}, None, "no outputs of the source model"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_all_four_parts(metric, outputs, labels, message):
    with pytest.raises(DataError, match=message) as error:
        metric.update(outputs, labels)
    assert all((error.value.expected, error.value.why, error.value.fix))


@pytest.mark.parametrize(
    ("outputs", "reference", "message"),
    [
        ({"y": GOOD}, {"y": GOOD[:2]}, r"shape \[3, 3\], and \[2, 3\]"),
        ({"y": GOOD}, {"z": GOOD}, "no floating-point output in common"),
        ({"y": np.arange(3)}, {"y": np.arange(3)}, "no floating-point output in common"),
        ({"y": np.full((3, 3), np.inf)}, {"y": GOOD}, "output 'y' holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("kind", [Sqnr, CosineSimilarity])
def test_outputs_that_cannot_be_compared_are_refused(kind, outputs, reference, message):
    with pytest.raises(DataError, match=message):
        kind().update(outputs, reference=reference)


@pytest.mark.parametrize("kind", [Accuracy, TopK, Perplexity, CosineSimilarity, Sqnr])
def test_nothing_has_no_score(kind):
    with pytest.raises(DataError, match="nothing to score"):
        kind().result()
