"""`quantize-split` on small graphs: what each form computes, what is left alone and why, what is refused."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesmith.errors import StepError
from edgesmith.graph.edit import GraphEditor, constant_value
from edgesmith.graph.weight_sites import find_weight_sites
from edgesmith.host.context import Notes
from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith.host.records import Guarantee
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.arithmetic.splitting import SplitScheme, split_weight
from edgesmith_quantization.forms.split_form import compact_codes
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.quantize_split import QuantizeSplit
from small_graphs import context, graph, lower, node, operators, run, sqnr

SYMMETRIC = Dialect(
    name="device",
    opset=21,
    activation=TensorFormat("int8", symmetric=True),
    weight=TensorFormat("int8", symmetric=True, granularity="channel"),
    operators=frozenset({"MatMul", "Gemm", "Conv"}),
    weight_only=(
        WeightFormat("int8", block_sizes=(16, 32), opset=21),
        WeightFormat("int4", block_sizes=(16, 32), opset=21),
    ),
    refusals={"int2": "the device has no 2-bit type"},
)
FORMS = ("branches", "merged", "compact")


def laplace(*shape, seed=0):
    return np.random.default_rng(seed).laplace(0, 0.05, shape).astype(np.float32)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def mlp():
    nodes = [
        node("MatMul", ["x", "w1"], "h"),
        node("Add", ["h", "b1"], "hb"),
        node("Relu", ["hb"], "r"),
        node("Gemm", ["r", "w2", "b2"], "y", transB=1, alpha=0.5, beta=2.0),
    ]
    weights = {"w1": laplace(48, 64), "b1": normal(64), "w2": laplace(32, 64, seed=2), "b2": normal(32)}
    return graph(nodes, weights, {"x": ["n", 48]})


def convolutions():
    nodes = [
        node("Conv", ["x", "w1", "b1"], "h", strides=[2, 1], dilations=[1, 2], pads=[1, 0, 1, 0], group=2),
        node("Relu", ["h"], "r"),
        node("Conv", ["r", "w2"], "y"),
    ]
    weights = {"w1": laplace(16, 4, 3, 3), "b1": normal(16), "w2": laplace(64, 16, 1, 1, seed=3)}
    return graph(nodes, weights, {"x": ["n", 8, 12, 12]})


MODELS = {"mlp": (mlp, (5, 48)), "convolutions": (convolutions, (2, 8, 12, 12))}


def split(model, dialect=DIALECT, used=None, **options):
    """Return the split model. Nothing is left alone for gaining little unless a test asks for it."""
    used = used or context(QuantizeSplitOptions(**{"least_gain_db": 0.0, **options}), dialect=dialect)
    before = ir.to_proto(model.ir).SerializeToString(deterministic=True)
    result = QuantizeSplit().apply(model, used)
    assert ir.to_proto(model.ir).SerializeToString(deterministic=True) == before
    return result


def check(model, dialect=DIALECT, **options):
    return QuantizeSplit().check(model, context(QuantizeSplitOptions(**options), dialect=dialect))


def dequantized(model):
    """Return the value of every float constant that the graph makes of codes, by the weight's name, parts added."""
    found = {}
    for each in model.graph:
        if each.op_type == "DequantizeLinear":
            codes, scale, *rest = (constant_value(value) for value in each.inputs)
            offset = rest[0].astype(np.float32) if rest else np.zeros_like(scale)
            scale, offset = (_spread(array, each, codes) for array in (scale, offset))
            name = each.inputs[0].name.split("_part")[0].removesuffix("_quantized")
            found.setdefault(name, []).append((codes.astype(np.float32) - offset) * scale)
    return found


def _spread(parameter, dequantize, codes):
    axis, size = dequantize.attributes.get_int("axis", 1), dequantize.attributes.get_int("block_size", 0)
    if size:
        return np.repeat(parameter, size, axis=axis).take(range(codes.shape[axis]), axis=axis)
    return parameter.reshape([-1 if place == axis else 1 for place in range(codes.ndim)])


def with_weights(model, weights):
    """Return the float model with other constants."""
    copy = model.clone()
    for name, array in weights.items():
        copy.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32))
    return copy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 4])
