"""Groups of layers that must share one format."""

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from edgesmith_quantization.search.layer_groups import LayerGroup, group_layers, merge_groups
from small_graphs import graph, node


def weights(**shapes):
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def names(groups):
    return [set(group.nodes) for group in groups]


def attention_like():
    nodes = [
        node("MatMul", ["x", "wq"], "q"),
        node("MatMul", ["x", "wk"], "k"),
        node("Add", ["q", "k"], "s"),
        node("MatMul", ["s", "wo"], "y"),
    ]
    return graph(nodes, weights(wq=(8, 8), wk=(8, 8), wo=(8, 8)), {"x": ["n", 8]})


def test_products_of_one_input_are_one_group():
    model = attention_like()
    groups = group_layers(model.graph, ["node_q", "node_k", "node_y"], {"node_q": 5, "node_k": 6, "node_y": 7})
    assert names(groups) == [{"node_q", "node_k"}, {"node_y"}]
    assert [group.macs for group in groups] == [11, 7]
    assert groups[0].kind == groups[1].kind == "MatMul 8x8"
    assert groups[0].name == "node_q and 1 more" and groups[1].name == "node_y"


def test_nodes_that_are_not_candidates_tie_nothing():
    model = attention_like()
    groups = group_layers(model.graph, ["node_q", "node_y"], {})
    assert names(groups) == [{"node_q"}, {"node_y"}]


def test_readers_of_one_weight_are_one_group_also_behind_a_transpose():
    nodes = [
        node("Gather", ["table", "ids"], "h"),
        node("MatMul", ["h", "w"], "m"),
        node("Transpose", ["table"], "t", perm=[1, 0]),
        node("MatMul", ["m", "t"], "y"),
    ]
    model = graph(nodes, weights(table=(20, 8), w=(8, 8)), {"ids": ["n"]}, types={"ids": ir.DataType.INT64})
    groups = group_layers(model.graph, ["node_h", "node_m", "node_y"], {})
    assert names(groups) == [{"node_h", "node_y"}, {"node_m"}]


def test_convolutions_are_alike_by_kernel_and_not_by_width():
    nodes = [
        node("Conv", ["x", "a"], "p"),
        node("Conv", ["p", "b"], "q", group=8, pads=[1, 1, 1, 1]),
        node("Conv", ["q", "c"], "y"),
    ]
    model = graph(nodes, weights(a=(8, 4, 1, 1), b=(8, 1, 3, 3), c=(16, 8, 1, 1)), {"x": ["n", 4, 6, 6]})
    groups = group_layers(model.graph, ["node_p", "node_q", "node_y"], {})
    assert [group.kind for group in groups] == ["Conv 1x1", "Conv 3x3 depthwise", "Conv 1x1"]


def test_nodes_without_or_with_equal_names_stay_selectable():
    model = attention_like()
    first, second, _, last = model.graph
    first.name = None
    second.name = last.name = "twin"
    groups = group_layers(model.graph, ["q", "twin"], {})
    # Options tell nodes apart by name only, so twins share a format, and with it all that shares their inputs.
    assert names(groups) == [{"q", "twin"}]


GROUPS = st.lists(st.sampled_from("abc"), min_size=1, max_size=30).map(
    lambda kinds: [LayerGroup((f"n{index}",), kind, index) for index, kind in enumerate(kinds)]
)


@given(GROUPS, st.integers(1, 40))
def test_merging_keeps_every_node_once_and_never_mixes_kinds(groups, most):
    merged = merge_groups(groups, most)
    kinds = {node: group.kind for group in groups for node in group.nodes}
    assert sorted(node for group in merged for node in group.nodes) == sorted(kinds)
    assert all(kinds[node] == group.kind for group in merged for node in group.nodes)
    assert sum(group.macs for group in merged) == sum(group.macs for group in groups)
    assert len(merged) <= max(most, len({group.kind for group in groups}))
