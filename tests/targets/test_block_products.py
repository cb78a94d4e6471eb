"""Weights of few bits in ONNX Runtime: equal outputs with inputs in float, bounded errors with rounded rows."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.sample import sample_inputs
from edgesmith.host.dialect import MINIMUM_SQNR_KEY
from edgesmith_onnxruntime.block_products import FEW_ROWS, lower_embeddings
from edgesmith_onnxruntime.cpu import OnnxCpu
from edgesmith_onnxruntime.rounding_noise import row_sqnr_db
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights
from small_graphs import context, executed_operators, graph, node, operators, run, sqnr

MANY = 4 * FEW_ROWS


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def quantize(model, **options):
    return QuantizeWeights().apply(model, context(QuantizeWeightsOptions(**options)))


def lower(model, data):
    used = context(None, data)
    return OnnxCpu().lower(model, used), used.notes.remarks


def product(inputs=96, outputs=40):
    return graph([node("MatMul", ["x", "w"], "y")], {"w": normal(inputs, outputs)}, {"x": ["n", "m", inputs]})


def data(rows=1, inputs=96):
    """Return two samples of so many rows, with a row of zeros."""
    values = normal(2, rows, inputs, seed=1)
    values[0, 0] = 0
    return {"x": values}


def language_model():
    nodes = [
        node("Gather", ["table", "ids"], "h"),
        node("MatMul", ["h", "w"], "g"),
        node("Relu", ["g"], "r"),
        node("Transpose", ["table"], "head", perm=[1, 0]),
        node("MatMul", ["r", "head"], "y"),
    ]
    weights = {"table": normal(50, 64), "w": normal(64, 64, seed=1)}
    return graph(nodes, weights, {"ids": ["n", "m"]}, types={"ids": onnx.TensorProto.INT64})


FORMS = [
    {"bits": bits, "block_size": block_size, "symmetric": symmetric}
    for bits in (8, 4, 2)
    for block_size in (None, 16, 32)
    for symmetric in (True, False)
] + [{"bits": bits, "block_size": 32, "offsets": True} for bits in (8, 4, 2)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("level", ["disabled", "basic", "all"])
def test_float_inputs_leave_outputs_as_they_are(form, level):
    model = quantize(product(), activations="float", **form)
    lowered, remarks = lower(model, data())
    assert remarks == ["Packed or expanded the weights of 1 products of few bits."]
    # The same products summed in another order: 96 terms of float32.
    assert sqnr(run(model, data())["y"], run(lowered, data(), level)["y"]) > 110


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rows", [1, MANY])
def test_rounded_rows_move_outputs_by_what_eight_bits_cost(form, rows):
    model = quantize(product(), **form)
    lowered, remarks = lower(model, data(rows))
    assert len(remarks) == 1
    assert "round their inputs to 8 bits row by row" in remarks[0]
    # A row of 96 normal values reaches about 2.6 deviations, so its 127 steps a side are 0.02 of one and their noise
    # is 0.0059^2, -45 dB. The weight's own second rounding adds as much, and the peak of a row varies: 35 dB.
    expected, actual = run(model, data(rows))["y"], run(lowered, data(rows), "all")["y"]
    assert sqnr(expected, actual) > 35
    np.testing.assert_array_equal(actual[0, 0], np.zeros(40))


def test_many_rows_run_in_integers_and_few_in_blocks():
    model = quantize(product(), bits=4)
    few, many = (executed_operators(lower(model, data(rows))[0]) for rows in (1, MANY))
    assert few == {"MatMulNBits": 1}
    assert many["MatMulIntegerToFloat"] == 1
    # Everything about the weight is computed while the graph loads.
    assert set(many) == {"Abs", "ReduceMax", "Max", "Div", "QuantizeLinear", "MatMulIntegerToFloat", "Mul"}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_files_keep_the_few_bits(bits):
    model = quantize(product(512, 256), bits=bits)
    for rows in (1, MANY):
        lowered, _ = lower(model, data(rows, 512))
        sizes = [sum(v.const_value.nbytes for v in each.graph.initializers.values()) for each in (model, lowered)]
        # Besides the codes there are a few shapes, and one float32 for each of 512 inputs.
        assert sizes[1] <= sizes[0] + 4 * 512 + 256


def test_products_of_one_input_share_its_codes():
    nodes = [node("MatMul", ["x", f"w{i}"], f"y{i}") for i in range(3)]
    weights = {f"w{i}": normal(96, 40, seed=i) for i in range(3)}
    model = quantize(graph(nodes, weights, {"x": ["n", "m", 96]}, ["y0", "y1", "y2"]))
    lowered, _ = lower(model, data(MANY))
    assert executed_operators(lowered)["QuantizeLinear"] == 1


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("rows", [2, MANY])
def test_gemm_with_bias(transposed, activations, rows):
    weights = {"w": normal(40, 96) if transposed else normal(96, 40), "b": 10 * normal(40)}
    model = graph([node("Gemm", ["x", "w", "b"], "y", transB=transposed)], weights, {"x": ["n", 96]})
    model = quantize(model, activations=activations)
    samples = {"x": normal(rows, 96)}
    lowered, _ = lower(model, samples)
    assert operators(lowered)["DequantizeLinear"] == 0
    assert sqnr(run(model, samples)["y"], run(lowered, samples, "all")["y"]) > (110 if activations == "float" else 35)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [1, MANY])
def test_a_shared_table_is_stored_once_and_selected_by_rows(bits, symmetric, rows):
    model = quantize(language_model(), bits=bits, symmetric=symmetric)
    ids = {"ids": np.random.default_rng(0).integers(0, 50, (2, rows))}
    lowered, remarks = lower(model, ids)
    assert any("embeddings dequantize the rows they select" in remark for remark in remarks)
    assert operators(lowered)["DequantizeLinear"] == 0
    tables = [v for v in lowered.graph.initializers.values() if v.const_value.size == 50 * 64]
    assert len(tables) == 1
    assert sqnr(run(model, ids)["y"], run(lowered, ids, "all")["y"]) > 33


@pytest.mark.parametrize("bits", [4, 8])
def test_selected_rows_equal_those_of_the_whole_table_bit_for_bit(bits):
    table = graph(
        [node("Gather", ["t", "ids"], "y")],
        {"t": normal(50, 64)},
        {"ids": ["n", "m"]},
        types={"ids": onnx.TensorProto.INT64},
    )
    model = quantize(table, bits=bits)
    ids = {"ids": np.random.default_rng(0).integers(0, 50, (3, 7))}
    lowered, _ = lower(model, ids)
    assert operators(lowered)["DequantizeLinear"] == 0
    np.testing.assert_array_equal(run(model, ids)["y"], run(lowered, ids, "all")["y"])


def table_model(rank=2, shape=(50, 64)):
    ids = [f"n{axis}" for axis in range(rank)]
    types = {"ids": onnx.TensorProto.INT64}
    return graph([node("Gather", ["t", "ids"], "y")], {"t": normal(*shape)}, {"ids": ids}, types=types)


@given(
    rank=st.integers(0, 3),
    rows=st.integers(2, 30),
    width=st.sampled_from([16, 64, 96]),
    bits=st.sampled_from([8, 4, 2]),
    block_size=st.sampled_from([None, 16, 32]),
    symmetric=st.booleans(),
    level=st.sampled_from(["disabled", "basic", "all"]),
)
@settings(max_examples=40, deadline=None)
def test_rows_of_every_form_are_selected_bit_for_bit(rank, rows, width, bits, block_size, symmetric, level):
    block_size = None if width == 16 else block_size
    model = quantize(table_model(rank, (rows, width)), bits=bits, block_size=block_size, symmetric=symmetric)
    lowered = model.clone()
    assert lower_embeddings(lowered.graph) == 1
    common_passes.RemoveUnusedNodesPass()(lowered.ir)
    assert operators(lowered)["DequantizeLinear"] == 0
    for sizes in ((3, 2, 4)[:rank], (0, 2, 4)[:rank], (2, 0, 4)[:rank]):
        ids = {"ids": np.random.default_rng(0).integers(-rows, rows, sizes)}
        expected, actual = run(model, ids)["y"], run(lowered, ids, level)["y"]
        assert actual.shape == (*sizes, width)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("bits", "block_size"), [(2, None), (2, 16), (4, None), (8, None), (8, 16)])
def test_no_run_dequantizes_the_whole_table(bits, block_size):
    model = quantize(table_model(), bits=bits, block_size=block_size)
    lowered, _ = lower(model, {"ids": np.array([[1, 2], [3, 4]])})
    # Codes, scales and zero points of the rows.
    assert executed_operators(lowered)["Gather"] == 3
    # Only the selected codes and zero points become floats in a run; those of few bits become bytes at load.
    assert executed_operators(lowered)["Cast"] == 2
    sizes = [sum(v.const_value.nbytes for v in each.graph.initializers.values()) for each in (model, lowered)]
    assert sizes[1] <= sizes[0] + 128  # shapes


def test_one_scale_for_all_rows_is_not_selected_by_row():
    nodes = [node("DequantizeLinear", ["q", "s"], "t", axis=0), node("Gather", ["t", "ids"], "y")]
    weights = {"q": np.arange(24, dtype=np.int8).reshape(6, 4), "s": np.array([0.5], np.float32)}
    model = graph(nodes, weights, {"ids": ["n"]}, types={"ids": onnx.TensorProto.INT64})
    assert lower_embeddings(model.clone().graph) == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, MANY])
def test_inputs_that_rows_of_eight_bits_cannot_hold_stay_in_float(bits, rows):
    weight = normal(96, 40)
    weight[0] = 0
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": weight}, {"x": ["n", "m", 96]})
    model = quantize(model, bits=bits, block_size=32, symmetric=True)
    samples = {"x": normal(2, rows, 96, seed=1)}
    # One channel rules all rows and counts for nothing: its steps are larger than all that the others hold.
    samples["x"][..., 0] = 1e8
    lowered, remarks = lower(model, samples)
    assert any("Kept inputs of 1 products" in remark for remark in remarks)
    assert operators(lowered)["DequantizeLinear"] == 0
    assert {"QuantizeLinear", "MatMulIntegerToFloat"}.isdisjoint(operators(lowered))
    # Zero is stored as zero, so only the sum of 96 terms of float32 differs in order.
    assert sqnr(run(model, samples)["y"], run(lowered, samples, "all")["y"]) > 110


def test_blocks_that_do_not_fill_the_dimension_stay_right():
    model = quantize(product(70, 24), bits=4, block_size=32)
    for rows in (1, MANY):
        samples = {"x": normal(2, rows, 70)}
        lowered, _ = lower(model, samples)
        assert sqnr(run(model, samples)["y"], run(lowered, samples)["y"]) > 35


def test_other_peoples_blocks_are_packed_without_rounding_inputs():
    model = quantize(product())
    for each in model.graph:
        each.metadata_props.clear()
    lowered, _ = lower(model, data())
    assert sqnr(run(model, data())["y"], run(lowered, data(), "all")["y"]) > 110
    (packed,) = [each for each in lowered.graph if each.op_type == "MatMulNBits"]
    assert packed.attributes.get_int("accuracy_level") == 1


def peaked(*shape, seed=0):
    """Return rows with another channel 30 times larger in each: steps of rows are too wide, and no channel's fault."""
    values = normal(*shape, seed=seed)
    rows = np.arange(shape[-2])
    values[..., rows, rows % shape[-1]] *= 30
    return values


