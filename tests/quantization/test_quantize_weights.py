"""Weight-only quantization: what is stored, what is computed, what is refused, and that everything shared stays so."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesmith.errors import DataError, StepError
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.dialect import WeightFormat
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.arithmetic.blocks import dequantize_blocks, round_blocks
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights
from small_graphs import context, graph, node, operators, run, sqnr

SYMMETRIC = replace(
    DIALECT,
    name="symmetric",
    weight_only=(
        WeightFormat("int8", block_sizes=(32, 64, 128), opset=21),
        WeightFormat("int4", block_sizes=(32, 64, 128), opset=21),
    ),
    refusals={"int2": "its parser rejects the type; int4 holds the same codes in twice the bytes"},
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def quantize(model, data=None, dialect=DIALECT, **options):
    used = context(QuantizeWeightsOptions(**options), data, dialect)
    return QuantizeWeights().apply(model, used)


def check(model, data=None, dialect=DIALECT, **options):
    return QuantizeWeights().check(model, context(QuantizeWeightsOptions(**options), data, dialect))


def product(inputs=70, outputs=24, opset=20):
    weights = {"w": normal(inputs, outputs)}
    return graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", inputs]}, opset=opset)


def language_model():
    """An embedding, two layers and a head that shares the embedding's table."""
    nodes = [
        node("Gather", ["table", "ids"], "h"),
        node("MatMul", ["h", "w"], "g"),
        node("Relu", ["g"], "r"),
        node("MatMul", ["r", "v"], "s"),
        node("Transpose", ["table"], "head", perm=[1, 0]),
        node("MatMul", ["s", "head"], "y"),
    ]
    weights = {"table": normal(50, 64), "w": normal(64, 96, seed=1), "v": normal(96, 64, seed=2)}
    return graph(nodes, weights, {"ids": ["n", 4]}, types={"ids": onnx.TensorProto.INT64})


IDS = {"ids": np.random.default_rng(0).integers(0, 50, (32, 4))}


def weights_of(model, inputs):
    """Return what each DequantizeLinear of a model computes, by the name of its node."""
    copy = model.clone()
    nodes = [each for each in copy.graph if each.op_type == "DequantizeLinear"]
    copy.graph.outputs.extend(each.outputs[0] for each in nodes)
    results = run(copy, inputs)
    return {each.name: results[each.outputs[0].name] for each in nodes}


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [None, 16, 32, 128])
def test_stored_weights_are_those_that_were_rounded(bits, symmetric, block_size):
    """What ONNX Runtime dequantizes equals the rounded blocks, bit for bit, also with a shorter last block."""
    result = quantize(product(), bits=bits, symmetric=symmetric, block_size=block_size, rounding="nearest")
    size = block_size if block_size is not None and block_size < 70 else None
    expected = dequantize_blocks(round_blocks(normal(70, 24).T, bits, size, symmetric))
    (actual,) = weights_of(result, {"x": normal(3, 70)}).values()
    np.testing.assert_array_equal(actual, expected.T)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_scales_and_bias(transposed):
    weights = {"w": normal(40, 70) if transposed else normal(70, 40), "b": normal(40)}
    nodes = [node("Gemm", ["x", "w", "b"], "y", transB=transposed, alpha=0.5, beta=2.0)]
    model = graph(nodes, weights, {"x": ["n", 70]})
    data = {"x": normal(64, 70)}
    result = quantize(model, data, bits=8, rounding="second-order")
    # 255 steps over a block of 32 normal values, about 4.2 deviations wide: noise of 4.2^2 / 255^2 / 12 is -46 dB.
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 43


@pytest.mark.parametrize("rounding", ["nearest", "mse", "second-order"])
def test_a_table_that_a_head_shares_is_stored_once(rounding):
    result = quantize(language_model(), IDS, rounding=rounding)
    assert operators(result) == {"Gather": 1, "MatMul": 3, "Relu": 1, "Transpose": 1, "DequantizeLinear": 3}
    (table,) = [each for each in result.graph if each.name == "table_dequantize"]
    assert {use.node.op_type for use in table.outputs[0].uses()} == {"Gather", "Transpose"}
    assert sorted(value.name for value in table.inputs) == ["table_quantized", "table_scale", "table_zero_point"]
    assert not {"table", "w", "v"} & set(result.graph.initializers)


def test_tables_may_have_bits_of_their_own():
    result = quantize(language_model(), bits=4, table_bits=8)
    types = {name: value.dtype for name, value in result.graph.initializers.items() if name.endswith("quantized")}
    assert types == {
        "table_quantized": ir.DataType.UINT8,
        "w_quantized": ir.DataType.UINT4,
        "v_quantized": ir.DataType.UINT4,
    }


