"""The option protect: what it names is multiplied in float, the rest is quantized, and foreign maps are refused."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_ir.passes.common import RemoveUnusedNodesPass
from pydantic import ValidationError

import edgesmith_pruning
import edgesmith_quantization
from edgesmith.errors import RecipeError
from edgesmith.graph.kept import kept
from edgesmith.graph.node_names import node_name
from edgesmith.host.context import Notes
from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith.testing import isolated_registry, run_recipe
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.finding.protected_layers import find_protected
from edgesmith_quantization.forms.protected_form import divide_protected
from edgesmith_quantization.options.auto import QuantizeAutoOptions
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.protected import ProtectedSelection
from edgesmith_quantization.options.split import QuantizeSplitOptions
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_auto import QuantizeAuto
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_split import QuantizeSplit
from edgesmith_quantization.quantize_weights import QuantizeWeights
from small_graphs import SIGNED, context, graph, node, run

WIDTH, HIDDEN = 64, 96
KEPT = (3, 40, 41, 95)
UNITS = ProtectedSelection(protect="units")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def two_layers(operator="MatMul", *, transposed=False):
    """Return `a = x up + bias; y = relu(a) down`, both outputs, with a protection of four hidden units."""
    up, down, bias = normal(WIDTH, HIDDEN), normal(HIDDEN, WIDTH, seed=1), normal(HIDDEN, seed=2)
    attributes = {"transB": int(transposed)} if operator == "Gemm" else {}
    stored = up.T.copy() if transposed else up
    if operator == "Gemm":
        first = [node("Gemm", ["x", "up", "bias"], "a", **attributes)]
    else:
        first = [node("MatMul", ["x", "up"], "p"), node("Add", ["p", "bias"], "a")]
    model = graph(
        [*first, node("Relu", ["a"], "h"), node("MatMul", ["h", "down"], "y")],
        {"up": stored, "down": down, "bias": bias},
        {"x": ["n", WIDTH]},
        ("a", "y"),
    )
    return protected(model, up={int(not transposed): (HIDDEN, KEPT)}, down={0: (HIDDEN, KEPT)})


def protected(model, **weights):
    made = {
        name: {axis: ProtectedAxis(length=length, kept=kept) for axis, (length, kept) in axes.items()}
        for name, axes in weights.items()
    }
    return replace(model, assets={PROTECTION_ASSET: Protection(weights=made).model_dump_json().encode()})


FORMS = {
    "int8": (QuantizeInt8, QuantizeInt8Options()),
    "int8-second-order": (QuantizeInt8, QuantizeInt8Options(rounding="second-order")),
    "int8-dynamic": (QuantizeInt8, QuantizeInt8Options(mode="dynamic")),
    "fp8": (QuantizeFp8, QuantizeFp8Options(heads=True)),
    "int4": (QuantizeWeights, QuantizeWeightsOptions(bits=4)),
    "int4-second-order": (QuantizeWeights, QuantizeWeightsOptions(bits=4, rounding="second-order")),
    "int2-channels": (QuantizeWeights, QuantizeWeightsOptions(bits=2, block_size=None)),
    "split": (QuantizeSplit, QuantizeSplitOptions(bits=2)),
    "digits": (QuantizeSplit, QuantizeSplitOptions(bits=2, split_by="digits")),
    "auto": (QuantizeAuto, QuantizeAutoOptions(formats=("int8-weights",), min_sqnr_db=0)),
}


def quantized(model, form, folder, **options):
    method, chosen = FORMS[form]
    used = context(chosen.model_copy(update={"protect": "units", **options}), {"x": normal(80, WIDTH, seed=3)})
    folder.mkdir(exist_ok=True)
    used = replace(used, scratch=folder)
    assert method().check(model, used).status == "ok"
    return method().apply(model, used), used


@pytest.mark.parametrize("form", FORMS)
def test_protected_outputs_are_multiplied_in_float_and_others_are_not(form, tmp_path):
    model = two_layers()
    result, _ = quantized(model, form, tmp_path)
    x = {"x": normal(8, WIDTH, seed=4)}
    before, after = run(model, x)["a"], run(result, x)["a"]
    # Sums of 64 products below 16, rounded to 24 bits each and added in another order.
    np.testing.assert_allclose(after[:, KEPT], before[:, KEPT], atol=64 * 16 * 2.0**-24, rtol=0)
    assert (np.abs(np.delete(after - before, KEPT, axis=1)).max(axis=0) > 1e-3).all()


@pytest.mark.parametrize("form", FORMS)
def test_protected_inputs_are_multiplied_in_float_and_others_are_not(form, tmp_path):
    model = graph([node("MatMul", ["x", "down"], "y")], {"down": normal(WIDTH, 48)}, {"x": ["n", WIDTH]})
    model = protected(model, down={0: (WIDTH, (0, 7, 63))})
    result, _ = quantized(model, form, tmp_path)
    x = normal(8, WIDTH, seed=4)
    only = np.zeros_like(x)
    only[:, (0, 7, 63)] = x[:, (0, 7, 63)]
    # Three products each; all others are of zeros, which every format keeps.
    expected = run(model, {"x": only})["y"]
    np.testing.assert_allclose(run(result, {"x": only})["y"], expected, atol=3 * 16 * 2.0**-24, rtol=0)
    assert np.abs(run(result, {"x": x})["y"] - run(model, {"x": x})["y"]).max() > 1e-3


@given(
    operator=st.sampled_from(["MatMul", "Gemm"]),
    transposed=st.booleans(),
    outputs=st.sets(st.integers(0, 5), max_size=3),
    inputs=st.sets(st.integers(0, 4), max_size=2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_dividing_changes_no_output(operator, transposed, outputs, inputs, seed):
    transposed = transposed and operator == "Gemm"
    weight = normal(5, 6, seed=seed)
    arrays = {"w": weight.T.copy() if transposed else weight, "b": normal(6, seed=seed + 1)}
    read = ["x", "w", "b"] if operator == "Gemm" else ["x", "w"]
    nodes = [node(operator, read, "p", **({"transB": 1} if transposed else {}))]
    model = graph([*nodes, node("Add", ["p", "b"], "y")], arrays, {"x": ["n", 5]})
    axes = {int(not transposed): (6, tuple(sorted(outputs))), int(transposed): (5, tuple(sorted(inputs)))}
    model = protected(model, w=axes)
    result, layers = model.clone(), find_protected(model, UNITS)
    divide_protected(result, layers, ["node_p"])
    x = {"x": normal(3, 5, seed=seed)}
    np.testing.assert_allclose(run(result, x)["y"], run(model, x)["y"], atol=5 * 16 * 2.0**-24, rtol=0)
    if "node_p" in layers.split:
        rest = np.moveaxis(result.graph.initializers["w"].const_value.numpy(), int(transposed), 0)
        assert not rest[sorted(inputs)].any() and not rest[:, sorted(outputs)].any()


@given(
    operator=st.sampled_from(["MatMul", "Gemm"]),
    transposed=st.booleans(),
    outputs=st.sets(st.integers(0, 5), max_size=3),
    inputs=st.sets(st.integers(0, 4), max_size=2),
    last=st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_what_is_not_quantized_is_put_together_again_bit_for_bit(operator, transposed, outputs, inputs, last):
    transposed = transposed and operator == "Gemm"
    weight = normal(5, 6)
    arrays = {"w": weight.T.copy() if transposed else weight, "b": normal(6, seed=1)}
    read = ["x", "w", "b"] if operator == "Gemm" else ["x", "w"]
    nodes = [node(operator, read, "p", **({"transB": 1} if transposed else {})), node("Add", ["p", "b"], "y")]
    model = graph(nodes, arrays, {"x": ["n", 5]}, ("y",) if last else ("p", "y"))
    axes = {int(not transposed): (6, tuple(sorted(outputs))), int(transposed): (5, tuple(sorted(inputs)))}
    model = protected(model, w=axes)
    result, notes = model.clone(), Notes()
    result = divide_protected(result, find_protected(model, UNITS), ["node_p"]).finish((), notes)
    RemoveUnusedNodesPass()(result.ir)
    assert [(each.op_type, [value.name for value in each.inputs]) for each in result.graph] == [
        (each.op_type, [value.name for value in each.inputs]) for each in model.graph
    ]
    x = {"x": normal(3, 5)}
    for name, before in run(model, x).items():
        assert run(result, x)[name].tobytes() == before.tobytes()
    assert set(result.graph.initializers) == set(model.graph.initializers)
    assert result.assets == model.assets and not any("beside the rest" in remark for remark in notes.remarks)


QUALCOMM = replace(DIALECT, quantize_outputs=frozenset({"MatMul", "Gemm", "Conv"}), carried=DIALECT.carried | {"Relu"})
"""Outputs are codes too, as on Qualcomm's processors."""


