"""What `quantize-fp8` quantizes, how it is written, and what the graph computes before and after."""

from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesmith.errors import DataError, ModelError, StepError
from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.graph.structure import find_structure
from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith_onnxruntime.cpu import DIALECT, OnnxCpu
from edgesmith_quantization.arithmetic.float8 import FORMATS, dequantize, quantize
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from small_graphs import context, graph, lower, node, operators, run, sqnr

HOPPER = Dialect(
    name="hopper",
    opset=21,
    activation=TensorFormat("int8", symmetric=True),
    weight=TensorFormat("int8", symmetric=True, granularity="channel"),
    operators=frozenset({"MatMul", "Gemm", "Conv"}),
    attention_products=True,
    weight_only=(WeightFormat("int8"), WeightFormat("float8e4m3fn")),
    float8="hardware",
)
ORIN = replace(HOPPER, name="orin", float8="none", refusals={"float8": "FP8 needs compute capability 8.9; this is 8.7"})


SMALL = {"minimum_channels": 1, "minimum_head_size": 1}
"""Options for networks whose layers are too small for hardware."""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def apply(model, data, dialect=DIALECT, *, heads=True, **options):
    """Graphs of one product are all head, so heads are included here unless a test says otherwise."""
    used = context(QuantizeFp8Options(heads=heads, **options), data, dialect)
    return QuantizeFp8().apply(model, used), used.notes


def check(model, data=None, dialect=DIALECT, **options):
    return QuantizeFp8().check(model, context(QuantizeFp8Options(heads=True, **options), data, dialect))


def product(weight=None, **attributes):
    weight = normal(32, 24) if weight is None else weight
    return graph([node("Gemm", ["x", "w"], "y", **attributes)], {"w": weight}, {"x": ["n", 32]})


def samples(model, count=3):
    drawn = [sample_inputs(model.ir, seed=seed) for seed in range(count)]
    return {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}


def is_pair(value):
    """Whether a value comes out of a Q/DQ pair of eight-bit floats."""
    dequantize_node = value.producer()
    if dequantize_node is None or dequantize_node.op_type != "DequantizeLinear":
        return False
    source = dequantize_node.inputs[0]
    stored = source.const_value is not None
    return source.dtype in (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2) and (
        stored or source.producer().op_type == "QuantizeLinear"
    )


def without_pairs(model, original):
    """Return the graph with Q/DQ bypassed and each weight replaced by the original one."""
    stripped = model.clone()
    for each in [each for each in stripped.graph if each.op_type == "DequantizeLinear"]:
        producer = each.inputs[0].producer()
        if producer is not None:
            replacement = producer.inputs[0]
        else:
            name = each.inputs[0].name.removesuffix("_float8")
            array = original.graph.initializers[name].const_value.numpy()
            turned = list(array.shape) != [int(size) for size in each.inputs[0].shape]
            replacement = ir.Value(name=f"{each.name}_w", const_value=ir.tensor(array.T.copy() if turned else array))
            replacement.shape, replacement.type = each.outputs[0].shape, each.outputs[0].type
            stripped.graph.register_initializer(replacement)
        ir.convenience.replace_all_uses_with(each.outputs[0], replacement)
    return stripped


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama"])
def test_products_have_pairs_on_both_inputs_and_nothing_else_has(name, request):
    model = request.getfixturevalue(f"tiny_{name}")
    result, _ = apply(model, samples(model), **SMALL, heads=False)
    heads = {head.node for head in find_structure(model.ir).heads}
    heads |= {linear.node for head in find_structure(model.ir).heads for linear in head.before}
    seen = 0
    for each in result.graph:
        paired = [value for value in each.inputs if value is not None and is_pair(value)]
        if each.op_type in ("MatMul", "Gemm") and each.name not in heads:
            assert len(paired) == 2, each.name
            seen += 1
        else:
            assert not paired, f"{each.op_type} {each.name}"
    layers = find_structure(model.ir)
    linear_names = {linear.node for linear in layers.linears} - heads
    linear_names -= {each.node for each in layers.embeddings}
    assert seen == len(linear_names) + 2 * len(layers.attentions)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "cnn"])
