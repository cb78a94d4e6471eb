"""Graphs whose values are not there when they are read: found, named, and never copied or run."""

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import Condition, StepError
from edgesmith.host.context import Context
from edgesmith.host.records import TargetRecord
from edgesmith.host.step import run_lowering
from edgesmith.host.wiring import find_loose_end
from edgesmith.testing import fake_dialect, tiny_mlp

BOARD = TargetRecord(name="board", version="2.0", summary="A board.", entry="absent:Board")


def remove_the_first_node(new, old):
    new.graph.remove(new.graph[0])


def forget_a_weight(new, old):
    new.graph.initializers.pop("down")


def reverse_the_nodes(new, old):
    nodes = list(new.graph)
    new.graph.remove(nodes)
    new.graph.extend(reversed(nodes))


def close_a_cycle(new, old):
    new.graph[0].replace_input_with(0, new.graph[1].outputs[0])


def read_a_value_of_the_old_graph(new, old):
    new.graph[1].replace_input_with(0, old.graph[0].outputs[0])


def put_out_a_value_of_no_graph(new, old):
    new.graph.outputs[0] = ir.Value(name="y", type=old.graph.outputs[0].type, shape=old.graph.outputs[0].shape)


BROKEN = {
    remove_the_first_node: "node 'activation' reads 'up_projection_output', which no node or input produces",
    forget_a_weight: "node 'down_projection' reads 'down', which no node or input produces",
    reverse_the_nodes: "node 'down_projection' reads 'activation_output', which node 'activation' produces only later",
    close_a_cycle: "node 'up_projection' reads 'activation_output', which node 'activation' produces only later",
    read_a_value_of_the_old_graph: "node 'activation' reads 'up_projection_output', which belongs to another graph",
    put_out_a_value_of_no_graph: "the output 'y' is a value which belongs to another graph",
}


class Lowering:
    """A target that edits a copy."""

    def __init__(self, edit):
        self.edit = edit

    def lower(self, model, context):
        result = model.clone()
        self.edit(result, model)
        return result


@pytest.mark.parametrize("edit", BROKEN)
def test_a_loose_end_is_one_error_that_names_node_and_value(edit, tmp_path):
    model = tiny_mlp()
    digest = model.digest()
    with pytest.raises(StepError) as caught:
        run_lowering(BOARD, Lowering(edit), model, Context(None, fake_dialect(), tmp_path))
    assert caught.value.condition is Condition.VALID
    assert caught.value.what.startswith(f"target board 2.0: made a graph in which {BROKEN[edit]}")
    assert all((caught.value.expected, caught.value.why, caught.value.fix))
    assert model.digest() == digest


def branching(read_in_branch: str, read_after: str) -> ir.Graph:
    """Return a graph with an If whose branch reads one value, and a node behind it that reads another."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    early = ir.node("Relu", [x], name="early")
    inner = ir.node("Neg", [x], name="inner")
    late = ir.node("Exp", [x], name="late")
    inner.outputs[0].name, late.outputs[0].name = "within", "later"
    values = {"x": x, "early": early.outputs[0], "inner": inner.outputs[0], "late": late.outputs[0]}
    reader = ir.node("Abs", [values[read_in_branch]], name="reader")
    branch = ir.Graph([], [reader.outputs[0]], nodes=[inner, reader], name="branch")
    condition = ir.Value(name="condition", const_value=ir.tensor(np.array(True), name="condition"))
    choice = ir.node("If", [condition], {"then_branch": branch, "else_branch": branch}, name="choice")
    last = ir.node("Add", [choice.outputs[0], values[read_after]], name="last")
    nodes = [early, choice, late, last]
    return ir.Graph([x], [last.outputs[0]], nodes=nodes, initializers=[condition], name="main")


@pytest.mark.parametrize("read_in_branch", ["x", "early", "inner"])
def test_a_branch_sees_what_is_around_it(read_in_branch):
    assert find_loose_end(branching(read_in_branch, "late")) is None


def test_a_branch_sees_nothing_that_comes_later_and_nobody_sees_into_a_branch():
    unsound = find_loose_end(branching("late", "x"))
    assert unsound == "node 'reader' reads 'later', which node 'late' produces only later (inside node 'choice')"
    assert find_loose_end(branching("x", "inner")) == "node 'last' reads 'within', which no node or input produces"


def test_an_input_that_is_left_out_is_no_loose_end():
    x = ir.Value(name="x")
    clip = ir.node("Clip", [x, None, None], name="clip")
    assert find_loose_end(ir.Graph([x], [clip.outputs[0]], nodes=[clip])) is None
