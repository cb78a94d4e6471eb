"""Weights that are zero in groups are found along their inputs, floats and codes alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.graph.group_sparsity import group_sparse_weights, is_group_sparse
from small_graphs import SIGNED, graph, node, quantize


def two_of_four(*shape, axis=0, seed=0):
    """Return normal numbers of which two in each four along an axis are zero."""
    values = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    rows = np.moveaxis(values, axis, -1)
    order = np.abs(rows).reshape(*rows.shape[:-1], -1, 4).argsort(-1).argsort(-1).reshape(rows.shape)
    return np.moveaxis(np.where(order < 2, 0, rows), -1, axis).copy()


def network(*, conv_axis=1, inputs=8):
    nodes = [
        node("Conv", ["x", "k"], "h"),
        node("GlobalAveragePool", ["h"], "p"),
        node("Flatten", ["p"], "f"),
        node("MatMul", ["f", "w"], "g"),
        node("Gemm", ["g", "v"], "y", transB=1),
    ]
    weights = {
        "k": two_of_four(16, inputs, 3, 3, axis=conv_axis),
        "w": two_of_four(16, 12, axis=0),
        "v": two_of_four(8, 12, axis=1),
    }
    return graph(nodes, weights, {"x": ["n", inputs, 8, 8]})


def test_all_operators_sum_along_the_groups():
    assert sorted(group_sparse_weights(network().ir, 2, 4)) == ["k", "v", "w"]
    assert group_sparse_weights(network().ir, 1, 4) == ()


def test_groups_along_outputs_do_not_count():
    assert "k" not in group_sparse_weights(network(conv_axis=0).ir, 2, 4)


def test_codes_count_where_zero_stands_for_zero():
    model = network()
    data = {"x": np.random.default_rng(1).normal(0, 1, (4, 8, 8, 8)).astype(np.float32)}
    assert len(group_sparse_weights(quantize(model, data, SIGNED, smoothing=False).ir, 2, 4)) == 3


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_one_entry_too_many_is_found_anywhere(rows, groups, seed):
    weight = two_of_four(rows, 4 * groups, axis=1, seed=seed)
    assert is_group_sparse(weight, 1, 2, 4)
    generator = np.random.default_rng(seed)
    row, place = generator.choice(np.argwhere(weight == 0))
    weight[row, place] = 1
    assert not is_group_sparse(weight, 1, 2, 4)


@pytest.mark.parametrize("shape", [(3, 6), (3, 2)])
def test_groups_must_cover_the_axis(shape):
    assert not is_group_sparse(np.zeros(shape), 1, 2, 4)