@pytest.mark.parametrize("axis", [0, 1])
def test_dividing_leaves_no_layer_in_float_that_is_quantized_without(axis):
    arrays, nodes, read = {}, [], "x"
    for index in range(4):
        arrays |= {f"w{index}": normal(WIDTH, WIDTH, seed=index) / 8, f"b{index}": normal(WIDTH, seed=9 + index)}
        nodes += [node("Gemm", [read, f"w{index}", f"b{index}"], f"a{index}"), node("Relu", [f"a{index}"], f"h{index}")]
        read = f"h{index}"
    model = graph(nodes, arrays, {"x": ["n", WIDTH]}, (read,))
    model = protected(model, **{f"w{index}": {axis: (WIDTH, (1, 2))} for index in range(4)})
    for protect in (None, "units"):
        used = context(QuantizeInt8Options(protect=protect), {"x": normal(80, WIDTH, seed=3)}, QUALCOMM)
        QuantizeInt8().apply(model, used)
        assert "Quantized 4 Gemm to 8 bits (static)." in used.notes.remarks


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_a_layer_that_stays_in_float_is_not_divided_either(form, tmp_path):
    """The hidden layer is measured below 40 dB, and the one behind it above: its weight is a multiple of few steps."""
    steps = np.random.default_rng(7).integers(-127, 128, (WIDTH, 48)).astype(np.float32)
    nodes = [node("MatMul", ["x", "coarse"], "a"), node("MatMul", ["x", "exact"], "y")]
    coarse = normal(WIDTH, 48) ** 3
    model = graph(nodes, {"coarse": coarse, "exact": steps / 127}, {"x": ["n", WIDTH]}, ("a", "y"))
    model = protected(model, coarse={1: (48, (1, 2))}, exact={1: (48, (3,))})
    result, used = quantized(model, form, tmp_path, minimum_sqnr_db=40)
    assert "less than 40" in used.notes.skipped["node_a"]
    x = {"x": normal(8, WIDTH, seed=4)}
    assert run(result, x)["a"].tobytes() == run(model, x)["a"].tobytes()
    assert not any("coarse_protected" in name for name in result.graph.initializers)
    assert any("weights of 1 layers are multiplied" in remark for remark in used.notes.remarks)
    assert not any("coarse_protected" in name for name in Protection.chosen("units", result.assets).weights)


