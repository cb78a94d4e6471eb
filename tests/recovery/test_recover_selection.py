"""PASER: the samples of what was damaged are chosen, and the same ones each time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recovery.recovery_models import context_for, recover, tokens, with_weights
from tests.small_graphs import graph, node

from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith_recovery.arithmetic.paser import allot, choose_samples, jensen_shannon, k_means, spectral_embedding
from edgesmith_recovery.recover import Recover
from edgesmith_recovery.selection.choose import compared, select_samples
from edgesmith_recovery.training import whole
from edgesmith_recovery.training.data import SampleBatches

HALF = 30


def two_skills() -> Model:
    """Inputs 0 to 7 feed hidden channels 0 to 7, inputs 8 to 15 the others; each half makes its own two classes."""
    generator = np.random.default_rng(0)
    blocks = np.kron(np.eye(2), np.ones((8, 8)))
    weights = {
        "w1": (blocks * generator.normal(0, 0.6, (16, 16))).astype(np.float32),
        "b1": np.zeros(16, np.float32),
        "w2": (np.kron(np.eye(2), np.ones((8, 2))) * generator.normal(0, 0.6, (16, 4))).astype(np.float32),
        "b2": np.zeros(4, np.float32),
    }
    nodes = [
        node("Gemm", ["x", "w1", "b1"], "h"),
        node("Relu", ["h"], "r"),
        node("Gemm", ["r", "w2", "b2"], "y"),
    ]
    return graph(nodes, weights, {"x": ["batch", 16]})


def two_kinds() -> dict[str, np.ndarray]:
    """The first half of the samples uses the first skill, the second half the other."""
    generator = np.random.default_rng(1)
    x = generator.normal(0, 0.05, (2 * HALF, 16))
    x[:HALF, :8] += generator.normal(2, 0.5, (HALF, 8))
    x[HALF:, 8:] += generator.normal(2, 0.5, (HALF, 8))
    return {"x": x.astype(np.float32)}


@pytest.mark.parametrize("damaged_skill", [0, 1])
def test_most_of_the_budget_goes_to_the_skill_that_was_damaged(damaged_skill: int) -> None:
    source, places = two_skills(), slice(8 * damaged_skill, 8 * damaged_skill + 8)

    def damage(name: str, array: np.ndarray) -> np.ndarray | None:
        if name != "w1":
            return None
        changed = array.copy()
        changed[:, places] *= -0.5
        return changed

    damaged = with_weights(source, damage)
    structure = find_structure(source.ir)
    context = context_for(source, two_kinds(), select_share=0.5, clusters=2)
    graphs = compared(damaged.ir, source.ir, structure, structure, None)
    chosen = select_samples(graphs, context.calibration, np.arange(2 * HALF), context)
    ours = (chosen < HALF) == (damaged_skill == 0)
    assert chosen.size == HALF and ours.mean() >= 0.8
    again = select_samples(graphs, context.calibration, np.arange(2 * HALF), context)
    assert np.array_equal(chosen, again)


def test_training_uses_only_what_was_chosen(monkeypatch: pytest.MonkeyPatch, tiny_bert: Model) -> None:
    chosen, loaded = [], []
    load = SampleBatches.load

    def select(*arguments):
        chosen.extend(select_samples(*arguments).tolist())
        return np.array(chosen)

    def watched(self, samples):
        loaded.extend(samples.tolist())
        return load(self, samples)

    monkeypatch.setattr(whole, "select_samples", select)
    monkeypatch.setattr(SampleBatches, "load", watched)
    damaged = with_weights(tiny_bert, lambda name, a: np.where(np.abs(a) < 0.02, 0, a) if a.ndim == 2 else None)
    options = {"select": "paser", "select_share": 0.25, "clusters": 3, "batch_size": 2, "epochs": 2}
    context = context_for(tiny_bert, tokens(tiny_bert, 24), **options)
    recover(damaged, context)
    # A tenth of 24 is held out, and a quarter of the other 22 is chosen: three batches, which make an epoch.
    assert context.notes.remarks[0].startswith(f"Chose {round(22 / 4)} of 22 samples")
    assert len(chosen) == 6 and sorted(loaded) == sorted(2 * chosen)


def test_without_a_source_nothing_can_be_compared() -> None:
    context = context_for(None, two_kinds(), labels=np.zeros(2 * HALF, np.int64), select="paser")
    verdict = Recover().check(two_skills(), context)
    assert verdict.status == "refuse" and "source" in verdict.reason


def test_clusters_are_found_whatever_the_scale() -> None:
    generator = np.random.default_rng(2)
    points = np.concatenate([generator.normal(centre, 0.3, (20, 5)) for centre in (0, 4, 9)])
    for scale in (1.0, 1000.0):
        found = k_means(spectral_embedding(points * scale, 3), 3, seed=0)
        assert [len(set(found[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
        assert len(set(found)) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_clustering_does_not_edit_its_input(count: int) -> None:
    points = np.random.default_rng(4).normal(0, 1, (12, 3))
    before = points.copy()
    k_means(points, count, seed=0)
    assert np.array_equal(points, before)


@pytest.mark.parametrize("features", [np.ones((6, 3)), np.zeros((1, 3)), np.eye(2)])
def test_samples_that_cannot_be_told_apart_are_clustered_all_the_same(features: np.ndarray) -> None:
    embedding = spectral_embedding(features, 4)
    assert np.isfinite(embedding).all()
    assert set(k_means(embedding, 4, seed=0)) <= set(range(4))


def test_divergence_is_symmetric_bounded_and_zero_for_equal_rows() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0, 3, (50, 9)), generator.normal(0, 3, (50, 9))
    found = jensen_shannon(first, second)
    np.testing.assert_allclose(found, jensen_shannon(second, first), rtol=1e-12)
    assert (found > 0).all() and (found <= np.log(2)).all()
    assert jensen_shannon(first, first + 5).max() < 1e-12
    apart = np.array([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(jensen_shannon(apart, apart[::-1]), np.log(2))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    weights=st.lists(st.floats(0, 5), min_size=6, max_size=6),
    total=st.integers(0, 80),
)
def test_every_cluster_gives_what_it_can(sizes: list[int], weights: list[float], total: int) -> None:
    counts = allot(total, np.array(weights[: len(sizes)]), np.array(sizes))
    assert counts.sum() == min(total, sum(sizes))
    assert (counts <= np.array(sizes)).all() and (counts >= 0).all()


def test_shares_are_proportional_where_there_is_room() -> None:
    assert allot(10, np.array([3.0, 1.0, 1.0]), np.array([50, 50, 50])).tolist() == [6, 2, 2]
    assert allot(10, np.array([3.0, 1.0, 1.0]), np.array([2, 50, 50])).tolist() == [2, 4, 4]


def test_within_a_cluster_the_cheapest_loss_comes_first() -> None:
    divergences, costs = np.array([1.0, 1.0, 0.5, 2.0]), np.array([100.0, 10.0, 10.0, 1e6])
    chosen = choose_samples(divergences, costs, np.zeros(4, np.intp), 2)
    # 1 / log 101 = 0.22, 1 / log 11 = 0.42, 0.5 / log 11 = 0.21, 2 / log 1000001 = 0.14
    assert chosen.tolist() == [0, 1]