def test_every_form_computes_with_the_sum_of_its_parts(name, form, bits):
    make, shape = MODELS[name]
    model = make()
    quantized = split(model, bits=bits, form=form)
    parts = dequantized(split(model, bits=bits, form="merged"))
    reference = with_weights(model, {weight: sum(each) for weight, each in parts.items()})
    assert set(parts) == {"w1", "w2"}
    for batch in (shape[0], 1):
        x = normal(batch, *shape[1:])
        expected, actual = run(reference, {"x": x})["y"], run(quantized, {"x": x})["y"]
        # Products of the parts are added in another order.
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("split_bias", [False, True])
def test_branches_of_exact_parts_equal_the_layer(name, split_bias, monkeypatch):
    """The float rewrite alone: parts are written as they are, not rounded."""
    make, shape = MODELS[name]
    model = make()
    result = _exact_branches(model, monkeypatch, split_bias)
    assert operators(result)["Sum"] == 2
    for batch in (shape[0], 1):
        x = normal(batch, *shape[1:])
        expected, actual = run(model, {"x": x})["y"], run(result, {"x": x})["y"]
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def _exact_branches(model, monkeypatch, split_bias):
    from edgesmith_quantization.arithmetic.splitting import find_owners, split_by_owner
    from edgesmith_quantization.forms import split_form

    def exact(editor, site, parts):
        rows = np.ascontiguousarray(site.rows(), np.float32)
        owners, _ = find_owners(rows, 3, magnitude=False, per_row="Conv" in {n.op_type for n in site.readers})
        columns = site.output_axis == 1
        arrays = [part.T if columns else part.reshape(site.shape) for part in split_by_owner(rows, owners, 3)]
        assert sum(arrays).tobytes() == constant_value(site.weight).tobytes()
        return [editor.add_initializer(f"{site.name}_part", np.ascontiguousarray(array)) for array in arrays]

    monkeypatch.setattr(split_form, "_dequantized_parts", exact)
    result = model.clone()
    editor = GraphEditor(result.graph)
    for site in find_weight_sites(
        result.graph, QuantizeSplitOptions().obstacle, Notes().skip, operators=("MatMul", "Gemm", "Conv")
    ):
        split_form.write_branches(editor, site, None, split_bias=split_bias)
    return result


@pytest.mark.parametrize("form", FORMS)
def test_two_bits_in_three_parts_keep_what_one_part_loses(form):
    model, x = mlp(), normal(40, 48)
    expected = run(model, {"x": x})["y"]
    plain = with_weights(model, {weight: _one_part(model, weight) for weight in ("w1", "w2")})
    assert (
        sqnr(expected, run(split(model, bits=2, form=form), {"x": x})["y"])
        > sqnr(expected, run(plain, {"x": x})["y"]) + 3
    )


def _one_part(model, weight):
    from edgesmith_quantization.arithmetic.blocks import dequantize_blocks, round_blocks

    rows = constant_value(model.graph.initializers[weight])
    rows = rows.T if weight == "w1" else rows
    rounded = dequantize_blocks(round_blocks(np.ascontiguousarray(rows), 2, None, symmetric=False, clip="mse"))
    return rounded.T if weight == "w1" else rounded


def test_digits_in_three_parts_round_as_six_bits():
    model, x = mlp(), normal(40, 48)
    expected = run(model, {"x": x})["y"]
    clusters, digits = (
        sqnr(expected, run(split(model, bits=2, split_by=by), {"x": x})["y"]) for by in ("value", "digits")
    )
    assert digits > clusters + 10


@pytest.mark.parametrize("form", ["branches", "merged"])
def test_zeros_are_exact_in_every_part(form):
    model = mlp()
    sparse = constant_value(model.graph.initializers["w1"]) * (normal(48, 64) > 0.5)
    model = with_weights(model, {"w1": sparse})
    for symmetric in (DIALECT, SYMMETRIC):
        parts = dequantized(split(model, symmetric, bits=4, form=form))["w1"]
        assert len(parts) == 3
        assert not any(part[sparse == 0].any() for part in parts)


@pytest.mark.parametrize("form", FORMS)
def test_compact_and_merged_hold_the_same_numbers(form):
    rows = laplace(12, 40)
    rows[3] = 0.0
    for scheme in (SplitScheme(2), SplitScheme(4, 4), SplitScheme(2, symmetric=True, by="magnitude")):
        weight = split_weight(rows, scheme)
        codes, table = compact_codes(weight)
        assert codes.max() < table.shape[1] == scheme.parts << scheme.bits
        assert np.array_equal(np.take_along_axis(table, codes.astype(np.int64), axis=1), weight.dequantized())