def energies(rows):
    return np.square(rows).sum(axis=-1).ravel()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_keeps_its_input_where_rounding_costs_more_than_it_allows(bits):
    nodes = [node("MatMul", ["even", "w"], "y"), node("MatMul", ["peaks", "w"], "z")]
    inputs = {"even": ["n", "m", 96], "peaks": ["n", "m", 96]}
    model = graph(nodes, {"w": normal(96, 40)}, inputs, ["y", "z"])
    samples = {"even": normal(2, MANY, 96, seed=1), "peaks": peaked(2, MANY, 96, seed=2)}
    exact = run(quantize(model, bits=bits), samples)

    def kept(**options):
        lowered, remarks = lower(quantize(model, bits=bits, **options), samples)
        found = run(lowered, samples, "all")
        ratios = {name: row_sqnr_db(energies(exact[name]), energies(exact[name] - found[name])) for name in exact}
        return operators(lowered)["MatMulIntegerToFloat"], ratios, remarks

    # A peak P is all of a row's energy P^2, and 95 more inputs lose (P/127)^2/12 each: 33 dB, and a few more where
    # factors of channels help. Rows without peaks are 39 dB or better.
    count, without, _ = kept()
    assert count == 2 and without["z"] < 37 < without["y"]
    count, ratios, remarks = kept(minimum_sqnr_db=37)
    assert count == 1
    assert 110 > ratios["y"] > without["y"] - 0.01
    assert ratios["z"] > 110
    (kept_one,) = [remark for remark in remarks if "Kept inputs of 1 products" in remark]
    (measured,) = set(re.findall(r"[0-9.]+(?= to| dB)", kept_one))
    # Rounded to a tenth, and evened out at least as well as without measuring.
    assert without["z"] - 0.06 < float(measured) < 37
    assert any("1 products of few bits round their inputs" in remark for remark in remarks)


