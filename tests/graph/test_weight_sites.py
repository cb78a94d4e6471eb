"""Which weights are found, with all their readers, and why others are left alone."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgesmith.graph.kept import keep
from edgesmith.graph.weight_sites import find_weight_sites, weight_readers
from edgesmith.host.context import Notes
from edgesmith.host.selection import Selection
from edgesmith.model import Model
from small_graphs import graph, node


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def find(model, operators=("MatMul", "Gemm", "Conv", "Gather"), **selection):
    notes = Notes()
    return find_weight_sites(
        model.graph, Selection(**selection).obstacle, notes.skip, operators=operators
    ), notes.skipped


def names(nodes):
    return [each.name for each in nodes]


def tied_model():
    nodes = [
        node("Gather", ["table", "ids"], "h"),
        node("MatMul", ["h", "w"], "g"),
        node("Transpose", ["table"], "head", perm=[1, 0]),
        node("MatMul", ["g", "head"], "y"),
    ]
    weights = {"table": normal(50, 8), "w": normal(8, 8)}
    return graph(nodes, weights, {"ids": ["n", 4]}, types={"ids": onnx.TensorProto.INT64})


def test_a_tied_table_is_one_site():
    (table, inner), skipped = find(tied_model())
    assert skipped == {}
    assert (table.name, names(table.gathers), names(table.readers)) == ("table", ["node_h"], ["node_y"])
    assert (table.output_axis, table.input_axis, table.transposed) == (0, 1, True)
    assert names(table.transposes) == ["node_head"]
    assert (inner.output_axis, inner.input_axis, inner.transposed) == (1, 0, False)


def test_a_shared_weight_is_one_site_and_needs_all_its_readers():
    nodes = [node("MatMul", ["x", "w"], "h"), node("Gemm", ["h", "w"], "y")]
    model = graph(nodes, {"w": normal(8, 8)}, {"x": ["n", 8]})
    (site,), _ = find(model)
    assert names(site.readers) == ["node_h", "node_y"]
    sites, skipped = find(model, skip=("node_y",))
    assert sites == ()
    reason = "its weight is shared with node_y: named in the option skip"
    assert skipped == {"node_h": reason, "node_y": reason}


@pytest.mark.parametrize(("transposed", "axes"), [(0, (1, 0)), (1, (0, 1))])
def test_gemm_of_any_form(transposed, axes):
    attributes = {"transB": transposed, "alpha": 0.5, "beta": 2.0, "transA": 1}
    model = graph(
        [node("Gemm", ["x", "w", "b"], "y", **attributes)], {"w": normal(8, 8), "b": normal(8)}, {"x": [8, 3]}
    )
    (site,), _ = find(model)
    assert (site.output_axis, site.input_axis) == axes


@pytest.mark.parametrize(("kernel", "group", "matrix"), [(3, 1, False), (1, 2, True), (3, 8, False)])
def test_convolutions(kernel, group, matrix):
    weight = normal(8, 8 // group, kernel, kernel)
    model = graph([node("Conv", ["x", "w"], "y", group=group)], {"w": weight}, {"x": ["n", 8, 6, 6]})
    (site,), _ = find(model)
    assert (site.output_axis, site.input_axis, site.is_matrix) == (0, 1, matrix)
    np.testing.assert_array_equal(site.rows(), weight.reshape(8, -1))


def test_rows_are_one_per_output_channel():
    weight = normal(6, 4)
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", 6]})
    (site,), _ = find(model)
    np.testing.assert_array_equal(site.rows(), weight.T)
    assert site.shape == (6, 4)
    assert site.is_matrix


def test_half_precision_weights_are_found():
    nodes = [node("MatMul", ["x", "w"], "y")]
    half = onnx.TensorProto.FLOAT16
    model = graph(nodes, {"w": normal(6, 4).astype(np.float16)}, {"x": ["n", 6]}, types={"x": half, "y": half})
    (site,), _ = find(model)
    assert site.rows().dtype == np.float16


def test_weights_behind_constant_and_identity_nodes_are_found():
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], "node_c", value=onnx.numpy_helper.from_array(normal(8, 8))),
        node("Identity", ["c"], "i"),
        node("MatMul", ["x", "i"], "h"),
        node("MatMul", ["h", "c"], "y"),
    ]
    (site,), _ = find(graph(nodes, {}, {"x": ["n", 8]}))
    assert (site.weight.name, names(site.readers)) == ("c", ["node_h", "node_y"])


def test_everything_left_alone_has_its_reason():
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["a", "a"], "square"),
        node("MatMul", ["first", "square"], "left"),
        node("Reshape", ["left", "shape"], "cube"),
        node("MatMul", ["cube", "stack"], "stacked"),
        node("Transpose", ["both"], "turned", perm=[1, 0]),
        node("MatMul", ["left", "both"], "one"),
        node("MatMul", ["one", "turned"], "other"),
        node("MatMul", ["left", "added"], "m"),
        node("Add", ["m", "added"], "sum"),
        node("Gather", ["columns", "ids"], "selected", axis=1),
        node("DequantizeLinear", ["codes", "scale"], "float"),
        node("MatMul", ["left", "float"], "quantized"),
        node("MatMul", ["left", "unwanted"], "named"),
        node("Conv", ["image", "kernel"], "convolved"),
    ]
    weights = {
        "w": normal(8, 8),
        "first": normal(8, 8),
        "shape": np.array([2, 4, 8]),
        "stack": normal(2, 8, 3),
        "both": normal(8, 8),
    }
    weights |= {"added": normal(8, 8), "columns": normal(4, 9), "codes": np.ones((8, 8), np.int8)}
    weights |= {"scale": np.float32(0.5), "unwanted": normal(8, 8), "kernel": normal(4, 3, 1, 1)}
    outputs = ["stacked", "other", "sum", "selected", "quantized", "named", "convolved"]
    inputs = {"x": [8, 8], "ids": [3], "image": [1, 3, 4, 4]}
    model = graph(nodes, weights, inputs, outputs, types={"ids": onnx.TensorProto.INT64})
    sites, skipped = find(model, ("MatMul", "Gather"), skip=("node_named",))
    assert [site.name for site in sites] == ["w"]
    assert skipped == {
        "node_square": "both inputs are activations",
        "node_left": "its first input is constant; weights must be the second",
        "node_stacked": "its weight has 3 dimensions, not 2",
        "node_one": "its weight is read in both orientations",
        "node_other": "its weight is read in both orientations",
        "node_m": "its weight is also read by node_sum (Add)",
        "node_selected": "it selects along another dimension than the first",
        "node_quantized": "already quantized (float x int8)",
        "node_named": "named in the option skip",
        "node_convolved": "Conv is not among the option operators",
    }


def test_lists_that_shape_arithmetic_selects_from_are_no_weights():
    nodes = [node("Shape", ["x"], "s"), node("Gather", ["s", "i"], "d"), node("Gather", ["list", "i"], "y")]
    weights = {"i": np.array([0]), "list": np.arange(12).reshape(3, 4)}
    model = graph(nodes, weights, {"x": ["n", 8]}, ["d", "y"], types=dict.fromkeys("dy", onnx.TensorProto.INT64))
    assert find(model) == ((), {})


def test_weights_that_are_outputs_are_left_alone():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 8)}, {"x": ["n", 8]})
    model.graph.outputs.append(model.graph.initializers["w"])
    assert find(model) == ((), {"node_y": "its weight is an output of the graph"})


def test_marked_products_keep_their_weight_also_from_others_that_share_it(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "b"), node("MatMul", ["b", "v"], "y")]
    model = graph(nodes, {"w": normal(8, 8), "v": normal(8, 8)}, {"x": ["n", 8]})
    keep(model.graph.node("node_b"), "its weight is protected")
    model.save(tmp_path / "model")
    (site,), skipped = find(Model.load(tmp_path / "model"))
    assert site.name == "v"
    assert skipped == {
        "node_a": "its weight is shared with node_b: its weight is protected",
        "node_b": "its weight is shared with node_b: its weight is protected",
    }


def test_products_in_control_flow_are_left_alone():
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        conditional (bool c, float[8, 8] x) => (float[8, 8] y) <float[8, 8] w> {
            m = MatMul(x, w)
            y = If (c) <
                then_branch = then_graph () => (float[8, 8] t) { [inner] t = MatMul(m, w) },
                else_branch = else_graph () => (float[8, 8] e) { e = Identity(m) }
            >
        }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(8, 8), "w"))
    sites, skipped = find(tied_model().with_ir(ir.from_proto(proto)))
    assert sites == ()
    assert skipped["inner"] == "stands in the body of a control-flow operator"
    assert "also read by inner (MatMul)" in next(reason for name, reason in skipped.items() if name != "inner")


def test_readers_are_found_whatever_the_form_of_a_weight():
    nodes = [
        node("Transpose", ["x"], "h", perm=[0, 1]),
        node("Transpose", ["cube"], "turned", perm=[2, 0, 1]),
        node("Identity", ["turned"], "same"),
        node("MatMul", ["h", "same"], "p"),
        node("MatMul", ["p", "cube"], "q"),
        node("MatMul", ["q", "h"], "r"),
        node("MatMul", ["r", "w"], "y"),
    ]
    weights = {"cube": normal(8, 8, 8), "w": normal(8, 8)}
    model = graph(nodes, weights, {"x": [8, 8]})
    model.graph[-1].domain = "of a runtime"
    found = weight_readers(model.graph)
    assert {weight.name: names(readers) for weight, readers in found.items()} == {"cube": ["node_p", "node_q"]}
