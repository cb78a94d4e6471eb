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
from edgesmith_tensorrt.rejection import recurrent_in_branches, rejected
from small_graphs import context, graph, node

WEIGHTS = {
    "one": np.float32(1),
    **{f"{kind}_{name}": np.full((1, gates * 8, 8), 0.1, np.float32)
       for kind, gates in (("LSTM", 4), ("GRU", 3)) for name in "wr"},
}  # fmt: skip


def branched(recurrent, *, inside=True):
    """Return a network that runs a recurrent operator where the first value of its input is above one."""
    steps = [helper.make_node(recurrent, ["x", f"{recurrent}_w", f"{recurrent}_r"], ["", "a"], "step", hidden_size=8)]
    here = steps if inside else [node("Neg", ["x"], "a")]
    then = helper.make_graph(here, "then", [], [helper.make_empty_tensor_value_info("a")])
    other = helper.make_graph([node("Relu", ["x"], "b")], "other", [], [helper.make_empty_tensor_value_info("b")])
    nodes = [
        node("ReduceMax", ["x"], "top", keepdims=0),
        node("Greater", ["top", "one"], "wanted"),
        node("If", ["wanted"], "y" if inside else "i", then_branch=then, else_branch=other),
    ]
    after = [helper.make_node(recurrent, ["i", f"{recurrent}_w", f"{recurrent}_r"], ["", "y"], "step", hidden_size=8)]
    used = {name: array for name, array in WEIGHTS.items() if name == "one" or name.startswith(recurrent)}
    return graph(nodes if inside else nodes + after, used, {"x": [4, 1, 8]})


def lower(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    _, target = find_target(load_registry(), "rtx-30")
    asked = context(None, None, target.dialect)
    return target.lower(model, replace(asked, scratch=tmp_path))


@needs_compiler
@pytest.mark.parametrize("recurrent", ["LSTM", "GRU"])
def test_a_recurrent_operator_in_a_branch_is_named_with_what_to_do(recurrent, tmp_path, monkeypatch):
    with pytest.raises(TargetError, match=f"at {recurrent} step in the If node_y") as caught:
        lower(branched(recurrent), tmp_path, monkeypatch)
    assert "Scan" in caught.value.fix


@needs_compiler
def test_behind_the_branches_it_is_built(tmp_path, monkeypatch):
    lowered = lower(branched("LSTM", inside=False), tmp_path, monkeypatch)
    assert "LSTM" in {each.op_type for each in lowered.graph}


def test_only_what_stands_in_a_branch_is_blamed():
    assert list(recurrent_in_branches(branched("GRU").graph)) == ["GRU step in the If node_y"]
    assert list(recurrent_in_branches(branched("GRU", inside=False).graph)) == []


def test_a_node_that_the_compiler_names_is_not_replaced_by_a_guess():
    error = rejected(
        "rtx-30", GateResult("rejected", "made-up", message="no", nodes=("node_b",)), branched("LSTM").graph
    )
    assert "at node_b: no" in error.what and "Scan" not in error.fix


def test_without_any_node_the_user_is_not_sent_to_one():
    error = rejected("rtx-30", GateResult("rejected", "made-up", message="no"), branched("LSTM", inside=False).graph)
    assert "named node" not in error.fix


@pytest.mark.parametrize("is_proxy", [True, False])
def test_a_proxy_is_not_said_to_speak_for_the_device(is_proxy):
    answer = GateResult("rejected", "made-up", message="no", is_proxy=is_proxy)
    error = rejected("h100", answer, branched("LSTM", inside=False).graph)
    assert ("of the same family" in error.why) == is_proxy