@pytest.mark.parametrize("scales", ["channel", "weight"])
def test_compact_stores_two_bits_more_and_is_looked_up_once(scales):
    used = context(QuantizeSplitOptions(bits=2, form="compact", scales=scales))
    result = split(mlp(), used=used)
    stored = {v.name: v.const_value for v in result.graph.initializers.values()}
    assert stored["w1_codes"].dtype == ir.DataType.UINT4
    assert stored["w1_codes"].nbytes == 48 * 64 // 2
    assert operators(result)["Gather" if scales == "weight" else "GatherElements"] == 2
    assert "w1" not in stored


def test_stored_bits_are_those_of_the_file():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": laplace(64, 32)}, {"x": ["n", 64]})
    used = context(QuantizeSplitOptions(bits=4))
    result = split(model, used=used)
    stored = sum(value.const_value.nbytes for value in result.graph.initializers.values())
    assert f"{8 * stored / (64 * 32):.2f} bits stored per weight" in used.notes.remarks[0]
    # 3 parts of 4 bits, and a float32 scale with a 4-bit zero point a part and channel of 64 weights.
    assert 8 * stored / (64 * 32) == pytest.approx(3 * (4 + 36 / 64))


def test_a_weight_in_a_constant_node_is_split_and_counted():
    from onnx import numpy_helper

    constant = node("Constant", [], "w", value=numpy_helper.from_array(laplace(64, 32)))
    model = graph([constant, node("MatMul", ["x", "w"], "y")], {}, {"x": ["n", 64]})
    used = context(QuantizeSplitOptions(bits=4))
    result = split(model, used=used)
    assert operators(result)["Constant"] == 0
    stored = sum(value.const_value.nbytes for value in result.graph.initializers.values())
    assert f"{8 * stored / (64 * 32):.2f} bits stored per weight" in used.notes.remarks[0]


def test_notes_tell_the_gain_and_the_clusters_of_each_layer():
    used = context(QuantizeSplitOptions(bits=2))
    split(mlp(), used=used)
    layers = used.notes.remarks[1]
    assert "w1 " in layers
    assert "w2 " in layers
    assert "clusters end at" in layers
    assert "3 products instead of one" in used.notes.remarks[0]


def test_layers_that_gain_little_stay_in_float():
    used = context(QuantizeSplitOptions(bits=8, least_gain_db=20.0))
    result = split(mlp(), used=used)
    assert operators(result)["DequantizeLinear"] == 0
    assert "gains too little" in used.notes.skipped["node_h"]
    assert "No layer gains 20 dB" in used.notes.remarks[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_left_alone(bad):
    model = mlp()
    weight = constant_value(model.graph.initializers["w1"]).copy()
    weight[3, 4] = bad
    used = context(QuantizeSplitOptions(bits=4))
    result = split(with_weights(model, {"w1": weight}), used=used)
    assert "NaN or infinity" in used.notes.skipped["node_h"]
    assert set(dequantized(result)) == {"w2"}


@pytest.mark.parametrize("values", [[0.25], [0.0], [-0.5, 0.5]])
def test_weights_of_few_values_become_one_part(values):
    weight = np.resize(np.array(values, np.float32), (48, 64))
    used = context(QuantizeSplitOptions(bits=4))
    result = split(with_weights(mlp(), {"w1": weight}), used=used)
    (part,) = dequantized(result)["w1"]
    # 0.5 * 15/16 is the worst that a grid of 16 points from -0.5 to 0.5 with an exact zero does.
    assert np.abs(part - weight).max() <= 0.5 / 15
    assert any("one part" in remark for remark in used.notes.remarks)


@pytest.mark.parametrize("scales", ["channel", "weight"])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_compact_weight_of_few_values_needs_no_codes_of_two_bits(value, scales):
    model, x = with_weights(mlp(), {"w1": np.full((48, 64), value)}), {"x": normal(3, 48)}
    result = split(model, bits=2, form="compact", scales=scales)
    assert not any(each.op_type == "DequantizeLinear" for each in result.graph)
    assert constant_value(result.graph.initializers["w1_table"]).size == (4 if scales == "weight" else 4 * 64)
    expected = run(split(model, bits=2, form="merged", scales=scales), x)["y"]
    # Products are added in another order.
    assert np.abs(run(result, x)["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_rows_of_zeros_stay_zero():
    weight = laplace(48, 64)
    weight[:, 7] = 0.0
    result = split(with_weights(mlp(), {"w1": weight}), bits=2)
    assert all(not part[:, 7].any() for part in dequantized(result)["w1"])
    assert np.isfinite(run(result, {"x": normal(3, 48)})["y"]).all()


def test_an_all_zero_bias_does_not_keep_the_weight_from_being_split():
    model = with_weights(mlp(), {"b2": np.zeros(32)})
    for bias in ("keep", "split"):
        result = split(model, bits=4, bias=bias)
        assert len(dequantized(result)["w2"]) == 3
        assert (
            sum(each.op_type == "Gemm" and len(each.inputs) > 2 and each.inputs[2] is not None for each in result.graph)
            == 1
        )


def test_a_split_bias_adds_up_in_the_branches():
    model = mlp()
    result = split(model, bits=4, bias="split")
    parts = [constant_value(each.inputs[2]) for each in result.graph if each.op_type == "Gemm"]
    assert len(parts) == 3
    assert np.array_equal(sum(parts), constant_value(model.graph.initializers["b2"]))


def test_a_shared_weight_is_split_once():
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "w"], "y")]
    model = graph(nodes, {"w": laplace(32, 32)}, {"x": ["n", 32]})
    for form, count in (("branches", 3), ("merged", 3), ("compact", 0)):
        result = split(model, bits=4, form=form)
        assert operators(result)["DequantizeLinear"] == count
        assert operators(result)["MatMul"] == (6 if form == "branches" else 2)