def test_without_its_pairs_the_graph_is_the_original(name, request):
    model = request.getfixturevalue(f"tiny_{name}")
    data = samples(model)
    result, _ = apply(model, data, **SMALL)
    inputs = sample_inputs(model.ir, seed=7)
    stripped = run(without_pairs(result, model), inputs)
    for output, reference in run(model, inputs).items():
        np.testing.assert_allclose(stripped[output], reference, rtol=1e-6, atol=1e-6)
    for output, reference in run(model, inputs).items():
        assert 15 < sqnr(reference, run(result, inputs)[output]) < 60


@pytest.mark.parametrize("name", ["bert", "cnn"])
def test_artifacts_load_with_default_options_and_stay_close(name, request, tmp_path):
    model = request.getfixturevalue(f"tiny_{name}")
    data = samples(model)
    result, _ = apply(model, data, **SMALL)
    build = OnnxCpu().build(lower(result, data), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / build.entry))
    inputs = sample_inputs(model.ir, seed=7)
    found = dict(zip([each.name for each in session.get_outputs()], session.run(None, dict(inputs)), strict=True))
    for output, reference in run(model, inputs).items():
        assert sqnr(reference, found[output]) > 15


@pytest.mark.parametrize(("function", "bounds"), [("Relu", []), ("Clip", ["low"]), ("Clip", ["low", "high"])])
def test_functions_without_negative_values_stay_at_every_optimization_level(function, bounds):
    nodes = [node("MatMul", ["x", "w"], "h"), node(function, ["h", *bounds], "r"), node("MatMul", ["r", "v"], "y")]
    limits = {"low": np.float32(0), "high": np.float32(6)}
    weights = {"w": normal(32, 32), "v": normal(32, 24)} | {name: limits[name] for name in bounds}
    model, data = graph(nodes, weights, {"x": ["n", 32]}), {"x": normal(20, 32)}
    result, _ = apply(model, data, heads=True)
    for level in ("basic", "extended", "all"):
        assert sqnr(run(model, data)["y"], run(result, data, level)["y"]) > 20


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_torch_graph_agrees_with_onnxruntime_and_passes_gradients(name, request):
    model = request.getfixturevalue(f"tiny_{name}")
    result, _ = apply(model, samples(model), **SMALL)
    torch_graph = TorchGraph(result.ir)
    inputs = sample_inputs(model.ir, seed=7)
    ours = torch_graph({key: torch.from_numpy(array) for key, array in inputs.items()})
    for output, reference in run(result, inputs, "disabled").items():
        # Sums in another order move single codes by one step of 2**-3; the rest agrees to float32.
        assert sqnr(reference, ours[output].detach().numpy()) > 30
    sum(value.float().square().mean() for value in ours.values()).backward()


@pytest.mark.parametrize("form", ["e4m3", "e5m2"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_stored_as_eight_bit_floats_with_their_scales(form, per_channel):
    weight = normal(32, 24)
    weight[np.random.default_rng(1).random(weight.shape) < 0.3] = 0
    model = product(weight)
    result, _ = apply(model, {"x": normal(8, 32)}, format=form, per_channel=per_channel)
    stored = result.graph.initializers["w_float8"].const_value
    scale = result.graph.initializers["w_scale"].const_value.numpy()
    assert stored.numpy().dtype == FORMATS[form].dtype
    assert stored.nbytes == weight.size
    assert scale.shape == ((24,) if per_channel else ())
    np.testing.assert_array_equal(stored.numpy().astype(np.float32)[weight == 0], 0)
    axis = 1 if per_channel else None
    np.testing.assert_array_equal(
        stored.numpy().view(np.uint8), quantize(weight, scale, FORMATS[form], axis).view(np.uint8)
    )
    peaks = np.abs(stored.numpy().astype(np.float32)).max(axis=0 if per_channel else None)
    np.testing.assert_array_equal(peaks, FORMATS[form].largest)
    assert "w" not in result.graph.initializers
    assert "w" in model.graph.initializers


def test_the_graph_computes_what_the_arithmetic_says():
    x, weight = normal(4, 32, seed=3), normal(32, 24)
    result, _ = apply(product(weight), {"x": x}, per_channel=False)
    scales = [np.float32(np.abs(each).max() / 448) for each in (x, weight)]
    restored = [
        dequantize(quantize(each, scale, FORMATS["e4m3"]), scale)
        for each, scale in zip((x, weight), scales, strict=True)
    ]
    # float32 sums of 32 terms err by at most 32 half steps of 2**-23 of the sum of magnitudes.
    bound = 32 * 2.0**-24 * (np.abs(restored[0]) @ np.abs(restored[1]))
    difference = np.abs(run(result, {"x": x})["y"] - restored[0].astype(np.float64) @ restored[1])
    assert (difference <= bound).all()


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"transA": 0, "transB": 1}])
def test_any_gemm_is_taken(attributes):
    weight = normal(24, 32) if attributes.get("transB") else normal(32, 24)
    model = product(weight, **attributes)
    result, _ = apply(model, {"x": normal(16, 32)})
    assert sqnr(run(model, {"x": normal(4, 32)})["y"], run(result, {"x": normal(4, 32)})["y"]) > 25
    axis = result.graph.initializers["w_scale"].const_value.shape.numpy()
    assert axis == (24,)