def test_shapes_are_right_where_a_bias_adds_a_dimension(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "a"), node("Add", ["a", "b"], "y")]
    model = graph(nodes, {"w": normal(WIDTH, 48), "b": normal(2, 1, 48)}, {"x": ["n", WIDTH]})
    model = protected(model, w={1: (48, (1, 2)), 0: (WIDTH, (5,))})
    result, _ = quantized(model, "int8", tmp_path)
    onnx.checker.check_model(ir.to_proto(result.ir), full_check=True)
    x = {"x": normal(8, WIDTH, seed=4)}
    np.testing.assert_allclose(run(result, x)["y"][..., 1:3], run(model, x)["y"][..., 1:3], atol=64 * 16 * 2.0**-24)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dialect", [DIALECT, replace(SIGNED, bias="int32")], ids=["onnx-cpu", "int32-bias"])
def test_biases_of_protected_outputs_stay_in_float(transposed, dialect):
    model = two_layers("Gemm", transposed=transposed)
    used = context(QuantizeInt8Options(protect="units"), {"x": normal(80, WIDTH, seed=3)}, dialect)
    result = QuantizeInt8().apply(model, used)
    x = {"x": normal(8, WIDTH, seed=4)}
    before, after = run(model, x)["a"], run(result, x)["a"]
    np.testing.assert_allclose(after[:, KEPT], before[:, KEPT], atol=64 * 16 * 2.0**-24, rtol=0)
    assert np.abs(after - before).max() > 1e-3


