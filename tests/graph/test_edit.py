"""Edits keep the graph valid, its interface unchanged and, when they should, its numbers."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgesmith.errors import ModelError
from edgesmith.graph.edit import (
    GraphEditor,
    constant_scalar,
    constant_value,
    remove_unread_initializers,
    set_initializer,
)

INPUT = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random elementwise graphs whose outputs may be inner values, initializers' consumers or shared."""
    names = ["x", "w"]
    nodes = []
    for index in range(draw(st.integers(1, 8))):
        operator = draw(st.sampled_from(["Add", "Mul", "Neg", "Identity", "Constant"]))
        inputs = draw(st.lists(st.sampled_from(names), min_size=2, max_size=2))
        value = numpy_helper.from_array(np.float32([[1.5]]))
        if operator == "Constant":
            nodes.append(helper.make_node("Constant", [], [f"v{index}"], name=f"n{index}", value=value))
        else:
            arity = 2 if operator in ("Add", "Mul") else 1
            nodes.append(helper.make_node(operator, inputs[:arity], [f"v{index}"], name=f"n{index}"))
        names.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(names[2:]), min_size=1, max_size=3, unique=True))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in outputs],
        [numpy_helper.from_array(np.float32([[0.5, -1, 2]]), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: ir.Model) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    outputs = ReferenceEvaluator(proto).run(None, {"x": INPUT})
    return dict(zip([output.name for output in proto.graph.output], outputs, strict=True))


def assert_same(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(np.broadcast_to(value, after[name].shape), after[name])


def all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


@given(graphs(), st.data())
def test_a_neutral_pair_on_any_value_changes_nothing(proto: onnx.ModelProto, data: st.DataObject) -> None:
    model = ir.from_proto(proto)
    before = run(model)
    editor = GraphEditor(model.graph)
    for _ in range(data.draw(st.integers(1, 3))):
        value = data.draw(st.sampled_from(all_values(model.graph)))
        first = editor.insert_on_uses(value, "Neg", name=data.draw(st.sampled_from(["Neg", "n0", "v0", "x"])))
        editor.insert_on_uses(first.outputs[0], "Neg")
    assert_same(before, run(model))


@given(graphs())
def test_bypassing_every_identity_changes_nothing(proto: onnx.ModelProto) -> None:
    model = ir.from_proto(proto)
    before = run(model)
    editor = GraphEditor(model.graph)
    for node in [node for node in model.graph if node.op_type == "Identity"]:
        editor.bypass(node)
    assert_same(before, run(model))
    # An Identity is left only where an output must keep its name although its value already has one.
    assert all(node.outputs[0].is_graph_output() for node in model.graph if node.op_type == "Identity")


@given(graphs(), st.data())
def test_replacing_a_value_by_a_constant_and_removing_the_rest(proto: onnx.ModelProto, data: st.DataObject) -> None:
    model = ir.from_proto(proto)
    output_names = [output.name for output in model.graph.outputs]
    editor = GraphEditor(model.graph)
    node = data.draw(st.sampled_from(list(model.graph)))
    constant = editor.add_initializer("w", np.full((2, 3), 7, np.float32))
    was_output = node.outputs[0].name in output_names and node.outputs[0].name
    editor.replace_uses(node.outputs[0], constant)
    editor.remove_unused([node])
    assert node.graph is None
    after = run(model)
    assert list(after) == output_names
    if was_output:
        np.testing.assert_array_equal(after[was_output], np.full((2, 3), 7, np.float32))


@given(graphs(), st.lists(st.sampled_from(["x", "w", "v0", "n0", "new", "new_1"]), max_size=12))
def test_names_are_never_given_twice(proto: onnx.ModelProto, wished: list[str]) -> None:
    model = ir.from_proto(proto)
    editor = GraphEditor(model.graph)
    used = {value.name for value in all_values(model.graph)}
    given_names = [editor.value_name(name) for name in wished]
    assert len(set(given_names)) == len(given_names)
    assert used.isdisjoint(given_names)


def subgraph_model() -> ir.Model:
    """An If whose branches read a value of the graph around them."""
    return ir.from_onnx_text("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[2, 3] x, bool flag) => (float[2, 3] y)
        {
            h = Neg(x)
            y = If (flag) <
                then_branch = then_graph () => (float[2, 3] a) { inner = Relu(h) a = Neg(inner) },
                else_branch = else_graph () => (float[2, 3] b) { b = Abs(h) }
            >
        }
    """)


@pytest.mark.parametrize("flag", [True, False])
def test_uses_inside_subgraphs_are_replaced(flag: bool) -> None:
    model = subgraph_model()
    editor = GraphEditor(model.graph)
    hidden = model.graph[0].outputs[0]
    doubled = editor.insert_on_uses(hidden, "Mul", [editor.add_initializer("two", np.float32([2]))])
    assert [user.op_type for user, _ in doubled.outputs[0].uses()] == ["Relu", "Abs"]
    result = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": INPUT, "flag": np.array(flag)})[0]
    np.testing.assert_array_equal(result, -np.maximum(-2 * INPUT, 0) if flag else np.abs(2 * INPUT))


def test_names_in_subgraphs_are_taken() -> None:
    assert GraphEditor(subgraph_model().graph).value_name("inner") == "inner_1"


def test_nodes_are_inserted_into_the_graph_of_their_neighbour() -> None:
    model = subgraph_model()
    relu = next(node for node in model.graph.all_nodes() if node.op_type == "Relu")
    node = GraphEditor(model.graph).insert_before(relu, "Abs", [relu.inputs[0]])
    assert node.graph is relu.graph
    assert node.graph is not model.graph


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c = Constant <value_float = 2.5> ()", np.float32(2.5)),
        ("c = Constant <value_ints = [1, 2]> ()", np.int64([1, 2])),
        ("d = Constant <value = float[1] {3.0}> () c = Identity(d)", np.float32([3])),
        ("c = Neg(x)", None),
    ],
)
def test_constants_are_read_wherever_they_sit(text: str, expected: np.ndarray | None) -> None:
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g (float[1] x) => (float[1] c) {{ {text} }}')
    found = constant_value(model.graph.outputs[0])
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_scalars_have_one_element() -> None:
    editor = GraphEditor(ir.Graph([], [], nodes=[]))
    assert constant_scalar(editor.add_initializer("one", np.float32([[4]]))) == 4
    assert constant_scalar(editor.add_initializer("two", np.float32([1, 2]))) is None
    assert constant_scalar(None) is None


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8])
def test_narrow_types_survive_a_round_trip(dtype: type) -> None:
    editor = GraphEditor(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g"))
    value = editor.add_initializer("w", np.array([[1, -2, 3]], np.float32))
    set_initializer(value, np.array([1, -2, 3, 4]).astype(dtype))
    assert value.shape == (4,)
    again = ir.from_proto(ir.to_proto(ir.Model(editor.graph, ir_version=10))).graph.initializers["w"]
    assert again.dtype == value.dtype
    assert again.const_value is not None
    np.testing.assert_array_equal(again.const_value.numpy().astype(np.float32), [1, -2, 3, 4])


def test_only_what_nothing_reads_is_removed() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N] x, bool c) => (float[N] y, float[1] kept)
        <float[1] read = {1}, float[1] kept = {2}, float[1] inside = {3}, float[1] unread = {4}> {
            a = Add(x, read)
            y = If (c) <
                then_branch = g1 () => (float[N] t) <float[1] unread_inside = {5}> { t = Add(a, inside) },
                else_branch = g2 () => (float[N] e) { e = Neg(a) }
            >
        }"""
    )
    assert len(model.graph.initializers) == 4
    remove_unread_initializers(model)
    assert list(model.graph.initializers) == ["read", "kept", "inside"]
    assert [len(graph.initializers) for graph in model.graphs()] == [3, 0, 0]


def test_an_edit_that_cannot_be_made_says_so() -> None:
    model = subgraph_model()
    editor = GraphEditor(model.graph)
    with pytest.raises(ModelError, match="no input 1"):
        editor.bypass(model.graph[0], index=1)
    with pytest.raises(ModelError, match="in no graph"):
        editor.insert_before(ir.Node("", "Neg", []), "Neg", [])