def test_shared_weights_are_stored_once_also_when_transposed():
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "b")]
    model = graph([*nodes, node("Add", ["a", "b"], "y")], {"w": normal(16, 16)}, {"x": ["n", 16]})
    result, _ = apply(model, {"x": normal(8, 16)})
    assert (
        sum(v.dtype == ir.DataType.FLOAT8E4M3FN and len(v.shape) == 2 for v in result.graph.initializers.values()) == 1
    )
    nodes = [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "y")]
    turned = graph(nodes, {"w": normal(24, 32)}, {"x": ["n", 32]})
    result, _ = apply(turned, {"x": normal(8, 32)})
    assert "Transpose" not in operators(result)
    assert result.graph.initializers["w_float8"].const_value.numpy().shape == (32, 24)
    assert sqnr(run(turned, {"x": normal(4, 32)})["y"], run(result, {"x": normal(4, 32)})["y"]) > 25


def test_inputs_that_several_products_share_are_quantized_once():
    nodes = [node("MatMul", ["x", name], f"{name}_y") for name in ("q", "k", "v")]
    weights = {name: normal(16, 24, seed=i) for i, name in enumerate(("q", "k", "v"))}
    model = graph(nodes, weights, {"x": ["n", 16]}, [f"{name}_y" for name in weights])
    result, _ = apply(model, {"x": normal(8, 16)})
    assert operators(result)["QuantizeLinear"] == 1


def test_limits_of_kernels_leave_products_in_float_with_the_reason():
    nodes = [node("Conv", ["image", "few"], "c"), node("Conv", ["c", "large"], "d", pads=[3, 3, 3, 3])]
    nodes += [node("Conv", ["d", "wide"], "y"), node("MatMul", ["x", "w"], "v"), node("MatMul", ["z", "o"], "u")]
    weights = {"few": normal(16, 3, 3, 3), "large": normal(16, 16, 7, 7), "wide": normal(32, 16, 3, 3)}
    weights |= {"w": normal(16, 1), "o": normal(16, 20)}
    inputs = {"image": ["n", 3, 12, 12], "x": ["n", 16], "z": [1, 16]}
    model = graph(nodes, weights, inputs, ["y", "v", "u"])
    result, notes = apply(model, {"image": normal(1, 3, 12, 12), "x": normal(1, 16), "z": normal(1, 16)})
    assert set(notes.skipped) == {"node_c", "node_d", "node_v", "node_u"}
    assert "3 input and 16 output channels" in notes.skipped["node_c"]
    assert "49 elements" in notes.skipped["node_d"]
    assert "vector" in notes.skipped["node_v"] and "vector" in notes.skipped["node_u"]
    assert operators(result)["QuantizeLinear"] == 1


def test_attention_with_tiny_heads_and_options_keep_it_in_float(tiny_bert):
    attentions = find_structure(tiny_bert.ir).attentions
    data = samples(tiny_bert)
    _, notes = apply(tiny_bert, data)
    assert "size 8" in notes.skipped[attentions[0].score]
    _, notes = apply(tiny_bert, data, attention=False, **SMALL)
    assert all(notes.skipped[each.score] == "the option attention is off" for each in attentions)
    _, notes = apply(tiny_bert, data, skip=(attentions[0].score,), **SMALL)
    assert notes.skipped[attentions[0].score] == "named in the option skip"
    assert attentions[0].context_node not in notes.skipped


