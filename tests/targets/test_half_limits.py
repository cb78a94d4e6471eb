"""What float16 does not hold stays in float32 node by node, and the rest of the graph in float16."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.reference import ReferenceSession
from edgesmith_tensorrt.half_limits import constant_nodes, index_nodes, whole_values
from edgesmith_tensorrt.precision import full_precision_nodes, lower_to_half, unfit_values
from small_graphs import SIGNED, context, graph, node, run

INTEGER = ir.DataType.INT64.value


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def typed(nodes, weights, inputs, **types):
    """Return a graph with a square weight beside its own."""
    return graph(nodes, {"w": normal(8, 8, scale=0.3), **weights}, inputs, types=types)


def lowered(model, data):
    """Lower a graph; return the types of its nodes and how far its outputs moved, every value rounded."""
    result = lower_to_half(model.ir, context(None, data, SIGNED))
    found = ReferenceSession(result, round_half=True).run(data)["y"]
    expected = run(model, data)["y"]
    kinds = {str(each.name).removeprefix("node_"): each.outputs[0].dtype.name for each in result.graph}
    return kinds, float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def in_type(kinds, name):
    return "".join(sorted(each for each in "abcdefghijklmnopqrstuvwxyz" if kinds.get(each) == name))


def halved_ids():
    """Two ids share a row, as where a table is cut into coarser buckets."""
    nodes = [node("Cast", ["i"], "a", to=1), node("Mul", ["a", "half"], "b"), node("Floor", ["b"], "c")]
    nodes += [node("Cast", ["c"], "j", to=7), node("Gather", ["table", "j"], "d"), node("MatMul", ["d", "w"], "y")]
    weights = {"half": np.float32(0.5), "table": normal(8000, 8)}
    return typed(nodes, weights, {"i": ["n", 4]}, i=INTEGER)


def test_numbers_that_become_indices_stay_in_float32_and_the_rest_does_not():
    ids = np.random.default_rng(0).integers(0, 15999, (16, 4))
    kinds, error = lowered(halved_ids(), {"i": ids})
    assert in_type(kinds, "FLOAT") == "abc"
    assert in_type(kinds, "FLOAT16") == "dy"
    assert error < 2e-3


def test_buckets_of_distances_are_those_of_float32():
    # Positions of an encoder with relative attention: logarithms decide the bucket, and 10 is one step from the next.
    nodes = [node("Cast", ["i"], "a", to=1), node("Div", ["a", "m"], "b"), node("Log", ["b"], "c")]
    nodes += [node("Div", ["c", "l"], "d"), node("Mul", ["d", "m"], "e"), node("Cast", ["e"], "j", to=7)]
    nodes += [node("Gather", ["table", "j"], "f"), node("MatMul", ["f", "w"], "y")]
    weights = {"m": np.float32(8), "l": np.float32(np.log(16)), "table": normal(64, 8)}
    model = typed(nodes, weights, {"i": ["n"]}, i=INTEGER)
    assert {str(each.name)[-1] for each in index_nodes(model.graph)} == set("abcde")
    kinds, error = lowered(model, {"i": np.arange(8, 600)})
    assert in_type(kinds, "FLOAT16") == "fy"
    assert error < 2e-3


def test_a_walk_from_an_index_ends_at_products_and_at_integers():
    nodes = [node("MatMul", ["x", "w"], "a"), node("Sigmoid", ["a"], "b"), node("Reshape", ["b", "flat"], "c")]
    nodes += [node("Cast", ["c"], "j", to=7), node("Gather", ["w", "j"], "y")]
    model = typed(nodes, {"flat": np.array([-1])}, {"x": ["n", 8]})
    assert {str(each.name)[-1] for each in index_nodes(model.graph)} == set("bc")


def test_whole_numbers_that_float16_would_change_stay_until_they_are_small():
    # Distance to 4096 of numbers around it: float16 counts in steps of 4 there.
    nodes = [node("Cast", ["i"], "a", to=1), node("Sub", ["a", "base"], "b"), node("Mul", ["b", "third"], "c")]
    nodes += [node("MatMul", ["c", "w"], "y")]
    model = typed(nodes, {"base": np.float32(4096), "third": np.float32(0.3)}, {"i": ["n", 8]}, i=INTEGER)
    kinds, error = lowered(model, {"i": np.random.default_rng(0).integers(4090, 4104, (4, 8))})
    assert in_type(kinds, "FLOAT16") == "cy"
    assert in_type(kinds, "FLOAT") == "ab"
    assert error < 2e-3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["Add", "Sub", "Mul", "Max", "Floor", "Abs"]), min_size=1, max_size=4), st.booleans())
def test_values_that_are_called_whole_are_whole(operators, fraction):
    names = [f"v{index}" for index in range(len(operators))]
    nodes, last = [node("Cast", ["i"], "start", to=1)], "start"
    for operator, name in zip(operators, names, strict=True):
        other = "fraction" if fraction else "three"
        nodes.append(node(operator, [last, other] if operator not in ("Floor", "Abs") else [last], name))
        last = name
    nodes.append(node("Identity", [last], "y"))
    weights = {"fraction": np.float32(0.3), "three": np.float32(3)}
    model = graph(nodes, weights, {"i": ["n"]}, types={"i": INTEGER})
    whole = [str(value.name) for value in whole_values(model.graph)]
    results = ReferenceSession(model.ir, taps=[name for name in whole if name != "y"]).run({"i": np.arange(-5, 5)})
    assert "start" in whole
    assert fraction or "y" in whole
    for name in whole:
        np.testing.assert_array_equal(results[name], np.round(results[name]))


FACTORS = {"large": ("Mul", 1e6, 1e-6), "inverse of a small": ("Div", 1e-8, 1e-8), "small": ("Mul", 1e-8, 1e4)}


@pytest.mark.parametrize("case", FACTORS)
def test_a_factor_beyond_float16_keeps_its_node_alone(case):
    operator, constant, scale = FACTORS[case]
    nodes = [node("MatMul", ["x", "w"], "a"), node(operator, ["a", "s"], "b"), node("MatMul", ["b", "w"], "y")]
    model = typed(nodes, {"s": np.float32(constant)}, {"x": ["n", 8]})
    assert [str(each.name) for each in constant_nodes(model.graph)] == ["node_b"]
    kinds, error = lowered(model, {"x": normal(16, 8, scale=scale)})
    assert kinds["b"] == "FLOAT"
    assert "FLOAT16" in (kinds["a"], kinds["y"])
    assert error < 2e-3


def test_values_below_the_range_of_float16_stay_in_float32():
    nodes = [node("Mul", ["x", "s"], "a"), node("Mul", ["a", "s"], "b"), node("MatMul", ["b", "w"], "y")]
    model, data = typed(nodes, {"s": np.float32(1e4)}, {"x": ["n", 8]}), {"x": normal(16, 8, scale=1e-8)}
    kept = full_precision_nodes(model.ir, unfit_values(model.ir, [data], 1))
    assert {str(each.name): why for each, why in kept.items()} == {"node_a": "values below the range of float16"}
    kinds, error = lowered(model, data)
    assert in_type(kinds, "FLOAT16") == "by"
    assert error < 2e-3


SUM, LENGTH = node("ReduceSumSquare", ["a", "ax"], "b"), node("ReduceL2", ["a", "ax"], "b")
COMPARED, ADDED = node("Max", ["b", "eps"], "c"), node("Add", ["b", "eps"], "c")
DIVIDED, MULTIPLIED = node("Div", ["a", "e"], "d"), node("Mul", ["a", "e"], "d")
GUARDS = {
    "compared": [LENGTH, COMPARED, node("Div", ["a", "c"], "d")],
    "clipped": [LENGTH, node("Clip", ["b", "eps"], "c"), node("Expand", ["c", "one"], "e"), DIVIDED],
    "added under a root": [SUM, ADDED, node("Sqrt", ["c"], "e"), DIVIDED],
    "inverted": [LENGTH, COMPARED, node("Reciprocal", ["c"], "e"), MULTIPLIED],
    "to a power": [SUM, ADDED, node("Pow", ["c", "power"], "e"), MULTIPLIED],
}


@pytest.mark.parametrize("case", GUARDS)
def test_a_small_number_that_keeps_rows_of_zeros_from_a_division_by_zero_works(case):
    weights = {"eps": np.float32(1e-12), "ax": np.array([1]), "one": np.array([1, 8]), "power": np.float32(-0.5)}
    nodes = [node("MatMul", ["x", "w"], "a"), *GUARDS[case], node("MatMul", ["d", "w"], "y")]
    rows = normal(16, 8)
    rows[::2] = 0
    kinds, error = lowered(typed(nodes, weights, {"x": ["n", 8]}), {"x": rows})
    assert error < 2e-3
    assert kinds["a"] == "FLOAT16" and kinds["c"] == kinds["d"] == "FLOAT"


HARMLESS = {
    "a guard of nothing": (node("Add", ["x", "s"], "a"), np.float32(1e-12)),
    "small weights beside others": (node("MatMul", ["x", "s"], "a"), np.where(np.eye(8), 1, 1e-7).astype(np.float32)),
    "a number for infinity": (node("Max", ["x", "s"], "a"), np.float32(-3e38)),
    "a limit": (node("Clip", ["x", "", "s"], "a"), np.float32(1e6)),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_constants_that_change_nothing_keep_nothing(case):
    first, constant = HARMLESS[case]
    model = typed([first, node("MatMul", ["a", "w"], "y")], {"s": constant}, {"x": ["n", 8]})
    assert constant_nodes(model.graph) == set()
    kinds, error = lowered(model, {"x": normal(16, 8)})
    assert kinds["a"] == "FLOAT16"
    assert error < 2e-3
