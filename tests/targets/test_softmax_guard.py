"""The NaN guard behind Softmax goes or moves only where outputs stay equal, also for rows that are masked fully."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.host.context import Notes
from edgesmith_onnxruntime.softmax_guard import move_softmax_guards
from small_graphs import graph, node, operators, run

HEADS, WIDTH, LENGTH = 2, 4, 5
INFINITY = np.float32(np.inf)


def attention(mask_nodes=(), weights=None, *, masked=None, joined=True, choices=("zero", "minus_infinity")):
    """Return guarded attention over q, k and v. `masked` names what is added to the scores."""
    nodes = [*mask_nodes, node("MatMul", ["q", "k"], "product"), node("Mul", ["product", "scale"], "scores")]
    nodes += [node("Add", ["scores", masked], "masked")] if masked else []
    nodes += [node("Softmax", ["masked" if masked else "scores"], "p", axis=-1), node("IsNaN", ["p"], "nan")]
    nodes += [node("Where", ["nan", "zero", "p"], "guarded"), node("MatMul", ["guarded", "v"], "context")]
    if joined:
        nodes += [node("Transpose", ["context"], "t", perm=[0, 2, 1, 3]), node("Reshape", ["t", "joined"], "y")]
    else:
        nodes += [node("Neg", ["context"], "y")]
    constants = {"scale": np.float32(0.5), "zero": np.float32(0), "joined": np.array([0, 0, HEADS * WIDTH])}
    constants |= {"minus_infinity": -INFINITY, "lowest": np.finfo(np.float32).min, **(weights or {})}
    used = {name for each in nodes for name in each.input}
    inputs = {"q": ["b", HEADS, LENGTH, WIDTH], "k": ["b", HEADS, WIDTH, LENGTH], "v": ["b", HEADS, LENGTH, WIDTH]}
    if "allowed" in used:
        inputs["allowed"] = ["b", 1, LENGTH, LENGTH]
    if "given" in used:
        inputs["given"] = ["b", 1, LENGTH, LENGTH]
    types = {"allowed": ir.DataType.BOOL.value}
    return graph(nodes, {k: v for k, v in constants.items() if k in used}, inputs, types=types)


def moved(model):
    """Return a copy without guards where that can be proven, the number that went, and the notes."""
    notes, copy = Notes(), model.clone()
    count = move_softmax_guards(copy.graph, notes)
    return copy, count, notes


def inputs(model, seed=0, allowed=None):
    generator = np.random.default_rng(seed)
    shapes = {"q": (2, HEADS, LENGTH, WIDTH), "k": (2, HEADS, WIDTH, LENGTH), "v": (2, HEADS, LENGTH, WIDTH)}
    feeds = {name: generator.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    names = {value.name for value in model.graph.inputs}
    if "allowed" in names:
        feeds["allowed"] = allowed if allowed is not None else generator.random((2, 1, LENGTH, LENGTH)) < 0.7
    if "given" in names:
        feeds["given"] = np.where(generator.random((2, 1, LENGTH, LENGTH)) < 0.7, np.float32(0), -INFINITY)
    return feeds


def assert_equal(model, result, feeds):
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], rtol=1e-6, atol=1e-7)


def test_unmasked_attention_needs_no_guard():
    model = attention()
    result, count, _ = moved(model)
    assert count == 1
    assert operators(result)["Where"] == 0
    assert_equal(model, result, inputs(model))


def test_finite_mask_needs_no_guard():
    model = attention([node("Where", ["allowed", "zero", "lowest"], "mask")], masked="mask")
    result, count, _ = moved(model)
    assert (count, operators(result)["Where"]) == (1, 1)
    assert_equal(model, result, inputs(model, allowed=np.zeros((2, 1, LENGTH, LENGTH), bool)))


def test_constant_mask_is_read():
    causal = np.triu(np.full((LENGTH, LENGTH), -INFINITY), 1)
    model = attention(weights={"causal": causal}, masked="causal")
    result, count, _ = moved(model)
    assert (count, operators(result)["IsNaN"]) == (1, 0)
    assert_equal(model, result, inputs(model))


@pytest.mark.parametrize("value", [-INFINITY, INFINITY, np.float32(np.nan)])
def test_constant_mask_with_a_bad_row_keeps_the_guard(value):
    mask = np.zeros((LENGTH, LENGTH), np.float32)
    mask[2] = value
    model = attention(weights={"mask": mask}, masked="mask")
    result, count, notes = moved(model)
    assert (count, operators(result)["IsNaN"]) == (0, 1)
    assert list(notes.skipped) == ["node_guarded"]


def test_unknown_mask_keeps_the_guard():
    model = attention(masked="given")
    result, count, notes = moved(model)
    assert (count, operators(result)) == (0, operators(model))
    assert "fully masked" in notes.skipped["node_guarded"]


def test_guard_with_another_replacement_stays():
    model = attention()
    where = next(each for each in model.graph if each.op_type == "Where")
    where.replace_input_with(1, model.graph.initializers["scale"])
    assert moved(model)[1] == 0


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@given(seed=st.integers(0, 1000), open_rows=st.lists(st.booleans(), min_size=2 * LENGTH, max_size=2 * LENGTH))
@settings(max_examples=25, deadline=None)
def test_rows_without_an_allowed_key_stay_zero(joined, reverse, seed, open_rows):
    choices = ["allowed", *(("minus_infinity", "zero") if reverse else ("zero", "minus_infinity"))]
    model = attention([node("Where", choices, "mask")], masked="mask", joined=joined)
    result, count, _ = moved(model)
    assert (count, operators(result)["IsNaN"]) == (1, 0)
    allowed = np.random.default_rng(seed).random((2, 1, LENGTH, LENGTH)) < 0.5
    allowed &= np.reshape(open_rows, (2, 1, LENGTH, 1))
    feeds = inputs(model, seed, allowed ^ reverse)
    assert np.isfinite(run(result, feeds)["y"]).all()
    assert_equal(model, result, feeds)


def test_layers_share_the_opened_mask():
    single = attention([node("Where", ["allowed", "zero", "minus_infinity"], "mask")], masked="mask")
    result, _, _ = moved(single)
    assert operators(result)["ReduceMax"] == 1
    two = [node("Where", ["allowed", "zero", "minus_infinity"], "mask")]
    for index, source in enumerate(["q", "c0"]):
        two += [node("MatMul", [source, "k"], f"s{index}"), node("Add", [f"s{index}", "mask"], f"m{index}")]
        two += [node("Softmax", [f"m{index}"], f"p{index}", axis=-1), node("IsNaN", [f"p{index}"], f"n{index}")]
        two += [node("Where", [f"n{index}", "zero", f"p{index}"], f"g{index}")]
        two += [node("MatMul", [f"g{index}", "v"], "c0" if index == 0 else "y")]
    shapes = {"q": ["b", HEADS, LENGTH, WIDTH], "k": ["b", HEADS, WIDTH, LENGTH], "v": ["b", HEADS, LENGTH, WIDTH]}
    shapes["allowed"] = ["b", 1, LENGTH, LENGTH]
    constants = {"zero": np.float32(0), "minus_infinity": -INFINITY}
    model = graph(two, constants, shapes, types={"allowed": ir.DataType.BOOL.value})
    result, count, _ = moved(model)
    assert (count, operators(result)["ReduceMax"]) == (2, 1)
    assert_equal(model, result, inputs(model))