def test_a_weight_that_two_products_share_is_divided_once(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "h"), node("MatMul", ["h", "w"], "y")]
    model = graph(nodes, {"w": normal(WIDTH, WIDTH) / 8}, {"x": ["n", WIDTH]}, ("a", "y"))
    model = protected(model, w={1: (WIDTH, (1, 2))})
    result, _ = quantized(model, "int4", tmp_path)
    x = {"x": normal(8, WIDTH, seed=4)}
    before, after = run(model, x), run(result, x)
    np.testing.assert_allclose(after["a"][:, 1:3], before["a"][:, 1:3], atol=64 * 2.0**-24, rtol=0)
    assert sum(name.startswith("w_protected_outputs") for name in result.graph.initializers) == 1


SHARED = {
    "one-reader-selected": ([node("MatMul", ["h", "w"], "y")], {"only": ("node_a", "node_z")}),
    "both-orientations": ([node("Gemm", ["h", "w"], "y", transB=1)], {}),
    "read-by-a-sum": ([node("ReduceSum", ["w"], "s", keepdims=0), node("Add", ["h", "s"], "y")], {}),
    "table-skipped": ([node("Gather", ["w", "i"], "y")], {"skip": ("node_y",)}),
}


def shared_weight(case):
    """Return a model that reads w in a way that forbids to divide it, with a layer more, and what to select."""
    further, selection = SHARED[case]
    product = [node("MatMul", ["x", "w"], "a")]
    if case == "table-skipped":  # a head that shares the table of an embedding
        product = [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "a")]
    inputs = {"x": ["n", WIDTH], **({"i": ["n"]} if case == "table-skipped" else {})}
    model = graph(
        [*product, node("Relu", ["a"], "h"), *further, node("MatMul", ["h", "v"], "z")],
        {"w": normal(WIDTH, WIDTH) / 8, "v": normal(WIDTH, WIDTH, seed=1) / 8},
        inputs,
        ("a", "y", "z"),
        types={"i": TensorProto.INT64},
    )
    return protected(model, w={int(case != "table-skipped"): (WIDTH, KEPT[:3])}), selection


def shared_inputs(case, rows, seed):
    return {"x": normal(rows, WIDTH, seed=seed), **({"i": np.arange(rows)} if case == "table-skipped" else {})}


@pytest.mark.parametrize("form", ["int8", "int8-dynamic", "fp8", "int4", "split"])
@pytest.mark.parametrize("case", SHARED)
def test_a_protected_weight_that_cannot_be_divided_stays_in_float_for_all_who_read_it(case, form, tmp_path):
    model, selection = shared_weight(case)
    method, chosen = FORMS[form]
    chosen = chosen.model_copy(update={"protect": "units", **selection})
    used = replace(context(chosen, shared_inputs(case, 80, 3)), scratch=tmp_path)
    assert "node_a" not in method().check(model, used).nodes
    result = method().apply(model, used)
    x = shared_inputs(case, 8, 4)
    before, after = run(model, x), run(result, x)
    # Sums of 64 products below 2, in another order.
    np.testing.assert_allclose(after["a"], before["a"], atol=64 * 2 * 2.0**-24, rtol=0)
    np.testing.assert_allclose(after["y"], before["y"], atol=64 * 16 * 2.0**-24, rtol=0)
    assert np.abs(after["z"] - before["z"]).max() > 1e-4
    assert "part of its weight is protected and cannot be divided: " in used.notes.skipped["node_a"]
    assert any("stay in float altogether" in remark for remark in used.notes.remarks)
    readers = {name for name in ("node_a", "node_y") if any(node_name(each) == name for each in model.graph)}
    weighted = {node_name(each) for each in model.graph if each.op_type in ("MatMul", "Gemm", "Gather")}
    assert {node_name(each) for each in result.graph if kept(each)} == readers & weighted