def test_codes_are_stored_packed():
    model, result = product(128, 64), quantize(product(128, 64), bits=4, block_size=32)
    sizes = [sum(value.const_value.nbytes for value in each.graph.initializers.values()) for each in (model, result)]
    # 4 bits a weight, and for each 32 of them a scale of 32 bits and a zero point of 4: 5.125 bits of 32.
    assert sizes[1] == sizes[0] * 5.125 / 32


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_second_order_rounding_lowers_the_error_of_the_output(bits):
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(70, 70))
    model = product()
    calibration, other = ({"x": (generator.normal(size=(500, 70)) @ mixing).astype(np.float32)} for _ in range(2))
    expected = run(model, other)["y"]
    noise = {
        rounding: sqnr(
            expected, run(quantize(model, calibration, bits=bits, rounding=rounding, samples=500), other)["y"]
        )
        for rounding in ("nearest", "mse", "second-order")
    }
    # On inputs that are as strongly mixed as these, errors of one weight can be taken up by others: at least 1 dB.
    assert noise["second-order"] > noise["mse"] + 1
    assert noise["mse"] >= noise["nearest"] - 0.1


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("statistics_mib", [1, 1024])
def test_passes_of_few_layers_give_the_same_codes(descending, statistics_mib):
    options = {"rounding": "second-order", "descending": descending}
    whole = quantize(language_model(), IDS, **options)
    parts = quantize(language_model(), IDS, statistics_mib=statistics_mib, **options)
    assert ir.to_proto(whole.ir).SerializeToString() == ir.to_proto(parts.ir).SerializeToString()


def test_layers_without_known_inputs_are_rounded_by_least_squared_error():
    nodes = [node("Gemm", ["x", "w"], "y", transA=1)]
    model = graph(nodes, {"w": normal(70, 24)}, {"x": [70, 3]})
    data = {"x": normal(70, 3)}
    by_output, by_weight = (
        quantize(model, {"x": data["x"]}, rounding=rounding, samples=1) for rounding in ("second-order", "mse")
    )
    np.testing.assert_array_equal(run(by_output, data)["y"], run(by_weight, data)["y"])


@pytest.mark.parametrize(("kernel", "group"), [(3, 1), (1, 1), (3, 4)])
def test_convolutions_when_asked_for(kernel, group):
    weight = normal(8, 32 // group, kernel, kernel)
    model = graph([node("Conv", ["x", "w"], "y", group=group)], {"w": weight}, {"x": ["n", 32, 6, 6]})
    assert check(model).status == "skip"
    result = quantize(model, bits=8, block_size=16, operators=("Conv",))
    data = {"x": normal(2, 32, 6, 6)}
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 40
    (dequantize,) = [each for each in result.graph if each.op_type == "DequantizeLinear"]
    assert ("block_size" in dequantize.attributes) == (kernel == 1)


def test_half_precision_weights_stay_half_precision():
    half = onnx.TensorProto.FLOAT16
    weights = {"w": normal(64, 24).astype(np.float16)}
    model = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 64]}, types={"x": half, "y": half})
    result = quantize(model, bits=8)
    data = {"x": normal(5, 64).astype(np.float16)}
    assert run(result, data)["y"].dtype == np.float16
    assert sqnr(run(model, data)["y"], run(result, data)["y"]) > 40


@pytest.mark.parametrize("rounding", ["nearest", "mse", "second-order"])
@pytest.mark.parametrize("form", [{"symmetric": True}, {"symmetric": False}, {"offsets": True}])
def test_small_half_precision_weights_lose_little_to_scales_of_half_precision(rounding, form):
    """Their scales are subnormal, with a step of a tenth: codes for the float32 scale would be off by several steps."""
    half = onnx.TensorProto.FLOAT16
    small = (normal(128, 24) * 5e-5).astype(np.float16)
    data, found = {"x": normal(256, 128, seed=1)}, []
    for weight in (small, small.astype(np.float32)):
        types = {"x": half, "y": half} if weight.dtype == np.float16 else None
        model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", 128]}, types=types)
        given = {"x": data["x"].astype(weight.dtype)}
        result = quantize(model, given, bits=8, rounding=rounding, **form)
        stored = run(result, {"x": np.eye(128, dtype=weight.dtype)})["y"]
        found.append(sqnr(small.astype(np.float32), stored.astype(np.float32)))
    assert found[1] > 40
    # Rounded up, scales above 2e-7 grow by a quarter at most and by a tenth in the mean, which is 1 dB.
    assert found[0] > found[1] - 1.5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "mse", "second-order"])
