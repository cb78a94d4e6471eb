"""ExecuTorch: what the target refuses, and that its file computes the same where executorch is installed.

Tests with `needs_executorch` run there: pip install edgesmith[executorch]
"""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from edgesmith.errors import TargetError
from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.frontends.fixed_dimensions import fix_dimensions
from edgesmith.host.loader import load_registry
from edgesmith_executorch import export
from edgesmith_executorch import target as target_module
from edgesmith_executorch.target import PROFILE, ExecuTorch
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from small_graphs import context, graph, node

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="pip install edgesmith[executorch]"
)

SIZES = {"tiny_bert": {"batch": 1, "sequence": 8}, "tiny_cnn": {"batch": 1}}


def fixed(name, request):
    return fix_dimensions(request.getfixturevalue(name), SIZES[name])


def test_the_record_and_the_profile_agree():
    record = load_registry().target("executorch-xnnpack")
    assert record.profile == PROFILE
    assert ExecuTorch().dialect.name == record.name
    assert ExecuTorch().device.runtimes[0].source


def test_open_sizes_are_refused_with_the_way_out(tiny_bert):
    verdict = ExecuTorch().check(tiny_bert)
    assert verdict.status == "refuse"
    assert "batch, sequence" in verdict.reason and "--shape" in verdict.reason


def test_an_operator_that_torch_does_not_run_is_refused_by_name():
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [2]})
    assert ExecuTorch().check(model).status == "ok"
    next(iter(model.graph)).op_type = "NoSuchOperator"
    verdict = ExecuTorch().check(model)
    assert verdict.status == "refuse" and "NoSuchOperator" in verdict.reason


def test_int8_is_refused_with_the_reason():
    model = graph([node("MatMul", ["x", "w"], "y")], {"w": np.ones((4, 4), np.float32)}, {"x": [1, 4]})
    verdict = QuantizeInt8().check(model, context(QuantizeInt8Options(), None, ExecuTorch().dialect))
    assert verdict.status == "refuse" and "quantizer" in verdict.reason


def test_lowering_returns_another_object_and_the_same_graph(request):
    model = fixed("tiny_cnn", request)
    lowered = ExecuTorch().lower(model, context())
    assert lowered is not model
    assert lowered.digest() == model.digest()


def test_a_failing_exporter_is_one_line(tmp_path, request, monkeypatch):
    target = ExecuTorch()
    target.build(fixed("tiny_cnn", request), tmp_path)
    crash = tmp_path / "crash.py"
    crash.write_text("raise RuntimeError('broken\\nin two')\n")
    monkeypatch.setattr(export, "__file__", str(crash))
    with pytest.raises(TargetError, match="in two") as caught:
        target.finish(tmp_path)
    assert "\n" not in caught.value.what


def test_outputs_that_differ_are_refused(tmp_path, request, monkeypatch):
    target = ExecuTorch()
    target.build(fixed("tiny_cnn", request), tmp_path)
    answer = tmp_path / "answer.py"
    answer.write_text('print(\'{"relative_errors": {"logits": 0.5}}\')\n')
    monkeypatch.setattr(export, "__file__", str(answer))
    with pytest.raises(TargetError, match=r"'logits' of model\.pte"):
        target.finish(tmp_path)
    answer.write_text('print(\'{"relative_errors": {"logits": NaN}}\')\n')
    with pytest.raises(TargetError, match="nan"):
        target.finish(tmp_path)


def selecting():
    """A product, and the row that a constant index selects of it, as classifiers do with their first token."""
    nodes = [node("MatMul", ["x", "w"], "m"), node("Gather", ["m", "i"], "y", axis=1)]
    weights = {"w": np.eye(4, dtype=np.float32), "i": np.array(-1)}
    return graph(nodes, weights, {"x": [1, 3, 4]})


@pytest.mark.parametrize("name", ["tiny_cnn", "selecting"])
def test_the_graph_is_exported_by_torch_with_equal_outputs(name, request):
    """The half of the way that needs no executorch: TorchGraph through torch.export."""
    model = selecting() if name == "selecting" else fixed(name, request)
    feed = sample_inputs(model.ir, seed=5)
    inputs = tuple(torch.from_numpy(array) for array in feed.values())
    module = export.Positional(TorchGraph(model.ir), tuple(feed))
    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
        expected, actual = module(*inputs), program.module()(*inputs)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_operators_are_told_by_plain_names():
    assert export._operator(SimpleNamespace(__name__="addmm.out")) == "addmm"
    assert export._operator("aten.where.self_out") == "where"


@needs_executorch
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_cnn"])
def test_the_file_computes_what_the_graph_does(name, request, tmp_path):
    target = ExecuTorch()
    target.build(fixed(name, request), tmp_path)
    facts = target.finish(tmp_path)["executorch"]
    assert (tmp_path / facts["file"]).stat().st_size == facts["bytes"]
    assert max(facts["relative_errors"].values()) < target_module.LARGEST_ERROR
    assert facts["operators"]["executorch_call_delegate"] >= 1
    feed = sample_inputs(fixed(name, request).ir, seed=9)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = export.run(tmp_path / "model.pte", tuple(torch.from_numpy(array) for array in feed.values()))
    for expected, actual in zip(session.run(None, feed), outputs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@needs_executorch
def test_the_child_needs_nothing_but_its_arguments(tmp_path, request):
    import subprocess

    done = subprocess.run([sys.executable, export.__file__, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--samples" in done.stdout
