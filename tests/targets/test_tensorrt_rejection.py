"""Where NVIDIA's compiler ends without naming a node, the graph is asked for what is known to end it."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from test_tensorrt_gate import needs_compiler

from edgesmith.errors import TargetError
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt.gate import GateResult
from edgesmith_tensorrt.last_steps import recurrent_in_branches, take_last_steps
from edgesmith_tensorrt.rejection import rejected
from small_graphs import context, graph, node, run

WEIGHTS = {
    "one": np.float32(1),
    **{f"{kind}_{name}": np.full((1, gates * 8, 8), 0.1, np.float32)
       for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)) for name in "wr"},
}  # fmt: skip


def branched(recurrent, *, inside=True, output=1, **attributes):
    """Return a network that runs a recurrent operator where the first value of its input is above one."""
    outputs = [*[""] * output, "a"]
    weights = [f"{recurrent}_w", f"{recurrent}_r"]
    step = helper.make_node(recurrent, ["x", *weights], outputs, "step", hidden_size=8, **attributes)
    here = [step] if inside else [node("Neg", ["x"], "a")]
    then = helper.make_graph(here, "then", [], [helper.make_empty_tensor_value_info("a")])
    other = helper.make_graph([node("Relu", ["z"], "b")], "other", [], [helper.make_empty_tensor_value_info("b")])
    nodes = [
        node("ReduceMax", ["x"], "top", keepdims=0),
        node("Greater", ["top", "one"], "wanted"),
        node("If", ["wanted"], "y" if inside else "i", then_branch=then, else_branch=other),
    ]
    after = [helper.make_node(recurrent, ["i", *weights], ["", "y"], "step", hidden_size=8)]
    used = {name: array for name, array in WEIGHTS.items() if name == "one" or name.startswith(recurrent)}
    inputs = {"x": [4, 1, 8], "z": [1, 1, 8] if inside else [4, 1, 8]}
    return graph(nodes if inside else nodes + after, used, inputs)


def lower(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    _, target = find_target(load_registry(), "rtx-30")
    asked = context(None, None, target.dialect)
    return target.lower(model, replace(asked, scratch=tmp_path))


@needs_compiler
@pytest.mark.parametrize("recurrent", ["LSTM", "GRU"])
def test_a_recurrent_operator_in_a_branch_is_built(recurrent, tmp_path, monkeypatch):
    lowered = lower(branched(recurrent), tmp_path, monkeypatch)
    assert [inner.name for inner, _ in recurrent_in_branches(lowered.graph)] == ["step"]


@pytest.mark.parametrize("recurrent", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_last_step_is_read_from_all_steps_and_keeps_its_bits(recurrent, scale):
    model = branched(recurrent)
    changed = model.ir.clone()
    assert take_last_steps(changed) == ["step"]
    assert take_last_steps(changed) == []
    numbers = np.random.default_rng(0).normal(0, scale, (4, 1, 8)).astype(np.float32)
    data = {"x": numbers, "z": np.ones((1, 1, 8), np.float32)}
    np.testing.assert_array_equal(run(model, data)["y"], run(model.with_ir(changed), data)["y"])


@pytest.mark.parametrize(
    "model",
    [
        branched("LSTM", direction="reverse"),  # its last step is the first row
        branched("LSTM", output=2),  # only the cell is read, which the steps do not have
        branched("GRU", inside=False),
    ],
)
def test_what_does_not_end_with_the_last_row_is_left_alone(model):
    assert take_last_steps(model.ir.clone()) == []


@needs_compiler
def test_a_recurrent_operator_that_is_not_built_is_named_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(TargetError, match="at LSTM step in the If node_y") as caught:
        lower(branched("LSTM", output=2), tmp_path, monkeypatch)
    assert "without the If" in caught.value.fix


@needs_compiler
def test_behind_the_branches_it_is_built(tmp_path, monkeypatch):
    lowered = lower(branched("LSTM", inside=False), tmp_path, monkeypatch)
    assert "LSTM" in {each.op_type for each in lowered.graph}


def test_only_what_stands_in_a_branch_is_blamed():
    assert [inner.op_type for inner, _ in recurrent_in_branches(branched("GRU").graph)] == ["GRU"]
    assert not list(recurrent_in_branches(branched("GRU", inside=False).graph))
    answer = GateResult("rejected", "made-up", message="Internal Error (no)")
    assert "GRU step in the If node_y" in rejected("rtx-30", answer, branched("GRU").graph).what


def test_branches_that_do_not_fit_one_size_are_told_apart():
    error = rejected("rtx-30", GateResult("rejected", "made-up", message="Shape Error (no)"), branched("GRU").graph)
    assert "step" not in error.what and "--shape" in error.fix


def test_a_node_that_the_compiler_names_is_not_replaced_by_a_guess():
    error = rejected(
        "rtx-30", GateResult("rejected", "made-up", message="no", nodes=("node_b",)), branched("LSTM").graph
    )
    assert "at node_b: no" in error.what and "without the If" not in error.fix


def test_without_any_node_the_user_is_not_sent_to_one():
    error = rejected("rtx-30", GateResult("rejected", "made-up", message="no"), branched("LSTM", inside=False).graph)
    assert "named node" not in error.fix


@pytest.mark.parametrize("is_proxy", [True, False])
def test_a_proxy_is_not_said_to_speak_for_the_device(is_proxy):
    answer = GateResult("rejected", "made-up", message="no", is_proxy=is_proxy)
    error = rejected("h100", answer, branched("LSTM", inside=False).graph)
    assert ("of the same family" in error.why) == is_proxy
