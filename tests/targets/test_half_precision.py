"""Float16 graphs: what is converted, what stays, and that outputs hold."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith_tensorrt.half_precision import LARGEST, as_half, fits_half, write_half
from edgesmith_tensorrt.precision import full_precision_nodes, lower_to_half, unfit_values
from small_graphs import SIGNED, context, graph, node, quantize, run


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def half(model, keep=()):
    result = model.clone()
    names = {each for each in result.graph if each.name in keep}
    write_half(result.ir, names)
    return result


def types(model):
    return {each.name: each.outputs[0].dtype.name for each in model.graph}


def relative_error(expected, found):
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def chain():
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("MatMul", ["b", "w"], "y")]
    return graph(nodes, {"w": normal(8, 8, scale=0.3)}, {"x": ["n", 8]})


def test_inputs_and_outputs_keep_their_types_and_names():
    model = half(chain())
    assert [(v.name, v.dtype) for v in model.graph.inputs] == [("x", ir.DataType.FLOAT)]
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [("y", ir.DataType.FLOAT)]
    assert types(model)["node_b"] == "FLOAT16"


def test_a_shared_weight_is_stored_once_and_a_kept_node_reads_the_original():
    model = half(chain(), keep=("node_y",))
    weights = [v for v in model.graph.initializers.values() if v.const_value.size == 64]
    assert sorted(v.const_value.dtype.name for v in weights) == ["FLOAT", "FLOAT16"]
    model = half(chain())
    assert sum(v.const_value.size == 64 and bool(v.uses()) for v in model.graph.initializers.values()) == 1


def test_the_input_model_is_not_edited():
    model = chain()
    before = types(model)
    half(model)
    assert types(model) == before


def test_values_that_an_output_and_others_share_keep_the_outputs_name():
    nodes = [node("Relu", ["x"], "y"), node("Neg", ["y"], "z")]
    model = graph(nodes, {}, {"x": ["n", 4]}, outputs=("y", "z"))
    inputs = {"x": normal(3, 4)}
    expected, found = run(model, inputs), run(half(model), inputs)
    assert list(found) == ["y", "z"]
    for name in found:
        assert relative_error(expected[name], found[name]) < 1e-3


def test_casts_and_filled_tensors_follow():
    nodes = [node("Cast", ["ids"], "f", to=1), node("Mul", ["f", "x"], "p"), node("Cast", ["p"], "y", to=7)]
    types_of = {"ids": ir.DataType.INT64.value, "y": ir.DataType.INT64.value}
    model = graph(nodes, {}, {"ids": ["n"], "x": ["n"]}, types=types_of)
    result = half(model)
    assert types(result)["node_f"] == "FLOAT16"
    inputs = {"ids": np.arange(4), "x": np.float32([1, 2, 3, 4])}
    np.testing.assert_array_equal(run(result, inputs)["y"], run(model, inputs)["y"])


def test_inputs_with_a_fixed_type_stay():
    weights = {"roi": np.zeros(0, np.float32), "scales": np.float32([1, 1, 2, 2])}
    model = graph([node("Resize", ["x", "roi", "scales"], "y")], weights, {"x": [1, 2, 4, 4]})
    result = half(model)
    (resize,) = [each for each in result.graph if each.op_type == "Resize"]
    assert resize.inputs[2].dtype == ir.DataType.FLOAT
    assert run(result, {"x": normal(1, 2, 4, 4)})["y"].shape == (1, 2, 8, 8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=20))
def test_conversion_saturates_and_is_exact_where_it_says_it_fits(values):
    array = np.array(values, np.float32)
    converted = as_half(array).astype(np.float32)
    assert np.all(np.abs(converted) <= LARGEST)
    if fits_half(array):
        np.testing.assert_allclose(converted, array, rtol=2**-11, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sets(st.sampled_from(["node_h0", "node_h1", "node_h2", "node_y"])))
def test_any_choice_of_kept_nodes_gives_a_valid_graph_with_the_same_values(seed, keep):
    generator = np.random.default_rng(seed)
    operators = generator.choice(["Relu", "Tanh", "Neg", "Sigmoid"], 2)
    nodes = [node("MatMul", ["x", "w"], "h0"), node(str(operators[0]), ["h0"], "h1")]
    nodes += [node("Add", ["h1", "h0"], "h2"), node(str(operators[1]), ["h2"], "y")]
    model = graph(nodes, {"w": normal(6, 6, seed=seed, scale=0.4)}, {"x": ["n", 6]})
    inputs = {"x": normal(5, 6, seed=seed)}
    result = half(model, keep)
    for each in result.graph:
        if each.name in keep:
            assert each.outputs[0].dtype == ir.DataType.FLOAT
    # Each of four operators rounds to 2^-11 of a value; sums here stay within the size of their terms.
    scale = np.abs(run(model, inputs)["y"]).max() + 1
    assert np.abs(run(model, inputs)["y"] - run(result, inputs)["y"]).max() < 16 * 2**-11 * scale


def written_out_norm():
    nodes = [node("ReduceMean", ["x", "axes"], "m"), node("Sub", ["x", "m"], "c"), node("Pow", ["c", "two"], "s")]
    nodes += [node("ReduceMean", ["s", "axes"], "v"), node("Add", ["v", "eps"], "e"), node("Sqrt", ["e"], "r")]
    nodes += [node("Div", ["c", "r"], "n"), node("Mul", ["n", "gamma"], "g"), node("Add", ["g", "beta"], "z")]
    nodes += [node("MatMul", ["z", "w"], "y")]
    weights = {"axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-6), "w": normal(16, 16, scale=0.2)}
    weights |= {"gamma": np.ones(16, np.float32), "beta": np.zeros(16, np.float32)}
    return graph(nodes, weights, {"x": ["n", 16]})


def test_squares_of_a_written_out_normalization_do_not_overflow():
    model, data = written_out_norm(), {"x": normal(4, 16, scale=1000)}
    # ONNX Runtime's CPU computes float16 graphs in float32 between the casts; NumPy really rounds every value.
    with np.errstate(over="ignore", invalid="ignore"):
        (naive,) = ReferenceEvaluator(ir.to_proto(half(model).ir)).run(None, data)
    used = context(None, data, SIGNED)
    result = model.with_ir(lower_to_half(model.ir, used))
    expected = run(model, data)["y"]
    assert not relative_error(expected, naive) < 0.1  # the hazard is real: squares of 1000 overflow
    (found,) = ReferenceEvaluator(ir.to_proto(result.ir)).run(None, data)
    assert relative_error(expected, found) < 2e-3
    (norm,) = [each for each in result.graph if each.op_type == "LayerNormalization"]
    assert norm.outputs[0].dtype == ir.DataType.FLOAT
    assert types(result)["node_y"] == "FLOAT16"
    assert any("normalization" in remark for remark in used.notes.remarks)


def test_values_that_overflow_on_samples_stay_in_float32():
    nodes = [node("Mul", ["x", "big"], "p"), node("Mul", ["p", "small"], "q"), node("Relu", ["q"], "y")]
    weights = {"big": np.float32(1e4), "small": np.float32(1e-4)}
    model, data = graph(nodes, weights, {"x": ["n", 8]}), {"x": normal(4, 8, scale=20)}
    kept = {each.name for each in full_precision_nodes(model.ir, unfit_values(model.ir, [data], 1))}
    assert kept == {"node_p", "node_q"}
    result = model.with_ir(lower_to_half(model.ir, context(None, data, SIGNED)))
    assert relative_error(run(model, data)["y"], run(result, data)["y"]) < 1e-3


def test_inputs_of_the_graph_that_overflow_are_read_in_float32():
    nodes = [node("Mul", ["x", "small"], "n"), node("MatMul", ["n", "w"], "y")]
    weights = {"small": np.float32(1e-4), "w": normal(8, 8, scale=0.3)}
    model, data = graph(nodes, weights, {"x": ["n", 8]}), {"x": normal(4, 8, scale=2e5)}
    assert np.isnan(rounded(half(model), data)).any()  # the hazard is real
    result = model.with_ir(lower_to_half(model.ir, context(None, data, SIGNED)))
    assert types(result)["node_n"] == "FLOAT" and types(result)["node_y"] == "FLOAT16"
    assert relative_error(run(model, data)["y"], rounded(result, data)) < 1e-2


def test_the_result_is_judged_with_every_value_rounded():
    # 4099 is no number of float16, and what is left of it after the subtraction is all that the output holds.
    weights = {"large": np.float32(4096), "one": np.float32(3)}
    nodes = [node("Add", ["x", "large"], "p"), node("Add", ["p", "one"], "q"), node("Sub", ["q", "large"], "y")]
    model, data = graph(nodes, weights, {"x": ["n", 8]}), {"x": normal(4, 8)}
    assert relative_error(run(model, data)["y"], rounded(half(model), data)) > 0.1
    used = context(None, data, SIGNED)
    result = model.with_ir(lower_to_half(model.ir, used))
    assert relative_error(run(model, data)["y"], rounded(result, data)) < 1e-2
    assert any("stays in float32" in remark for remark in used.notes.remarks)


def test_the_numbers_that_stand_for_infinity_in_a_mask_are_clipped_not_kept():
    nodes = [node("Where", ["mask", "scores", "lowest"], "m"), node("Softmax", ["m"], "y")]
    weights = {"lowest": np.float32(np.finfo(np.float32).min)}
    model = graph(nodes, weights, {"mask": ["n", 4], "scores": ["n", 4]}, types={"mask": ir.DataType.BOOL.value})
    data = {"mask": np.array([[True, True, False, False]]), "scores": normal(1, 4)}
    result = model.with_ir(lower_to_half(model.ir, context(None, data, SIGNED)))
    found = run(result, data)["y"]
    assert types(result)["node_m"] == "FLOAT16"
    np.testing.assert_array_equal(found[0, 2:], 0)
    np.testing.assert_allclose(found, run(model, data)["y"], atol=1e-3)


def test_angles_of_positions_stay_in_float32(tiny_llama):
    inputs = runnable_inputs(tiny_llama.ir)
    reasons = full_precision_nodes(tiny_llama.ir, unfit_values(tiny_llama.ir, [inputs], 1))
    assert "angle of a position" in set(reasons.values())
    result = lower_to_half(tiny_llama.ir, context(None, None, SIGNED))
    for each in result.graph:
        if each.op_type in ("Sin", "Cos"):
            assert each.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_gpt2", "tiny_cnn", "tiny_dinov2"])
def test_real_architectures_hold(fixture, request):
    model = request.getfixturevalue(fixture)
    used = context(None, None, SIGNED)
    result = lower_to_half(model.ir, used)
    assert any("compute in float16" in remark for remark in used.notes.remarks)
    inputs = runnable_inputs(model.ir, seed=7)
    expected, found = ReferenceSession(model.ir).run(inputs), ReferenceSession(result).run(inputs)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert relative_error(array, found[name]) < 1e-2


def test_quantized_products_stay_quantized_with_float16_scales():
    model, data = chain(), {"x": normal(32, 8)}
    quantized = quantize(model, data, SIGNED)
    result = model.with_ir(lower_to_half(quantized.ir, context(None, data, SIGNED)))
    scales = {
        each.inputs[1].dtype.name for each in result.graph if each.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert scales == {"FLOAT16"}
    step = relative_error(run(model, data)["y"], run(quantized, data)["y"])
    # What float16 adds is of the size of the quantization noise at most: some codes move by one step.
    assert relative_error(run(quantized, data)["y"], run(result, data)["y"]) < 2 * step


def test_a_scale_too_small_for_float16_keeps_its_node_in_float32():
    weights = {"w": normal(8, 8) * np.float32(1e-4)}
    model, data = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 8]}), {"x": normal(16, 8)}
    quantized = quantize(model, data, SIGNED)
    reasons = full_precision_nodes(quantized.ir, unfit_values(quantized.ir, [data], 1))
    assert "scale too small for float16" in set(reasons.values())
    result = model.with_ir(lower_to_half(quantized.ir, context(None, data, SIGNED)))
    assert relative_error(run(quantized, data)["y"], run(result, data)["y"]) < 0.02


def test_all_pairs_of_a_product_have_scales_of_one_type():
    weights = {"s": np.float32(0.1), "t": np.float32(1e-6), "w": np.ones((8, 8), np.int8), "z": np.int8(0)}
    nodes = [node("Relu", ["x"], "r"), node("QuantizeLinear", ["r", "s", "z"], "q")]
    nodes += [node("DequantizeLinear", ["q", "s", "z"], "d"), node("DequantizeLinear", ["w", "t", "z"], "a")]
    nodes += [node("DequantizeLinear", ["w", "s", "z"], "b"), node("MatMul", ["d", "a"], "m")]
    nodes += [node("MatMul", ["d", "b"], "n"), node("Add", ["m", "n"], "y")]
    model, data = graph(nodes, weights, {"x": ["n", 8]}), {"x": np.abs(normal(4, 8))}
    result = model.with_ir(lower_to_half(model.ir, context(None, data, SIGNED)))
    kinds = types(result)
    # The small scale keeps its product, the activation that both products read, and so the other product too.
    assert {kinds[f"node_{name}"] for name in "dabmn"} == {"FLOAT"}
    assert kinds["node_r"] == kinds["node_y"] == "FLOAT16"
    assert relative_error(run(model, data)["y"], run(result, data)["y"]) < 1e-3


def test_control_flow_reads_float32():
    body = ir.from_onnx_text if hasattr(ir, "from_onnx_text") else None
    if body is None:
        pytest.skip("this onnx_ir has no text parser")
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        main (float[n] x, bool c) => (float[n] y) {
            a = Relu(x)
            b = If (c) <then_branch = t () => (float[n] u) { u = Neg(a) },
                        else_branch = e () => (float[n] v) { v = Identity(a) }>
            y = Relu(b)
        }"""
    model = body(text)
    for each in model.graph:
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    write_half(model, ())
    inputs = {"x": np.float32([-1, 2]), "c": np.array(False)}
    np.testing.assert_array_equal(ReferenceSession(model).run(inputs)["y"], [0, 2])