def test_pruned_weights_stay_exactly_zero(symmetric, rounding):
    weight = normal(70, 24)
    weight[::2, :12], weight[:, 3] = 0, 0
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", 70]})
    result = quantize(model, {"x": normal(64, 70)}, bits=4, symmetric=symmetric, rounding=rounding)
    (stored,) = weights_of(result, {"x": normal(1, 70)}).values()
    if rounding == "second-order":  # errors of other weights may move into a zero; whole zero channels have none
        assert (stored[:, 3] == 0).all()
    else:
        assert (stored[weight == 0] == 0).all()


def test_opset_rises_only_as_far_as_the_form_needs():
    assert quantize(product(), bits=8, block_size=None).graph.opset_imports[""] == 20
    assert quantize(product(), bits=8).graph.opset_imports[""] == 21
    assert quantize(product(opset=22), bits=4).graph.opset_imports[""] == 22
    assert quantize(product(), bits=2).graph.opset_imports[""] == 25


def test_dialects_decide_the_form():
    result = quantize(product(), dialect=SYMMETRIC, bits=4)
    (dequantize,) = [each for each in result.graph if each.op_type == "DequantizeLinear"]
    assert [value.dtype for value in dequantize.inputs] == [ir.DataType.INT4, ir.DataType.FLOAT]
    data = {"x": normal(8, 70)}
    assert sqnr(run(product(), data)["y"], run(result, data)["y"]) > 15


WHOLE = replace(
    SYMMETRIC, name="whole", weight_only=(WeightFormat("int4", block_sizes=(16, 32, 128), opset=21, whole_blocks=True),)
)


@pytest.mark.parametrize(("inputs", "wanted", "taken"), [(192, 128, 32), (96, 32, 32), (48, 32, 16)])
def test_where_blocks_must_be_whole_the_largest_that_divides_is_taken(inputs, wanted, taken):
    used = context(QuantizeWeightsOptions(bits=4, block_size=wanted), None, WHOLE)
    result = QuantizeWeights().apply(product(inputs), used)
    (dequantize,) = [each for each in result.graph if each.op_type == "DequantizeLinear"]
    assert dequantize.attributes.get_int("block_size") == taken
    codes, scales = (value.shape for value in dequantize.inputs[:2])
    assert codes[0] == scales[0] * taken
    assert (f"blocks of {taken}, which divide them" in " ".join(used.notes.remarks)) == (taken != wanted)
    data = {"x": normal(8, inputs)}
    assert sqnr(run(product(inputs), data)["y"], run(result, data)["y"]) > 15


def test_a_weight_that_no_whole_blocks_divide_stays_in_float():
    verdict = check(product(100), dialect=WHOLE, bits=4, block_size=32)
    assert verdict.status == "skip" and "divides 100 inputs" in verdict.reason
    with pytest.raises(StepError, match="divides 100 inputs"):
        quantize(product(100), dialect=WHOLE, bits=4, block_size=32)
    assert check(product(100), dialect=SYMMETRIC, bits=4, block_size=32).status == "ok"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 2}, "symmetric takes no int2: its parser rejects the type; int4 holds the same codes"),
        ({"table_bits": 2}, "symmetric takes no int2"),
        ({"symmetric": False}, "takes int8, int4"),
        ({"block_size": 16}, "has no blocks of 16 for 4 bits; block_size may be 32, 64, 128"),
    ],
)
def test_forms_that_a_target_lacks_are_refused_with_what_would_work(options, reason):
    verdict = check(product(), dialect=SYMMETRIC, **options)
    assert verdict.status == "refuse"
    assert reason in verdict.reason
    with pytest.raises(StepError, match="cannot write this form"):
        quantize(product(), dialect=SYMMETRIC, **options)


def test_targets_that_read_older_opsets_refuse_newer_types():
    verdict = check(product(), dialect=replace(DIALECT, opset=22), bits=2)
    assert "2 bits are written from opset 25 on; onnx-cpu reads 22" in verdict.reason
    nothing = check(product(), dialect=replace(DIALECT, weight_only=()))
    assert "takes no weights of few bits" in nothing.reason


def test_second_order_needs_data():
    verdict = check(product(), rounding="second-order")
    assert (verdict.status, "--data" in verdict.reason) == ("refuse", True)
    with pytest.raises(DataError, match="no calibration data"):
        quantize(product(), rounding="second-order")
    assert QuantizeWeightsOptions(rounding="second-order").needs.data
    assert not QuantizeWeightsOptions().needs.data


def test_too_few_rows_of_calibration_data_are_reported():
    used = context(QuantizeWeightsOptions(rounding="second-order"), {"x": normal(20, 70)})
    QuantizeWeights().apply(product(), used)
    assert any("20 rows for 70 inputs" in remark for remark in used.notes.remarks)


