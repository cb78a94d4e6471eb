"""ONNX's own fused attention: it is written in single operators, and then treated as they are."""

import numpy as np
import pytest
from tests.small_graphs import context, operators, run
from tests.tokens.aggregate_networks import images, vision

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith.testing.models import tiny_bert
from edgesmith_tokens.aggregate_tokens import AggregateTokens
from edgesmith_tokens.merge_tokens import MergeTokens
from edgesmith_tokens.options.aggregation import AggregateTokensOptions
from edgesmith_tokens.options.merging import MergeTokensOptions
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static_attention import StaticAttention
from edgesmith_tokens.tokens.definition import by_definition

METHODS = {
    "merge": (MergeTokens, MergeTokensOptions(r=2)),
    "aggregate": (AggregateTokens, AggregateTokensOptions(at=(1,), form="pool")),
    "static": (StaticAttention, StaticAttentionOptions(blocks=(0, 2), form="mean")),
}
# Sums of up to 24 products of float32 in another order, of values below 10.
ROUNDING = 1e-5


def fused(model: Model, *, masked: bool = False, handed_out: bool = False) -> Model:
    """Return a copy with one operator for each attention: lists of tokens go in, heads side by side."""
    copy = model.clone()
    copy.graph.opset_imports[""] = 23
    values = {value.name: value for node in copy.graph for value in node.outputs}
    editor = GraphEditor(copy.graph)
    for attention in find_structure(copy.ir).attentions:
        parts = [values[each.linear.output] for each in (attention.query, attention.key, attention.value)]
        if masked:
            parts.append(editor.add_initializer("no_mask", np.zeros((17, 17), np.float32)))
        joined = values[attention.output.linear.input]
        heads = {"q_num_heads": attention.heads, "kv_num_heads": attention.kv_heads}
        new = editor.insert_before(joined.producer(), "Attention", parts, heads, name=f"{attention.score}_fused")
        editor.take_over(joined.producer(), new.outputs[0])
        if handed_out:
            copy.graph.outputs.append(new.outputs[0])
    return copy


def answer(model: Model, data: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(run(model, data).values()))


@pytest.mark.parametrize("masked", [False, True])
def test_what_defines_the_operator_computes_the_same(masked):
    model = vision(blocks=2)
    data, one = images(model), fused(model, masked=masked)
    assert operators(one)["Attention"] == 2 and not operators(one)["Softmax"]
    before = one.digest()
    single = one.with_ir(by_definition(one.ir))
    assert one.digest() == before
    assert operators(single)["Softmax"] == 2 and not operators(single)["Attention"]
    np.testing.assert_allclose(answer(single, data), answer(one, data), rtol=0, atol=ROUNDING)
    assert [value.name for value in single.graph.outputs] == [value.name for value in one.graph.outputs]


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_to_one_operator_what_they_do_to_single_ones(name):
    method, options = METHODS[name]
    model = vision(blocks=3)
    data, results = images(model, 8), []
    for each in (model, fused(model)):
        assert method().check(each, context(options, data)).status == "ok"
        results.append(answer(method().apply(each, context(options, data)), data))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=ROUNDING)


def test_graphs_without_it_and_what_has_no_definition_stay():
    model = vision(blocks=2)
    assert by_definition(model.ir) is model.ir
    runtime = fused(model)
    for node in runtime.graph:
        if node.op_type == "Attention":
            node.op_type, node.domain = "MultiHeadAttention", "com.microsoft"
    assert by_definition(runtime.ir) is runtime.ir
    verdict = MergeTokens().check(runtime, context(MergeTokensOptions(r=2)))
    assert verdict.status == "refuse" and "fused operator MultiHeadAttention" in verdict.reason


def test_nothing_is_taken_apart_where_nothing_becomes_static():
    model = fused(vision(blocks=2))
    settings = context(StaticAttentionOptions(threshold=1.0), images(model, 8))
    result = StaticAttention().apply(model, settings)
    assert operators(result) == operators(model)
    text = StaticAttention().check(tiny_bert(), settings)
    assert text.status == "refuse"