def test_a_head_tied_to_an_embedding_is_never_split():
    nodes = [
        node("Gather", ["table", "ids"], "e"),
        node("Transpose", ["table"], "t", perm=[1, 0]),
        node("MatMul", ["e", "t"], "y"),
    ]
    from onnx import TensorProto

    model = graph(nodes, {"table": laplace(50, 32)}, {"ids": ["n"]}, types={"ids": TensorProto.INT64})
    verdict = check(model)
    assert verdict.status == "skip"
    assert "shared with" in verdict.reason


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_behind_a_transpose_keeps_its_orientation(form):
    nodes = [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "y")]
    model = graph(nodes, {"w": laplace(40, 32)}, {"x": ["n", 32]})
    x = normal(6, 32)
    result = split(model, bits=4, form=form)
    assert sqnr(run(model, {"x": x})["y"], run(result, {"x": x})["y"]) > 20
    assert "w" not in result.graph.initializers


def test_small_heads_stay_in_float():
    nodes = [node("MatMul", ["x", "w1"], "h"), node("MatMul", ["h", "w2"], "y")]
    model = graph(nodes, {"w1": laplace(32, 64), "w2": laplace(64, 8)}, {"x": ["n", 32]})
    used = context(QuantizeSplitOptions(bits=4))
    result = split(model, used=used)
    assert set(dequantized(result)) == {"w1"}
    assert "head below 4 KiB" in used.notes.skipped["node_y"]


def test_half_precision_weights_stay_half_precision():
    from onnx import TensorProto

    weights = {"w": laplace(48, 40).astype(np.float16)}
    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    model = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 48]}, types=half)
    x = normal(4, 48).astype(np.float16)
    expected = run(model, {"x": x})["y"]
    for form in FORMS:
        actual = run(split(model, bits=4, form=form), {"x": x})["y"]
        assert actual.dtype == np.float16
        assert sqnr(expected.astype(np.float32), actual.astype(np.float32)) > 20


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("scales", ["channel", "weight"])
def test_forms_hold_the_same_half_precision_numbers(bits, scales):
    from onnx import TensorProto

    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    weights = {"w": laplace(48, 40).astype(np.float16)}
    model = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 48]}, types=half)
    merged, compact = (
        run(split(model, bits=bits, form=form, scales=scales), {"x": np.eye(48, dtype=np.float16)})["y"]
        for form in ("merged", "compact")
    )
    assert np.array_equal(merged, compact)


def test_blocks_follow_the_summed_dimension():
    model, x = mlp(), normal(20, 48)
    result = split(model, bits=4, block_size=16)
    scales = {each.inputs[1].shape.numpy() for each in result.graph if each.op_type == "DequantizeLinear"}
    assert scales == {(3, 64), (32, 4)}
    expected = run(model, {"x": x})["y"]
    assert sqnr(expected, run(result, {"x": x})["y"]) > sqnr(expected, run(split(model, bits=4), {"x": x})["y"])


