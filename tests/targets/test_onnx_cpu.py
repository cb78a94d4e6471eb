"""The target as a whole: lowering keeps outputs, drops what does not, and builds a file that users can load."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgesmith.errors import TargetError
from edgesmith.execution import handover
from edgesmith.execution.sample import sample_inputs
from edgesmith_onnxruntime import lowering, register_targets
from edgesmith_onnxruntime.cpu import OnnxCpu
from small_graphs import context, graph, lower, node, operators, quantize, run, sqnr

FAMILIES = ["tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn"]
FUSED = {"tiny_bert": 2, "tiny_distilbert": 2, "tiny_vit": 2, "tiny_dinov2": 2, "tiny_gpt2": 2}


def padded(model, seed=0):
    """Return sample inputs; attention masks end in zeros, as padded texts have them."""
    inputs = sample_inputs(model.ir, seed=seed)
    if "attention_mask" in inputs:
        inputs["attention_mask"][0, -3:] = 0
    return inputs


@pytest.mark.parametrize("fixture", FAMILIES)
def test_float_outputs_stay_equal_and_attention_is_fused(fixture, request):
    model = request.getfixturevalue(fixture)
    before = operators(model)
    result = lower(model)
    assert operators(model) == before
    assert operators(result)["MultiHeadAttention"] == FUSED.get(fixture, 0)
    for inputs in (sample_inputs(model.ir), padded(model, seed=1)):
        expected, actual = run(model, inputs), run(result, inputs, "all")
        assert list(expected) == list(actual)
        for name, reference in expected.items():
            np.testing.assert_allclose(actual[name], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_vit", "tiny_gpt2", "tiny_cnn"])
def test_quantized_outputs_stay_as_close_to_float_as_before(fixture, mode, request):
    model = request.getfixturevalue(fixture)
    inputs = padded(model)
    quantized = quantize(model, inputs, mode=mode)
    result = lower(quantized, inputs)
    expected, before, after = run(model, inputs), run(quantized, inputs), run(result, inputs, "all")
    for name, reference in expected.items():
        assert sqnr(reference, after[name]) > sqnr(reference, before[name]) - 1


def test_a_rewrite_that_changes_outputs_is_left_out_and_named(monkeypatch, tiny_bert):
    def break_graph(editable):
        for each in list(editable):
            if each.op_type == "LayerNormalization":
                each.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1.0)
        return 1

    monkeypatch.setattr(lowering, "write_residual_sums", break_graph)
    used = context()
    result = OnnxCpu().lower(tiny_bert, used)
    assert any(remark.startswith("Left out, because outputs changed") for remark in used.notes.remarks)
    assert operators(result)["MultiHeadAttention"] == 2
    inputs = sample_inputs(tiny_bert.ir)
    for name, reference in run(tiny_bert, inputs).items():
        np.testing.assert_allclose(run(result, inputs)[name], reference, rtol=1e-4, atol=1e-5)


def test_a_graph_too_large_to_run_is_not_optimized_to_see_whether_it_loads(monkeypatch, tmp_path, tiny_vit):
    assert OnnxCpu().build(tiny_vit, tmp_path).recipe["loaded_at"] == "default"
    monkeypatch.setattr(handover, "free_bytes", lambda: 100)
    assert OnnxCpu().build(tiny_vit, tmp_path).recipe["loaded_at"] == "basic"
    with pytest.raises(TargetError, match="NoSuchOperator"):
        OnnxCpu().build(broken(), tmp_path)


def test_a_graph_too_large_to_run_is_not_rewritten_without_proof(monkeypatch, tiny_bert):
    monkeypatch.setattr(handover, "free_bytes", lambda: 100)
    used = context()
    result = OnnxCpu().lower(tiny_bert, used)
    assert result.digest() == tiny_bert.digest()
    assert any("Left out" in remark and "half of the free memory" in remark for remark in used.notes.remarks)


def test_a_rewrite_whose_graph_does_not_load_is_left_out(monkeypatch, tiny_vit):
    def break_graph(editable):
        next(each for each in editable if each.op_type == "LayerNormalization").op_type = "NoSuchOperator"
        return 1

    monkeypatch.setattr(lowering, "write_residual_sums", break_graph)
    used = context()
    result = OnnxCpu().lower(tiny_vit, used)
    assert operators(result)["NoSuchOperator"] == 0
    assert any("did not run" in remark and "NoSuchOperator" in remark for remark in used.notes.remarks)


def test_lowering_is_deterministic(tiny_bert):
    first, second = (ir.to_proto(lower(tiny_bert).ir).SerializeToString() for _ in range(2))
    assert first == second


def test_lowering_twice_changes_nothing_more(tiny_bert):
    once = lower(quantize(tiny_bert, sample_inputs(tiny_bert.ir)))
    assert operators(lower(once)) == operators(once)


def test_build_writes_what_users_load(tmp_path, tiny_vit):
    target = OnnxCpu()
    build = target.build(tiny_vit, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [build.entry]
    session = onnxruntime.InferenceSession(str(tmp_path / build.entry), providers=["CPUExecutionProvider"])
    inputs = sample_inputs(tiny_vit.ir)
    for value, expected in zip(session.run(None, inputs), run(tiny_vit, inputs).values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    assert build.recipe["version"] == onnxruntime.__version__


def test_large_weights_stand_beside_the_graph(tmp_path, monkeypatch, tiny_vit):
    from edgesmith import serialization

    monkeypatch.setattr(serialization, "SINGLE_FILE_BYTES", 100)
    OnnxCpu().build(tiny_vit, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def broken():
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [2]})
    next(iter(model.graph)).op_type = "NoSuchOperator"
    return model


def test_unknown_operators_are_refused_by_name(tmp_path):
    verdict = OnnxCpu().check(broken())
    assert verdict.status == "refuse"
    assert "NoSuchOperator" in verdict.reason
    with pytest.raises(TargetError, match="NoSuchOperator"):
        OnnxCpu().build(broken(), tmp_path)


def test_opsets_of_the_future_are_refused():
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [2]})
    assert OnnxCpu().check(model).status == "ok"
    model.graph.opset_imports[""] = 99
    assert "99" in OnnxCpu().check(model).reason


def test_record_names_the_class():
    record = next(each for each in register_targets() if each.name == "onnx-cpu")
    module, _, name = record.entry.partition(":")
    assert (module, name) == (OnnxCpu.__module__, OnnxCpu.__name__)
    assert record.name == OnnxCpu.dialect.name