def test_a_protected_weight_that_no_option_selects_is_not_touched(tmp_path):
    model, _ = shared_weight("both-orientations")
    result, used = quantized(model, "int8", tmp_path, only=("node_z",))
    assert not any(kept(each) for each in result.graph)
    assert "stay in float" not in " ".join(used.notes.remarks)


def test_mixed_precision_keeps_a_protected_weight_that_cannot_be_divided(tmp_path):
    model, _ = shared_weight("both-orientations")
    options = QuantizeAutoOptions(formats=("int8",), min_sqnr_db=0, protect="units")
    used = replace(context(options, {"x": normal(80, WIDTH, seed=3)}), scratch=tmp_path)
    result = QuantizeAuto().apply(model, used)
    x = {"x": normal(8, WIDTH, seed=4)}
    before, after = run(model, x), run(result, x)
    np.testing.assert_allclose(after["a"], before["a"], atol=64 * 2 * 2.0**-24, rtol=0)
    assert np.abs(after["z"] - before["z"]).max() > 1e-4


def test_half_floats_stay_half_floats(tmp_path):
    arrays = {"w": normal(WIDTH, 48).astype(np.float16)}
    types = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    model = graph([node("MatMul", ["x", "w"], "y")], arrays, {"x": ["n", WIDTH]}, types=types)
    model = protected(model, w={1: (48, (5,))})
    used = context(QuantizeWeightsOptions(protect="units"))
    result = QuantizeWeights().apply(model, used)
    x = {"x": normal(8, WIDTH, seed=4).astype(np.float16)}
    # The same 64 numbers in half precision, whose sums stay below 64.
    np.testing.assert_allclose(run(result, x)["y"][:, 5], run(model, x)["y"][:, 5], atol=64 * 2.0**-10, rtol=0)
    assert all(value.dtype != ir.DataType.FLOAT for value in result.graph.initializers.values())


def whole_reasons(model, **weights):
    return find_protected(protected(model, **weights), UNITS).whole


def test_what_cannot_be_divided_stays_in_float_with_its_reason(tmp_path):
    convolution = graph(
        [node("Conv", ["x", "w"], "h", pads=[1, 1, 1, 1]), node("Conv", ["h", "v"], "y")],
        {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 1, 1)},
        {"x": ["n", 3, 6, 6]},
    )
    convolution = protected(convolution, w={0: (8, (1,))})
    used = context(QuantizeInt8Options(protect="units"), {"x": normal(8, 3, 6, 6)})
    assert QuantizeInt8().check(convolution, used).nodes == ("node_y",)
    result = QuantizeInt8().apply(convolution, used)
    assert used.notes.skipped["node_h"] == "12.5% of its weight is protected, and convolutions are not divided"
    assert result.graph.initializers["w"].const_value.numpy().tobytes() == normal(8, 3, 3, 3).tobytes()
    layer = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 8)}, {"x": ["n", 8]})
    assert "more than half" in whole_reasons(layer, w={0: (8, (0, 1, 2, 3, 4))})["node_y"]
    scaled = graph([node("Gemm", ["x", "w"], "y", alpha=2.0)], {"w": normal(8, 8)}, {"x": ["n", 8]})
    assert "scales" in whole_reasons(scaled, w={0: (8, (0,))})["node_y"]
    table = graph([node("Gather", ["w", "i"], "y")], {"w": normal(8, 8)}, {"i": ["n"]}, types={"i": TensorProto.INT64})
    assert "tables are not divided" in whole_reasons(table, w={0: (8, (0,))})["node_y"]


@pytest.mark.parametrize("form", FORMS)
def test_where_everything_is_protected_the_step_is_skipped(form, tmp_path):
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(WIDTH, WIDTH)}, {"x": ["n", WIDTH]})
    model = protected(model, w={1: (WIDTH, tuple(range(WIDTH)))})
    method, chosen = FORMS[form]
    used = context(chosen.model_copy(update={"protect": "units"}), {"x": normal(8, WIDTH)})
    verdict = method().check(model, used)
    assert verdict.status == "skip"
    assert "100.0% of its weight is protected" in verdict.reason