@pytest.mark.parametrize(("whole_blocks", "shape"), [(True, (3, 64)), (False, (2, 64))])
def test_blocks_that_do_not_divide_a_row_are_smaller_or_end_short(whole_blocks, shape):
    formats = tuple(replace(form, whole_blocks=whole_blocks) for form in SYMMETRIC.weight_only)
    dialect, model = replace(SYMMETRIC, weight_only=formats), mlp()  # 48 inputs: three blocks of 16, or 32 and 16
    result = split(model, dialect, bits=4, block_size=32)
    scales = {each.inputs[1].shape.numpy() for each in result.graph if each.op_type == "DequantizeLinear"}
    assert scales == {shape, (32, 2)}
    x = normal(20, 48)
    assert sqnr(run(model, {"x": x})["y"], run(result, {"x": x})["y"]) > 20


def test_a_row_that_no_block_of_the_target_divides_stays_in_float():
    formats = tuple(replace(form, whole_blocks=True, block_sizes=(32,)) for form in SYMMETRIC.weight_only)
    used = context(
        QuantizeSplitOptions(bits=4, block_size=32, least_gain_db=0), dialect=replace(SYMMETRIC, weight_only=formats)
    )
    result = split(mlp(), used=used)
    assert set(dequantized(result)) == {"w2"}
    assert "none of its sizes up to 32 divides 48 inputs" in used.notes.skipped["node_h"]


def test_convolutions_are_clustered_by_output_channel():
    model = convolutions()
    loud = constant_value(model.graph.initializers["w1"]).copy()
    loud[0] *= 1000
    model = with_weights(model, {"w1": loud})
    own, shared = (
        sum(dequantized(split(model, bits=4, form="merged", clusters=each, assignment="clusters"))["w1"])
        for each in ("channel", "weight")
    )
    assert sqnr(loud[1:], own[1:]) > sqnr(loud[1:], shared[1:]) + 3


def test_symmetric_targets_get_zero_point_zero_and_magnitude_shells():
    result = split(mlp(), SYMMETRIC, bits=4)
    dequantize = [each for each in result.graph if each.op_type == "DequantizeLinear"]
    assert all(len(each.inputs) == 2 for each in dequantize)
    assert {each.inputs[0].dtype for each in dequantize} == {ir.DataType.INT4}
    parts = dequantized(result)["w1"]
    assert all(part.min() < 0 < part.max() for part in parts)


def test_symmetric_digits_are_signed_and_round_as_finely():
    model = mlp()
    (w1, weight) = (dequantized(split(model, SYMMETRIC, bits=4, parts=2, split_by="digits"))["w1"], mlp())
    expected = constant_value(weight.graph.initializers["w1"])
    assert sqnr(expected, sum(w1)) > 30


def test_a_model_without_gains_keeps_its_opset():
    model, used = mlp(), context(QuantizeSplitOptions(bits=2, least_gain_db=100))
    result = split(model, used=used)
    assert ir.to_proto(result.ir).SerializeToString(deterministic=True) == ir.to_proto(model.ir).SerializeToString(
        deterministic=True
    )
    assert result.ir is not model.ir
    assert set(used.notes.skipped) == {"node_h", "node_y"}


def test_what_the_target_lacks_is_refused_with_what_works():
    verdict = check(mlp(), SYMMETRIC, bits=2)
    assert verdict.status == "refuse"
    assert "no 2-bit type" in verdict.reason
    assert "set bits to 8 or 4" in verdict.reason
    with pytest.raises(StepError, match="2-bit"):
        split(mlp(), SYMMETRIC, bits=2)
    assert "takes no blocks of 64" in check(mlp(), SYMMETRIC, bits=4, block_size=64).reason
    assert "set form to branches" in check(mlp(), SYMMETRIC, bits=4, form="compact").reason
    old = replace(DIALECT, opset=20)
    assert "needs opset 25; onnx-cpu reads up to 20" in check(mlp(), old, bits=2).reason


@pytest.mark.parametrize(
    "options",
    [
        {"split_by": "digits", "bits": 4},
        {"split_by": "digits", "bits": 2, "form": "compact"},
        {"split_by": "digits", "bits": 2, "clusters": "channel"},
        {"split_by": "digits", "bits": 2, "assignment": "clusters"},
        {"block_size": 32, "scales": "weight"},
        {"block_size": 32, "form": "compact"},
        {"bits": 8, "form": "compact"},
        {"bias": "split", "form": "merged"},
    ],
)
def test_options_that_exclude_each_other_are_refused(options):
    with pytest.raises(ValidationError):
        QuantizeSplitOptions(**options)