def test_what_is_quantized_already_is_left_alone():
    once = quantize(language_model(), only=("node_g",))
    verdict = check(once)
    assert verdict.status == "ok"
    assert "node_g" not in verdict.nodes
    assert set(verdict.nodes) == {"node_h", "node_s", "node_y"}
    whole = quantize(once)
    assert check(whole).status == "skip"
    with pytest.raises(StepError, match="already quantized"):
        quantize(whole)


@pytest.mark.parametrize("rounding", ["nearest", "mse"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_stay_as_they_are(bad, kind, rounding):
    from onnx import TensorProto

    weights = {"w": normal(70, 24).astype(kind), "v": normal(24, 24).astype(kind)}
    weights["w"][3, 4] = bad
    half = dict.fromkeys("xy", TensorProto.FLOAT16 if kind is np.float16 else TensorProto.FLOAT)
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")]
    model = graph(nodes, weights, {"x": ["n", 70]}, types=half)
    used = context(QuantizeWeightsOptions(rounding=rounding, block_size=16))
    result = QuantizeWeights().apply(model, used)
    assert used.notes.skipped == {"node_h": "its weight holds NaN or infinity"}
    assert operators(result)["DequantizeLinear"] == 1
    assert result.graph.initializers["w"].const_value.tobytes() == weights["w"].tobytes()
    with pytest.raises(StepError, match="NaN or infinity"):
        quantize(model, only=("node_h",), rounding=rounding)


def test_names_that_match_no_node_are_refused():
    assert "which no node matches" in check(product(), skip=("nod_y",)).reason
    assert "the option float_inputs names 'nod_y'" in check(product(), float_inputs=("nod_y",)).reason


def test_products_say_what_may_happen_to_their_inputs():
    def marks(**options):
        result = quantize(language_model(), **options)
        return {each.name for each in result.graph if each.metadata_props.get("edgesmith.activations") == "int8"}

    assert marks() == {"node_g", "node_s", "node_y"}
    assert marks(activations="float") == set()
    assert marks(float_inputs=("node_[gs]",)) == {"node_y"}


def test_products_say_what_their_outputs_must_keep():
    result = quantize(language_model(), minimum_sqnr_db=34, float_inputs=("node_[gs]",))
    marks = {each.name: each.metadata_props.get("edgesmith.minimum_sqnr_db") for each in result.graph if each.name}
    assert {name: mark for name, mark in marks.items() if mark} == {"node_y": "34.0"}


def test_the_model_that_came_in_is_unchanged():
    model = language_model()
    before = ir.to_proto(model.ir).SerializeToString()
    quantize(model, IDS, rounding="second-order", bits=2)
    assert ir.to_proto(model.ir).SerializeToString() == before


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_llama", "tiny_cnn"])
def test_whole_networks(fixture, request):
    model = request.getfixturevalue(fixture)
    inputs = sample_inputs(model.ir)
    result = quantize(model, bits=8, block_size=16, operators=("MatMul", "Gemm", "Conv", "Gather"))
    for name, expected in run(model, inputs).items():
        assert sqnr(expected, run(result, inputs)[name]) > 30


@given(
    sizes=st.lists(st.integers(1, 80), min_size=2, max_size=4),
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([None, 16, 64]),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_random_chains_keep_their_outputs_and_store_each_weight_once(sizes, bits, block_size, symmetric, seed):
    nodes, weights, value = [], {}, "x"
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        weights[f"w{index}"] = normal(inputs, outputs, seed=seed + index)
        nodes.append(node("MatMul", [value, f"w{index}"], f"h{index}"))
        value = f"h{index}"
    nodes[-1].output[0] = "y"
    model = graph(nodes, weights, {"x": ["n", sizes[0]]})
    data = {"x": normal(6, sizes[0], seed=seed)}
    result = quantize(model, bits=bits, block_size=block_size, symmetric=symmetric)
    assert operators(result)["DequantizeLinear"] == len(weights)
    stored = weights_of(result, data)
    hidden = data["x"].astype(np.float64)
    for name in weights:
        hidden = hidden @ stored[f"{name}_dequantize"]
    # The graph computes with exactly these weights, up to the order of float32 sums of at most 80 terms in 3 layers.
    np.testing.assert_allclose(run(result, data)["y"], hidden, rtol=1e-3, atol=1e-5 * max(np.abs(hidden).max(), 1))


@pytest.mark.parametrize(
    "options", [{"bits": 3}, {"block_size": 48}, {"damping": 0}, {"samples": 0}, {"rounding": "x"}]
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValidationError):
        QuantizeWeightsOptions(**options)


def test_every_option_is_described():
    assert all(field.description for field in QuantizeWeightsOptions.model_fields.values())