WIDTH, TOKENS, HEADS, CLASSES = 32, 10, 2, 12


def spelled_out_norm(source, name):
    """Return the nodes of a layer normalization as exporters before opset 17 wrote it."""
    nodes = [node("ReduceMean", [source, "axes"], f"{name}_m"), node("Sub", [source, f"{name}_m"], f"{name}_c")]
    nodes += [node("Pow", [f"{name}_c", "two"], f"{name}_s"), node("ReduceMean", [f"{name}_s", "axes"], f"{name}_v")]
    nodes += [node("Add", [f"{name}_v", "eps"], f"{name}_e"), node("Sqrt", [f"{name}_e"], f"{name}_r")]
    nodes += [node("Div", [f"{name}_c", f"{name}_r"], f"{name}_n"), node("Mul", [f"{name}_n", "gamma"], f"{name}_g")]
    return [*nodes, node("Add", [f"{name}_g", "beta"], name)]


def overflowing_transformer():
    """Return a block of a vision transformer whose residual stream is in the hundreds, as in trained ones.

    The squares in its normalizations and the scores of its attention, scaled after their product, overflow float16.
    """
    heads = {"split": np.array([0, TOKENS, HEADS, WIDTH // HEADS]), "merged": np.array([0, TOKENS, WIDTH])}
    weights = heads | {"axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-6)}
    weights |= {"gamma": np.full(WIDTH, 1, np.float32), "beta": normal(WIDTH, scale=0.1), "d": np.float32(1e-4)}
    for index, name in enumerate(("q", "k", "v", "o", "up")):
        scale = 40.0 if name in "qk" else 0.3
        weights[f"w{name}"] = normal(WIDTH, WIDTH, seed=index, scale=scale)
    weights["head"] = normal(WIDTH, CLASSES, seed=9)
    nodes = spelled_out_norm("x", "n1")
    for name in "qkv":
        nodes += [node("MatMul", ["n1", f"w{name}"], name), node("Reshape", [name, "split"], f"{name}4")]
        order = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes.append(node("Transpose", [f"{name}4"], f"{name}t", perm=order))
    nodes += [node("MatMul", ["qt", "kt"], "scores"), node("Mul", ["scores", "d"], "scaled")]
    nodes += [node("Softmax", ["scaled"], "attention", axis=-1), node("MatMul", ["attention", "vt"], "mixed")]
    nodes += [node("Transpose", ["mixed"], "back", perm=[0, 2, 1, 3]), node("Reshape", ["back", "merged"], "joined")]
    nodes += [node("MatMul", ["joined", "wo"], "out"), node("Add", ["x", "out"], "stream")]
    nodes += spelled_out_norm("stream", "n2")
    nodes += [node("MatMul", ["n2", "wup"], "up"), node("Gelu", ["up"], "act"), node("MatMul", ["act", "head"], "y")]
    return graph(nodes, weights, {"x": ["n", TOKENS, WIDTH]})


def rounded(model, data):
    """Run a graph so that every value is rounded to its type, as a GPU does and ONNX Runtime's CPU does not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ReferenceEvaluator(ir.to_proto(model.ir)).run(None, data)[0]


def test_a_vision_transformer_that_overflows_in_float16_keeps_its_classes():
    model = overflowing_transformer()
    data = {"x": normal(8, TOKENS, WIDTH, seed=5, scale=400.0)}
    expected = run(model, data)["y"]
    naive = rounded(half(model), data)
    classes = expected.argmax(-1)
    # The hazard is real: converted as it is, it loses most of its classes.
    assert (np.nan_to_num(naive, nan=-1e9).argmax(-1) == classes).mean() < 0.5
    used = context(None, data, SIGNED)
    result = model.with_ir(lower_to_half(model.ir, used))
    found = rounded(result, data)
    assert np.isfinite(found).all()
    assert relative_error(expected, found) < 1e-2
    # Classes may change only where the two best are closer than twice the largest error.
    best = np.sort(expected, -1)
    clear = best[..., -1] - best[..., -2] > 2 * np.abs(found - expected).max()
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(found.argmax(-1)[clear], classes[clear])
    kinds = types(result)
    assert kinds["node_scores"] == "FLOAT"
    assert kinds["node_up"] == kinds["node_out"] == "FLOAT16"
    assert any("beyond the range" in remark for remark in used.notes.remarks)
    assert any("normalization that was written out" in remark for remark in used.notes.remarks)


def test_what_is_joined_computes_the_same_and_what_cannot_be_joined_stays():
    from edgesmith_tensorrt.layer_norms import join_layer_norms

    model = overflowing_transformer()
    data = {"x": normal(2, TOKENS, WIDTH, seed=6)}
    expected = run(model, data)["y"]
    joined = model.clone()
    assert len(join_layer_norms(joined.ir)) == 2
    assert not any(each.op_type in ("Pow", "Sqrt", "ReduceMean") for each in joined.graph)
    assert relative_error(expected, run(joined, data)["y"]) < 1e-5
    assert len(join_layer_norms(joined.ir)) == 0
    old = model.clone()
    old.graph.opset_imports[""] = 16
    assert join_layer_norms(old.ir) == []


def test_a_normalization_that_is_an_output_keeps_its_name():
    from edgesmith_tensorrt.layer_norms import join_layer_norms

    weights = {"axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-6)}
    weights |= {"gamma": normal(16), "beta": normal(16, seed=1)}
    model = graph(spelled_out_norm("x", "y"), weights, {"x": ["n", 16]})
    data = {"x": normal(4, 16)}
    joined = model.clone()
    (norm,) = join_layer_norms(joined.ir)
    assert norm.outputs[0].name == "y"
    assert relative_error(run(model, data)["y"], run(joined, data)["y"]) < 1e-5


def test_a_graph_that_came_in_float16_keeps_its_types():
    weights = {"w": normal(8, 8).astype(np.float16)}
    kind = ir.DataType.FLOAT16.value
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "y")]
    model = graph(nodes, weights, {"x": ["n", 8]}, types={"x": kind, "y": kind})
    for each in model.graph:
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    data = {"x": normal(4, 8).astype(np.float16)}
    used = context(None, data, SIGNED)
    result = model.with_ir(lower_to_half(model.ir, used))
    assert result.graph.outputs[0].dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(run(result, data)["y"], run(model, data)["y"])
    assert not any("inf" in remark for remark in used.notes.remarks)


TYPED_BY_THEMSELVES = {
    "a constant without a value": [node("Shape", ["h"], "s"), node("ConstantOfShape", ["s"], "z")],
    "a type in an attribute": [node("EyeLike", ["h"], "z", dtype=1)],
    "a type that an attribute leaves out": [node("EyeLike", ["h"], "z")],
}


@pytest.mark.parametrize("case", TYPED_BY_THEMSELVES)
def test_operators_that_choose_their_type_do_not_keep_the_graph_in_float32(case):
    nodes = [node("MatMul", ["x", "w"], "h"), *TYPED_BY_THEMSELVES[case], node("Add", ["h", "z"], "m")]
    model = graph([*nodes, node("MatMul", ["m", "w"], "y")], {"w": normal(8, 8, scale=0.3)}, {"x": [1, 8]})
    for each in model.graph:
        kind = ir.DataType.INT64 if each.op_type == "Shape" else ir.DataType.FLOAT
        each.outputs[0].type = ir.TensorType(kind)
    data = {"x": normal(1, 8)}
    result = model.with_ir(lower_to_half(model.ir, context(None, data, SIGNED)))
    assert types(result)["node_h"] == types(result)["node_y"] == "FLOAT16"
    assert relative_error(run(model, data)["y"], rounded(result, data)) < 1e-2