def test_rows_of_a_few_large_tokens_cost_other_rows_nothing():
    model = quantize(product(), bits=8, minimum_sqnr_db=35)
    samples = data(MANY)
    samples["x"][:, 1, :3] = 5000
    lowered, _ = lower(model, samples)
    assert operators(lowered)["MatMulIntegerToFloat"] == 1
    exact, found = run(model, samples)["y"][:, 2:], run(lowered, samples, "all")["y"][:, 2:]
    # As without the large row (see above). Were channels evened out by their peaks, the weights of three of them would
    # rule the codes of all others: 20 dB.
    assert row_sqnr_db(energies(exact), energies(exact - found)) > 35


@pytest.mark.parametrize("rows", [1, MANY])
def test_nothing_rounds_inputs_where_no_product_allows_what_it_costs(rows):
    model = quantize(product(), bits=4, minimum_sqnr_db=200)
    lowered, remarks = lower(model, data(rows))
    assert ["Kept inputs of 1 products" in remark for remark in remarks] == [True]
    assert sqnr(run(model, data(rows))["y"], run(lowered, data(rows), "all")["y"]) > 110
    # Few rows are multiplied with packed weights, and many are faster with weights in float.
    assert operators(lowered)["MatMulNBits"] == (1 if rows == 1 else 0)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("least", [30, 60])