def test_masked_scores_are_never_rounded(tiny_bert):
    result, _ = apply(tiny_bert, samples(tiny_bert), **SMALL)
    masks = {each.mask for each in find_structure(tiny_bert.ir).attentions}
    assert None not in masks
    for each in result.graph:
        if each.op_type == "Softmax":
            assert not is_pair(each.inputs[0])
        if each.op_type == "QuantizeLinear":
            producer = each.inputs[0].producer()
            assert producer is None or not {value.name for value in producer.inputs if value is not None} & masks


def test_float16_graphs_get_float16_scales_and_a_newer_opset():
    half = ir.DataType.FLOAT16.value
    weights = {"w": (normal(32, 24) * 1e-6).astype(np.float16)}
    model = graph([node("MatMul", ["x", "w"], "y")], weights, {"x": ["n", 32]}, types={"x": half, "y": half})
    data = {"x": normal(8, 32).astype(np.float16)}
    result, _ = apply(model, data)
    assert result.graph.opset_imports[""] >= 21
    scale = result.graph.initializers["w_scale"].const_value
    assert scale.dtype == ir.DataType.FLOAT16
    assert (scale.numpy() >= np.float16(2.0**-24)).all()
    assert run(result, data)["y"].dtype == np.float16


def test_hardware_gets_the_opset_whose_float16_scales_its_back_ends_take():
    """Targets with FP8 bring the rest of the graph to float16 when they lower it."""
    model, data = product(), {"x": normal(8, 32)}
    assert apply(model, data, HOPPER)[0].graph.opset_imports[""] == 21
    assert apply(model, data)[0].graph.opset_imports[""] == 20
    assert apply(model, data, replace(HOPPER, opset=20))[0].graph.opset_imports[""] == 20


def test_older_opsets_are_raised():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": normal(32, 24)}, {"x": ["n", 32]}, opset=17)
    result, _ = apply(model, {"x": normal(8, 32)})
    assert model.graph.opset_imports[""] == 17
    assert result.graph.opset_imports[""] >= 19
    assert sqnr(run(model, {"x": normal(4, 32)})["y"], run(result, {"x": normal(4, 32)})["y"]) > 25


def test_weight_only_needs_no_data_and_leaves_activations_alone(tiny_bert):
    assert check(tiny_bert, mode="weight-only").status == "ok"
    result, _ = apply(tiny_bert, None, mode="weight-only")
    assert operators(result)["QuantizeLinear"] == 0
    assert operators(result)["DequantizeLinear"] > 0
    inputs = sample_inputs(tiny_bert.ir)
    for output, reference in run(tiny_bert, inputs).items():
        assert sqnr(reference, run(lower(result), inputs, "all")[output]) > 20


def test_targets_are_told_what_is_simulated_and_what_they_refuse():
    data = {"x": normal(8, 32)}
    _, notes = apply(product(), data)
    assert any("Simulated: onnx-cpu" in remark for remark in notes.remarks)
    _, notes = apply(product(), data, HOPPER)
    assert not any("Simulated" in remark for remark in notes.remarks)
    refused = check(product(), data, HOPPER, format="e5m2")
    assert refused.status == "refuse"
    assert "hopper multiplies E4M3 only" in refused.reason
    refused = check(product(), data, ORIN)
    assert refused.status == "refuse"
    assert "8.9" in refused.reason and "weight-only" in refused.reason
    assert check(product(), None, ORIN, mode="weight-only").status == "ok"
    assert (
        "no weights as float8e5m2; set format to e4m3"
        in check(product(), dialect=DIALECT, mode="weight-only", format="e5m2").reason
    )
    bare = replace(ORIN, weight_only=(), refusals={})
    assert "quantize-int8" in check(product(), data, bare).reason
    assert "quantize-weights" in check(product(), data, bare, mode="weight-only").reason


def test_reasons_of_refusals_and_skips():
    assert "calibration data" in check(product()).reason
    assert "names 'nothing'" in check(product(), {"x": normal(4, 32)}, skip=("nothing",)).reason
    relu = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 8]})
    assert check(relu, {"x": normal(4, 8)}).status == "skip"
    with pytest.raises(StepError, match="nothing to quantize"):
        apply(relu, {"x": normal(4, 8)})
    with pytest.raises(DataError, match="calibration"):
        apply(product(), None)


