"""Where tokens are in what an operator gives: exactly there, a permutation of the tokens shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small_graphs import graph, node, run

from edgesmith.graph.dataflow import Dataflow
from edgesmith_tokens.tokens.axes import carry

BATCH, TOKENS, HEADS, SIZE = 2, 5, 3, 4
WIDTH = HEADS * SIZE
SHAPE = (BATCH, TOKENS, WIDTH)
HEADED = (BATCH, TOKENS, HEADS, SIZE)
RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def integers(*numbers):
    return np.asarray(numbers, np.int64)


def carried(operator, shape, axes, constants, **attributes):
    """Return what the axes of the output are said to be, and the model of this one operator."""
    names = ["x", *(f"c{index}" for index in range(len(constants)))]
    arrays = dict(zip(names[1:], constants, strict=True))
    model = graph([node(operator, names, "y", **attributes)], arrays, {"x": shape})
    flow = Dataflow(model.ir)
    (only,) = [each for each in model.graph if each.op_type == operator]
    return carry(flow, only, {flow.value("x"): frozenset(axes)}), model


def permuted(array, axes, order):
    for axis in axes:
        array = array.take(order, axis)
    return array


KEPT = [
    ("Reshape", SHAPE, {1}, [integers(0, 0, HEADS, SIZE)], {}),
    ("Reshape", HEADED, {1}, [integers(-1, TOKENS, WIDTH)], {}),
    ("Transpose", HEADED, {1}, [], {"perm": [0, 2, 1, 3]}),
    ("Transpose", HEADED, {1}, [], {"perm": [0, 2, 3, 1]}),
    ("Unsqueeze", SHAPE, {1}, [integers(0, 2)], {}),
    ("Slice", SHAPE, {1}, [integers(2), integers(7), integers(2)], {}),
    ("Gather", SHAPE, {1}, [integers(3)], {"axis": 2}),
    ("Softmax", (BATCH, HEADS, TOKENS, TOKENS), {2, 3}, [], {"axis": -1}),
    ("LayerNormalization", SHAPE, {1}, [floats(WIDTH), floats(WIDTH)], {"axis": -1}),
    ("ReduceMean", SHAPE, {1}, [integers(2)], {"keepdims": 0}),
    ("ReduceL2", HEADED, {1}, [integers(-1)], {"keepdims": 1}),
    ("ReduceMax", (BATCH, HEADS, TOKENS, SIZE), {2}, [integers(1)], {"keepdims": 0}),
    ("MatMul", SHAPE, {1}, [floats(WIDTH, 6)], {}),
    ("Mul", SHAPE, {1}, [floats(WIDTH)], {}),
    ("Add", SHAPE, {1}, [floats(1, 1, WIDTH)], {}),
    ("Erf", SHAPE, {1}, [], {}),
]


@settings(max_examples=40, deadline=None)
@given(case=st.sampled_from(KEPT), seed=st.integers(0, 50))
def test_tokens_are_where_it_says(case, seed):
    operator, shape, axes, constants, attributes = case
    result, model = carried(operator, shape, axes, constants, **attributes)
    assert not result.obstacle and not result.fixed
    (places,) = result.outputs.values()
    generator = np.random.default_rng(seed)
    order, x = generator.permutation(TOKENS), generator.normal(0, 1, shape).astype(np.float32)
    plain = run(model, {"x": x})["y"]
    turned = run(model, {"x": permuted(x, axes, order)})["y"]
    np.testing.assert_allclose(turned, permuted(plain, places, order), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "shape", "axes", "constants", "attributes", "why"),
    [
        ("Reshape", SHAPE, {1}, [integers(BATCH * TOKENS, WIDTH)], {}, "divides, joins or selects"),
        ("Slice", SHAPE, {1}, [integers(1), integers(TOKENS), integers(1)], {}, "divides, joins or selects"),
        ("Gather", SHAPE, {1}, [integers(0)], {"axis": 1}, "divides, joins or selects"),
        ("ReduceMean", SHAPE, {1}, [integers(1)], {"keepdims": 0}, "over tokens"),
        ("LayerNormalization", SHAPE, {1}, [floats(TOKENS, WIDTH)], {"axis": 1}, "over tokens"),
        ("MatMul", (BATCH, SIZE, TOKENS), {2}, [floats(TOKENS, 3)], {}, "mixes tokens"),
        ("CumSum", SHAPE, {1}, [integers(1).reshape(())], {}, "not known"),
    ],
)
def test_what_does_not_treat_each_token_alone_is_named(operator, shape, axes, constants, attributes, why):
    result, _ = carried(operator, shape, axes, constants, **attributes)
    assert why in result.obstacle and not result.outputs


def test_tables_for_each_token_are_noted():
    result, _ = carried("Add", SHAPE, {1}, [floats(1, TOKENS, WIDTH)])
    assert result.fixed == (1,) and not result.obstacle
    result, _ = carried("Mul", (BATCH, HEADS, TOKENS, TOKENS), {2, 3}, [floats(TOKENS, 1)])
    assert result.fixed == (1,)


def two_inputs(operator, first, second, axes, **attributes):
    model = graph([node(operator, ["a", "b"], "y", **attributes)], {}, {"a": first, "b": second})
    flow = Dataflow(model.ir)
    (only,) = list(model.graph)
    tracked = {flow.value(name): frozenset(each) for name, each in zip("ab", axes, strict=True)}
    return carry(flow, only, tracked), model


ATTENTION = [
    ("MatMul", (BATCH, HEADS, TOKENS, SIZE), (BATCH, HEADS, SIZE, TOKENS), ({2}, {3}), {}, {2, 3}),
    ("MatMul", (BATCH, HEADS, TOKENS, TOKENS), (BATCH, HEADS, TOKENS, SIZE), ({2, 3}, {2}), {}, {2}),
    ("Einsum", HEADED, HEADED, ({1}, {1}), {"equation": "bqhd,bkhd->bhqk"}, {2, 3}),
    ("Concat", SHAPE, SHAPE, ({1}, {1}), {"axis": 2}, {1}),
]


@pytest.mark.parametrize(("operator", "first", "second", "axes", "attributes", "expected"), ATTENTION)
def test_attention_has_tokens_on_both_sides(operator, first, second, axes, attributes, expected):
    result, model = two_inputs(operator, first, second, axes, **attributes)
    assert not result.obstacle and set(result.outputs.values()) == {frozenset(expected)}
    order, feeds = RANDOM.permutation(TOKENS), {"a": floats(*first), "b": floats(*second)}
    turned = {name: permuted(feeds[name], each, order) for name, each in zip("ab", axes, strict=True)}
    wanted = permuted(run(model, feeds)["y"], expected, order)
    np.testing.assert_allclose(run(model, turned)["y"], wanted, rtol=0, atol=1e-5)


def test_products_and_joins_that_count_on_the_number_of_tokens_are_named():
    mixed, _ = two_inputs("MatMul", (BATCH, SIZE, TOKENS), (TOKENS, 3), ({2}, set()))
    assert "mixes tokens" in mixed.obstacle
    joined, _ = two_inputs("Concat", SHAPE, SHAPE, ({1}, {1}), axis=1)
    assert "divides, joins or selects" in joined.obstacle
    einsum, _ = two_inputs("Einsum", HEADED, (TOKENS, SIZE), ({1}, set()), equation="bqhd,qd->bqh")
    assert "mixes tokens" in einsum.obstacle
