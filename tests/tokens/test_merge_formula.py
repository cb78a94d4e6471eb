"""The formulas of token merging against an independent reading of the paper, and against their nodes in a graph."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.graph.edit import GraphEditor
from edgesmith_tokens.merging.formula import match, merge, most_merged, unmerge
from edgesmith_tokens.merging.graph import merge_by_chance, merge_by_metric
from edgesmith_tokens.merging.schedule import constant, decreasing, fitted, listed, shared_out, spread
from edgesmith_tokens.tokens.reduction import Tokens
from edgesmith_tokens.tokens.sizes import logarithms, weigh_keys
from edgesmith_tokens.tokens.writer import Writer

FORMS = ("one-hot", "scatter")
WIDTH, SIZE = 5, 4


@st.composite
def merges(draw, most_protected: int = 4):
    """Tokens, protected tokens, r, and images; few different metrics, so that there are ties."""
    protected = draw(st.integers(0, most_protected))
    tokens = protected + draw(st.integers(2, 15))
    r = draw(st.integers(1, most_merged(tokens, protected)))
    batch, seed = draw(st.integers(1, 3)), draw(st.integers(0, 1000))
    generator = np.random.default_rng(seed)
    metric = generator.normal(0, 1, (batch, tokens, SIZE))
    if draw(st.booleans()):
        # Corners of a cube have one length, so equal ones are equal in cosine too, to the last bit.
        metric = np.sign(metric)
    x = generator.normal(0, 1, (batch, tokens, WIDTH))
    sizes = generator.integers(1, 5, (batch, tokens, 1)).astype(float)
    return x.astype(np.float32), metric.astype(np.float32), sizes.astype(np.float32), r, protected


def by_the_paper(x, metric, sizes, r, protected):
    """ToMe step by step in torch, with the class row and the distillation column at -inf; for up to two protected."""
    x, metric, sizes = (torch.from_numpy(each) for each in (x, metric, sizes))
    r = min(r, (x.shape[1] - protected) // 2)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    if protected > 0:
        scores[:, 0, :] = -torch.inf
    if protected > 1:
        scores[:, :, 0] = -torch.inf
    best = scores.amax(dim=-1)
    partner = (scores == best[..., None]).int().argmax(dim=-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    stays, goes = order[:, r:], order[:, :r]
    if protected:
        stays = stays.sort(dim=-1).values
    to = partner.gather(-1, goes)

    def joined(values):
        first, second = values[:, ::2], values[:, 1::2].clone()
        wide = values.shape[-1]
        kept = first.gather(1, stays[..., None].expand(-1, -1, wide))
        moved = first.gather(1, goes[..., None].expand(-1, -1, wide))
        second = second.scatter_add(1, to[..., None].expand(-1, -1, wide), moved)
        if protected > 1:
            return torch.cat([kept[:, :1], second[:, :1], kept[:, 1:], second[:, 1:]], dim=1)
        return torch.cat([kept, second], dim=1)

    total, size = joined(x * sizes), joined(sizes)
    return (total / size).numpy(), size.numpy()


@settings(max_examples=60, deadline=None)
@given(case=merges(most_protected=2))
def test_the_formula_is_what_the_paper_does(case):
    x, metric, sizes, r, protected = case
    values, counts = merge(x, sizes, match(metric, r, protected), protected)
    wanted_values, wanted_counts = by_the_paper(*case)
    assert np.array_equal(counts, wanted_counts)
    # Sums of up to 8 float32 numbers below 25, divided: at most a few units in the last place.
    np.testing.assert_allclose(values, wanted_values, rtol=0, atol=1e-5)


def merge_graph(tokens, r, protected, form, chance=None):
    """A graph that merges once, and gives all tokens back."""
    names = {"x": WIDTH, "metric": SIZE, "sizes": 1}
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", tokens, width]))
        for name, width in names.items()
    ]
    start = ir.node("Identity", [inputs[0]], name="start")
    start.outputs[0].name, start.outputs[0].shape, start.outputs[0].type = "held", inputs[0].shape, inputs[0].type
    graph = ir.Graph(inputs, [start.outputs[0]], nodes=[start], opset_imports={"": 20}, name="merge")
    writer = Writer(GraphEditor(graph), start.outputs[0])
    held = Tokens(start.outputs[0], tokens, inputs[2])
    if chance is None:
        result = merge_by_metric(writer, held, inputs[1], r, protected, form)
    else:
        result = merge_by_chance(writer, held, np.random.default_rng(chance), r, protected, form)
    restored = result.restore(writer, result.values)
    for name, value in (("values", result.values), ("counts", result.sizes), ("restored", restored)):
        value.name = name
        graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


@settings(max_examples=10, deadline=None)
@given(case=merges())
def test_both_forms_the_formula_and_torch_agree_with_ties_to_the_lowest_place(case):
    x, metric, sizes, r, protected = case
    matching = match(metric, r, protected)
    values, counts = merge(x, sizes, matching, protected)
    feeds = {"x": x, "metric": metric, "sizes": sizes}
    for form in FORMS:
        model = merge_graph(x.shape[1], r, protected, form)
        results = ReferenceSession(model).run(feeds)
        with torch.no_grad():
            torch_results = TorchGraph(model)({name: torch.from_numpy(each) for name, each in feeds.items()})
        for found in (results, {name: each.numpy() for name, each in torch_results.items()}):
            assert np.array_equal(found["counts"], counts)
            np.testing.assert_allclose(found["values"], values, rtol=0, atol=1e-5)
            assert np.array_equal(found["restored"], unmerge(found["values"], matching, protected))


def test_equal_tokens_go_to_the_first_of_equals():
    metric = np.ones((1, 9, SIZE), np.float32)
    matching = match(metric, 3, 1)
    assert matching.sources.tolist() == [[2, 4, 6]] and matching.kept.tolist() == [[8]]
    assert matching.destinations.tolist() == [[0, 0, 0]] and matching.others.tolist() == [1, 3, 5, 7]


@settings(max_examples=10, deadline=None)
@given(case=merges(), chance=st.integers(0, 5))
def test_chance_draws_the_same_pairs_for_all_images_and_loses_nothing(case, chance):
    x, metric, sizes, r, protected = case
    model = merge_graph(x.shape[1], r, protected, "one-hot", chance)
    # The metric is not read; an input that nobody reads may be fed all the same.
    results = ReferenceSession(model).run({"x": x, "metric": metric, "sizes": sizes})
    assert results["values"].shape[1] == x.shape[1] - r
    np.testing.assert_allclose(results["counts"].sum(axis=1), sizes.sum(axis=1))
    np.testing.assert_allclose(
        (results["values"] * results["counts"]).sum(axis=1), (x * sizes).sum(axis=1), rtol=0, atol=1e-3
    )
    np.testing.assert_array_equal(results["values"][:, :protected], x[:, :protected])
    alone = ReferenceSession(model).run({"x": x[:1], "metric": metric[:1], "sizes": sizes[:1]})
    np.testing.assert_array_equal(alone["values"], results["values"][:1])


def attention(queries, keys, values, bias=0.0):
    scores = queries @ keys.T / np.sqrt(keys.shape[-1]) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ values


def test_merged_duplicates_leave_attention_as_it_was_and_only_with_log_sizes():
    generator = np.random.default_rng(0)
    tokens = generator.normal(0, 1, (11, 6))
    tokens[[4, 6, 8]] = tokens[3]
    matching = match(tokens[None], 3, 1)
    merged, sizes = merge(tokens[None], np.ones((1, 11, 1)), matching, 1)
    assert sorted(matching.sources[0].tolist()) == [4, 6, 8] and sizes.max() == 4
    query = generator.normal(0, 1, (5, 6))
    whole = attention(query, tokens, tokens)
    weighed = attention(query, merged[0], merged[0], np.log(sizes[0, :, 0]))
    # Sums of eleven terms in float64, in another order.
    assert np.abs(weighed - whole).max() < 1e-14
    assert np.abs(attention(query, merged[0], merged[0]) - whole).max() > 1e-2


@given(r=st.integers(0, 30), blocks=st.integers(1, 24), tokens=st.integers(1, 300), protected=st.integers(0, 5))
def test_schedules_keep_their_promises(r, blocks, tokens, protected):
    assert sum(spread(r, blocks)) == r and max(spread(r, blocks)) - min(spread(r, blocks)) <= 1
    falling = decreasing(r, blocks)
    assert falling[0] == 2 * r and list(falling) == sorted(falling, reverse=True)
    assert blocks == 1 or (falling[-1] == 0 and r * blocks - blocks < sum(falling) <= r * blocks)
    assert listed((3, 4), 4) == (3, 4, 0, 0) and listed((1, 2, 3), 2) == (1, 2)
    counts = fitted(constant(r, blocks), tokens, protected)
    left = tokens
    for count in counts:
        assert 0 <= count <= min(r, max(0, (left - protected) // 2))
        left -= count
    assert left >= min(tokens, protected + 1)


@given(total=st.integers(0, 300), blocks=st.integers(1, 24), tokens=st.integers(1, 300), protected=st.integers(0, 5))
def test_a_total_is_met_where_blocks_have_the_room(total, blocks, tokens, protected):
    counts = shared_out(total, blocks, tokens, protected)
    assert fitted(counts, tokens, protected) == counts
    assert sum(counts) == min(total, sum(fitted(constant(tokens, blocks), tokens, protected)))
    equal = spread(total, blocks)
    assert counts == equal or fitted(equal, tokens, protected) != equal


@pytest.mark.parametrize(
    ("tokens", "protected", "most"), [(197, 1, 98), (198, 2, 98), (196, 0, 98), (3, 1, 1), (2, 1, 0)]
)
def test_half_of_the_unprotected_tokens_go_at_most(tokens, protected, most):
    assert most_merged(tokens, protected) == most


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sizes_are_weighed_in_float32_whatever_the_scores_are_in(dtype):
    kind = ir.DataType.FLOAT16 if dtype == np.float16 else ir.DataType.FLOAT
    scores = ir.Value(name="scores", type=ir.TensorType(kind), shape=ir.Shape(["batch", 2, 3, 5]))
    sizes = ir.Value(name="sizes", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 5, 1]))
    softmax = ir.node("Softmax", [scores], {"axis": -1}, name="softmax")
    softmax.outputs[0].name, softmax.outputs[0].type = "weights", scores.type
    softmax.outputs[0].shape = scores.shape
    graph = ir.Graph([scores, sizes], [softmax.outputs[0]], nodes=[softmax], opset_imports={"": 20}, name="weigh")
    editor = GraphEditor(graph)
    weigh_keys(editor, softmax, logarithms(Writer(editor, sizes), sizes))
    assert softmax.inputs[0].dtype == ir.DataType.FLOAT and graph.outputs[0].dtype == kind
    assert graph.outputs[0].name == "weights"
    generator = np.random.default_rng(0)
    feeds = {"scores": generator.normal(0, 1, (2, 2, 3, 5)).astype(dtype)}
    feeds["sizes"] = generator.integers(1, 9, (2, 5, 1)).astype(np.float32)
    (found,) = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, feeds)
    exponentials = np.exp(feeds["scores"].astype(float)) * feeds["sizes"].reshape(2, 1, 1, 5)
    assert found.dtype == dtype
    # Half a unit in the last place of the type that the weights are in, for weights below 1.
    wanted = exponentials / exponentials.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-4 if dtype == np.float16 else 1e-6)