def test_infinity_in_data_or_weights_is_named():
    nodes = [node("Log", ["x"], "logarithm"), node("MatMul", ["logarithm", "w"], "y")]
    model = graph(nodes, {"w": normal(32, 24)}, {"x": ["n", 32]})
    with pytest.raises(DataError, match=r"logarithm.*NaN"):
        apply(model, {"x": np.full((2, 32), -1, np.float32)})
    weight = normal(32, 24)
    weight[3, 4] = np.inf
    with pytest.raises(ModelError, match=r"weight w of node_y holds NaN or infinity"):
        apply(product(weight), {"x": normal(4, 32)})


def test_zero_weights_and_activations_stay_zero():
    model = product(np.zeros((32, 24), np.float32))
    result, _ = apply(model, {"x": np.zeros((4, 32), np.float32)})
    np.testing.assert_array_equal(run(result, {"x": normal(4, 32)})["y"], 0)


@pytest.mark.parametrize("estimator", ["absmax", "percentile", "mse"])
def test_estimators_give_scales_in_order(estimator):
    data = normal(64, 32)
    data[0, 0] = 500
    result, _ = apply(product(), {"x": data}, range_estimator=estimator, percentile=99)
    scale = float(result.graph.initializers["x_scale"].const_value.numpy())
    if estimator == "absmax":
        assert scale == np.float32(500 / 448)
    else:
        assert 0 < scale <= np.float32(500 / 448)
    assert estimator != "percentile" or scale < 5 / 448


def test_values_that_become_zero_are_reported():
    weight = normal(32, 24)
    weight[:, 0] *= 1e-9
    _, notes = apply(product(weight), {"x": normal(8, 32)}, per_channel=False)
    assert any("in these weights: w " in remark for remark in notes.remarks)
    _, notes = apply(product(weight), {"x": normal(8, 32)})
    assert any("At most 0.00%" in remark for remark in notes.remarks)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_random_stacks_of_products_keep_zeros_and_stay_close(seed):
    generator = np.random.default_rng(seed)
    widths = generator.integers(2, 24, generator.integers(2, 5)).tolist()
    nodes, weights, value = [], {}, "x"
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        name = f"w{index}"
        weights[name] = (generator.normal(0, 1, (inputs, outputs)) * 10.0 ** generator.integers(-6, 6)).astype(
            np.float32
        )
        weights[name][generator.random((inputs, outputs)) < 0.2] = 0
        nodes.append(node("MatMul", [value, name], f"m{index}"))
        value = f"m{index}"
    nodes.append(node("Identity", [value], "y"))
    model = graph(nodes, weights, {"x": ["n", widths[0]]})
    data = {"x": generator.normal(0, 1, (6, widths[0])).astype(np.float32)}
    if check(model, data).status != "ok":
        return
    result, _ = apply(model, data)
    for name, weight in weights.items():
        if f"{name}_float8" in result.graph.initializers:
            stored = result.graph.initializers[f"{name}_float8"].const_value.numpy().astype(np.float32)
            assert (stored[weight == 0] == 0).all()
    before, after = run(model, data)["y"], run(result, data)["y"]
    # Each of up to 8 roundings errs by at most 2**-4 of a value; sums of products of magnitudes bound the outputs.
    bound = np.abs(data["x"])
    for weight in weights.values():
        bound = bound @ np.abs(weight)
    assert (np.abs(before - after) <= ((1 + 2.0**-4) ** 8 - 1) * bound + 1e-30).all()


@pytest.mark.parametrize("options", [{"format": "e3m4"}, {"percentile": 50}, {"samples": 0}, {"bits": 8}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValidationError):
        QuantizeFp8Options(**options)
    assert all(field.description for field in QuantizeFp8Options.model_fields.values())


def test_two_runs_are_equal(tiny_bert):
    data = samples(tiny_bert)
    first, second = (apply(tiny_bert, data)[0] for _ in range(2))
    assert ir.to_proto(first.ir).SerializeToString() == ir.to_proto(second.ir).SerializeToString()
    assert first.graph.initializers
    assert ml_dtypes.float8_e4m3fn in {
        value.const_value.numpy().dtype.type for value in first.graph.initializers.values()
    }