def test_gemm_is_measured_with_its_bias_and_order(transposed, least):
    weights = {"w": normal(40, 96) if transposed else normal(96, 40), "b": normal(40)}
    model = graph([node("Gemm", ["x", "w", "b"], "y", transB=transposed)], weights, {"x": ["n", 96]})
    model = quantize(model, minimum_sqnr_db=least)
    samples = {"x": normal(MANY, 96, seed=1)}
    lowered, _ = lower(model, samples)
    found = sqnr(run(model, samples)["y"], run(lowered, samples, "all")["y"])
    # Eight bits keep more than 35 dB of such products, and not 60.
    assert 35 < found < 60 if least == 30 else found > 110


def test_each_row_counts_alike():
    nodes = [node("MatMul", ["x", "w"], "y")]
    weight = normal(96, 40)
    weight[0] = 0
    model = graph(nodes, {"w": weight}, {"x": ["n", "m", 96]})
    samples = data(MANY)
    # One row has outputs a thousand times those of others, and one loses all that it has to a peak without weight.
    samples["x"][:, 1] *= 1000
    samples["x"][:, 2, 0] = 1e6
    lowered, _ = lower(quantize(model, symmetric=True, minimum_sqnr_db=20), samples)
    assert operators(lowered)["MatMulIntegerToFloat"] == 0
    assert row_sqnr_db(np.float32([1e6, 1, 0]), np.float32([1, 4, 0])) == pytest.approx(-10 * np.log10(1 / 3), abs=1e-5)
    assert row_sqnr_db(np.float32([1, 0]), np.float32([0, 0])) == float("inf")
    assert row_sqnr_db(np.float32([1, np.nan]), np.float32([0.01, np.nan])) == float("-inf")


def test_a_ratio_that_is_no_number_asks_for_nothing():
    model = quantize(product(), minimum_sqnr_db=200)
    for each in model.graph:
        each.metadata_props.update({MINIMUM_SQNR_KEY: "much"} if each.op_type == "MatMul" else {})
    lowered, _ = lower(model, data(MANY))
    assert operators(lowered)["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_llama"])
def test_whole_networks(fixture, request):
    model = request.getfixturevalue(fixture)
    inputs = sample_inputs(model.ir)
    for activations, decibels in (("float", 100), ("int8", 25)):
        quantized = quantize(model, bits=8, block_size=16, activations=activations)
        lowered = OnnxCpu().lower(quantized, context(None))
        assert operators(lowered)["DequantizeLinear"] == 0
        for name, expected in run(quantized, inputs).items():
            assert sqnr(expected, run(lowered, inputs, "all")[name]) > decibels


@given(
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 40),
    rows=st.sampled_from([1, 40]),
    form=st.sampled_from(FORMS),
    activations=st.sampled_from(["float", "int8"]),
)
@settings(max_examples=20, deadline=None)
def test_products_of_any_size(inputs, outputs, rows, form, activations):
    model = quantize(product(inputs, outputs), activations=activations, **form)
    before = ir.to_proto(model.ir).SerializeToString()
    samples = {"x": normal(2, rows, inputs, seed=2)}
    lowered, _ = lower(model, samples)
    expected, actual = run(model, samples)["y"], run(lowered, samples, "all")["y"]
    stored = np.abs(run(model, {"x": np.eye(inputs, dtype=np.float32)[None]})["y"][0])
    # Rounding moves an input by at most half a step of its row, and a weight by at most half a step of its channel.
    step = np.abs(samples["x"]).max(axis=2, keepdims=True) / 127
    bound = step / 2 * stored.sum(axis=0) + stored.max(axis=0) / 254 * np.abs(samples["x"]).sum(axis=2, keepdims=True)
    cross = inputs * step / 2 * stored.max(axis=0) / 254
    exact = 1e-4 * np.abs(expected).max() + 1e-6
    assert (np.abs(actual - expected) <= exact + (bound + cross if activations == "int8" else 0)).all()
    assert ir.to_proto(model.ir).SerializeToString() == before