@pytest.mark.parametrize("form", FORMS)
def test_a_protection_of_another_model_is_refused(form, tmp_path):
    method, chosen = FORMS[form]
    used = context(chosen.model_copy(update={"protect": "units"}), {"x": normal(8, WIDTH)})
    shorter = protected(two_layers(), up={1: (HIDDEN - 1, KEPT[:2])})
    stranger = protected(two_layers(), elsewhere={1: (HIDDEN, KEPT)})
    missing = replace(two_layers(), assets={})
    for model, words in (
        (shorter, "counts 95 places on axis 1 of up, the model has 96"),
        (stranger, "the model has none of the 1 weights of the protection, such as elsewhere"),
        (missing, "no step before this one found any"),
    ):
        verdict = method().check(model, used)
        assert verdict.status == "refuse" and words in verdict.reason
        with pytest.raises(RecipeError, match=words):
            find_protected(model, UNITS)


@pytest.mark.parametrize("form", ["int8", "fp8", "int4", "split", "auto"])
def test_weights_that_the_model_does_not_have_are_named(form, tmp_path):
    model = protected(two_layers(), up={1: (HIDDEN, KEPT)}, renamed={0: (HIDDEN, KEPT)})
    said = "does not have 1 of the 2 weights that the protection names, such as renamed; nothing is protected there"
    _, used = quantized(model, form, tmp_path)
    assert any(said in remark for remark in used.notes.remarks)
    _, used = quantized(two_layers(), form, tmp_path / "second")
    assert not any("does not have" in remark for remark in used.notes.remarks)


def test_a_file_serves_as_well(tmp_path):
    model = two_layers()
    file = tmp_path / "protection.json"
    file.write_bytes(model.assets[PROTECTION_ASSET])
    bare = replace(model, assets={})
    result, _ = quantized(bare, "int8", tmp_path, protect=file)
    assert result.digest() == replace(quantized(model, "int8", tmp_path)[0], assets={}).digest()
    assert result.assets == {}


def test_offsets_keep_no_zeros_and_are_refused():
    with pytest.raises(ValidationError, match="offsets keep no zeros"):
        QuantizeWeightsOptions(offsets=True, protect="units")


def test_later_steps_leave_the_products_in_float_alone(tmp_path):
    first, _ = quantized(two_layers(), "int8", tmp_path, only=("node_p",))
    marked = {node_name(each) for each in first.graph if kept(each)}
    assert marked == {"node_p_protected", "node_p_protected_outputs_product"}
    second, used = quantized(first, "int4", tmp_path, protect=None)
    assert {used.notes.skipped[name] for name in marked} == {"its weight is protected"}
    for each in second.graph:
        if node_name(each) in marked:
            assert each.inputs[1].const_value.dtype == ir.DataType.FLOAT


def test_the_protection_names_the_new_weights_so_that_recovery_freezes_them(tmp_path):
    result, _ = quantized(two_layers(), "int8", tmp_path)
    after = Protection.chosen("units", result.assets)
    for name in ("up_protected_outputs", "up_protected_places", "down_protected_inputs"):
        length = result.graph.initializers[name].shape[0]
        assert after.places(name, 0, length) == set(range(length))


def test_the_notes_say_how_much_stays_in_float(tmp_path):
    _, used = quantized(two_layers(), "int8", tmp_path)
    assert "Protected: 4.2% of the weights of 2 layers are multiplied in float beside the rest." in used.notes.remarks


def test_one_recipe_analyses_and_quantizes(tmp_path, tiny_bert):
    registry = isolated_registry(edgesmith_pruning, edgesmith_quantization)
    steps = [
        {"method": "analyse-units", "options": {"attribute_labels": [0], "samples": 4}},
        {"method": "quantize-int8", "options": {"protect": "units", "samples": 4}},
    ]
    artifact = run_recipe(registry, tiny_bert, {"steps": steps}, out=tmp_path)
    row = artifact.ledger.rows[2]
    assert row.status == "ok"
    assert any(remark.startswith("Protected: ") for remark in row.remarks)
