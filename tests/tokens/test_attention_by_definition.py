"""ONNX's own fused attention: it is written in single operators, and then treated as they are."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tests.small_graphs import context, operators, run
from tests.tokens.aggregate_networks import images, vision
from tests.tokens.attention_networks import fused

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


def answer(model: Model, data: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(run(model, data).values()))


def test_what_defines_the_operator_computes_the_same():
    model = vision(blocks=2)
    data, one = images(model), fused(model)
    assert operators(one)["Attention"] == 2 and not operators(one)["Softmax"]
    before = one.digest()
    single = one.with_ir(by_definition(one.ir))
    assert one.digest() == before
    assert operators(single)["Softmax"] == 2 and not operators(single)["Attention"]
    np.testing.assert_allclose(answer(single, data), answer(one, data), rtol=0, atol=ROUNDING)
    assert [value.name for value in single.graph.outputs] == [value.name for value in one.graph.outputs]


HEADS = {"q_num_heads": 4, "kv_num_heads": 4}
LISTS = ((2, 5, 16), (2, 7, 16), (2, 7, 16))
FORMS = {
    "plain": (LISTS, None, HEADS),
    "float mask": (LISTS, np.float32, HEADS),
    "bool mask": (LISTS, np.bool_, HEADS),
    "fewer heads of keys": (((2, 5, 16), (2, 7, 8), (2, 7, 8)), np.float32, {"q_num_heads": 4, "kv_num_heads": 2}),
    "softcap": (LISTS, None, {**HEADS, "softcap": 0.5}),
    "causal": (((2, 5, 16),) * 3, None, {**HEADS, "is_causal": 1}),
    "scale": (LISTS, np.bool_, {**HEADS, "scale": 1.7}),
    "four axes": (((2, 4, 5, 4), (2, 4, 7, 4), (2, 4, 7, 4)), np.bool_, {}),
}


def attention(shapes, mask, attributes, opset):
    """Return a graph of one attention, and what it reads."""
    generator = np.random.default_rng(0)
    data = {name: generator.normal(size=shape).astype(np.float32) for name, shape in zip("qkv", shapes, strict=True)}
    if mask is not None:
        drawn = generator.normal(0, 3, (shapes[0][-2], shapes[1][-2]))
        data["mask"] = drawn > -1 if mask is np.bool_ else drawn.astype(mask)
        if mask is np.bool_:
            # Some keys are hidden from each query, and some are not.
            assert data["mask"].any(1).all() and not data["mask"].all()
    node = helper.make_node("Attention", list(data), ["out"], name="attention", **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in data.items()
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shapes[0])
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), data


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_operator_gives_what_the_standard_says(name, opset):
    # ONNX's own evaluator says it: it computes the operator with numpy, not by its definition in single operators.
    one, data = attention(*FORMS[name], opset)
    single = ir.to_proto(by_definition(ir.from_proto(one)))
    kinds = [node.op_type for node in single.graph.node]
    assert "Softmax" in kinds and "Attention" not in kinds
    (expected,) = ReferenceEvaluator(one).run(None, data)
    (found,) = ReferenceEvaluator(single).run(None, data)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    if FORMS[name][1] is not None:
        turned = {**data, "mask": np.roll(data["mask"], 1, axis=1)}
        (other,) = ReferenceEvaluator(single).run(None, turned)
        assert np.abs(other - expected).max() > 100 * ROUNDING  # the mask is read


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