def test_the_opset_is_raised_only_as_far_as_needed():
    assert split(mlp(), bits=2).graph.opset_imports[""] == 25
    assert split(mlp(), bits=4).graph.opset_imports[""] == 21
    assert split(mlp(), bits=2, form="compact").graph.opset_imports[""] == 21


def test_only_and_skip_choose_nodes_and_unknown_names_are_refused():
    assert set(dequantized(split(mlp(), bits=4, only=("node_h",)))) == {"w1"}
    assert set(dequantized(split(mlp(), bits=4, skip=("node_h",)))) == {"w2"}
    assert "no node matches" in check(mlp(), only=("nothing",)).reason


def test_quantized_regions_are_left_alone():
    once = split(mlp(), bits=4, form="merged")
    used = context(QuantizeSplitOptions(bits=4))
    twice = QuantizeSplit().check(once, used)
    assert twice.status == "skip"


def test_two_runs_give_the_same_bytes():
    first, second = (ir.to_proto(split(mlp(), bits=2).ir).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("form", FORMS)
def test_lowering_keeps_what_the_split_graph_computes(form):
    model, x = mlp(), normal(6, 48)
    quantized = split(model, bits=4, form=form)
    before, after = run(quantized, {"x": x})["y"], run(lower(quantized), {"x": x})["y"]
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("function", ["Relu", "Tanh", "Sigmoid", "Gelu"])
@pytest.mark.parametrize("width", [3, 7, 64])
def test_split_activations_compute_the_same(function, width):
    nodes = [node("MatMul", ["x", "w"], "h"), node(function, ["h"], "y")]
    model = graph(nodes, {"w": laplace(40, width)}, {"x": ["n", "s", 40]})
    result = split(model, bits=4, split_activations=True, skip=("node_h",))
    assert operators(result)[function] == 3
    for batch in (1, 4):
        x = normal(batch, 5, 40)
        assert np.array_equal(run(model, {"x": x})["y"], run(result, {"x": x})["y"])


def test_softmax_and_unknown_widths_are_not_split():
    nodes = [node("MatMul", ["x", "w"], "h"), node("Softmax", ["h"], "s", axis=-1), node("Relu", ["z"], "y")]
    model = graph(nodes, {"w": laplace(40, 32)}, {"x": ["n", 40], "z": ["n", "k"]}, outputs=("s", "y"))
    used = context(QuantizeSplitOptions(bits=4, split_activations=True))
    result = split(model, used=used)
    assert operators(result)["Softmax"] == 1
    assert operators(result)["Relu"] == 1
    assert "last axis" in used.notes.skipped["node_y"]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["branches", "merged"]),
    st.sampled_from(["value", "magnitude"]),
    st.booleans(),
)
def test_any_shape_runs_and_stays_close(batch, inputs, outputs, bits, form, by, transposed):
    """Splitting rounds no output channel worse than every weight being off by one step of one unsplit grid would."""
    weight = laplace(outputs, inputs) if transposed else laplace(inputs, outputs)
    nodes = [node("Gemm", ["x", "w", "b"], "h", transB=int(transposed)), node("MatMul", ["h", "v"], "y")]
    second = np.eye(outputs, dtype=np.float32)
    model = graph(nodes, {"w": weight, "b": normal(outputs), "v": second}, {"x": ["n", inputs]})
    result = split(model, bits=bits, form=form, split_by=by, only=("node_h",))
    x = normal(batch, inputs)
    expected, actual = run(model, {"x": x})["y"], run(result, {"x": x})["y"]
    assert actual.shape == expected.shape
    # A part's range is within its channel's, widened by zero, so clusters on covering grids err by at most one step of
    # the channel's own grid. Fits and nearest parts lower the sum of squares, which bounds |x e| by |x| |e|.
    rows = weight if transposed else weight.T
    step = (np.maximum(rows.max(axis=1), 0) - np.minimum(rows.min(axis=1), 0)) / (2**bits - 1)
    bound = np.linalg.norm(x, axis=1)[:, None] * np.sqrt(inputs) * step
    assert (np.abs(actual - expected) <= bound * (1 + 1e-5) + 1e-5).all()


def test_the_record_describes_the_method():
    from edgesmith_quantization import register_methods

    record = next(each for each in register_methods() if each.name == "quantize-split")
    assert record.guarantee is Guarantee.LOSSY
    assert "2501.12428" in record.source
