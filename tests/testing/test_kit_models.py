"""The tiny models are what they say: valid, fixed, light to make, and recognised for what they are."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.structure import find_structure
from edgesmith.serialization import check_graph
from edgesmith.testing import TINY_MODELS, tiny_data, tiny_external, tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models(tmp_path_factory.mktemp("models"))


def test_every_family_is_there(models):
    families = {"mlp", "cnn", "bert", "vit", "gpt", "llama", "quantized", "dynamic", "branches", "bare", "external"}
    assert set(models) == families == {*TINY_MODELS, "external"}


def test_each_is_valid_and_its_outputs_are_finite_and_depend_on_the_input(models):
    for name, model in models.items():
        check_graph(model.ir, name)
        session = ReferenceSession(model.ir)
        outputs = [
            next(iter(session.run(next(tiny_data(model, seed=seed).batches(8)).inputs).values())) for seed in (0, 1)
        ]
        assert outputs[0].shape[0] == 8, name
        assert all(np.isfinite(values).all() for values in outputs), name
        assert not np.allclose(*outputs), name


def test_the_weights_are_random_but_fixed():
    for name, make in TINY_MODELS.items():
        assert make().digest() == make().digest(), name
        if make().graph.initializers and name != "bare":
            assert make().digest() != make(seed=1).digest(), name


def test_the_structure_of_each_network_is_found(models):
    found = {name: find_structure(model.ir) for name, model in models.items()}
    heads = {name: [(one.heads, one.kv_heads, one.causal) for one in each.attentions] for name, each in found.items()}
    assert heads["bert"] == heads["vit"] == [(2, 2, False)] * 2
    assert heads["gpt"] == [(2, 2, True)] * 2
    assert heads["llama"] == [(4, 2, True)] * 2
    assert [each.gated for each in found["llama"].mlps] == [True, True]
    assert {name: len(found[name].blocks) for name in ("cnn", "bert", "vit", "gpt", "llama")} == {
        "cnn": 1,
        "bert": 2,
        "vit": 2,
        "gpt": 2,
        "llama": 2,
    }
    assert [each.depthwise for each in found["cnn"].convolutions].count(True) == 1
    assert len(found["quantized"].quantized_products) == 2
    assert found["gpt"].heads[0].tied
    assert not found["llama"].heads[0].tied


def test_no_size_but_channels_is_fixed_in_the_dynamic_one(models):
    (image,) = models["dynamic"].graph.inputs
    session = ReferenceSession(models["dynamic"].ir)
    assert [isinstance(size, int) for size in image.shape] == [False, True, False, False]
    for height, width in ((5, 7), (8, 4)):
        output = session.run({"image": np.zeros((3, 3, height, width), np.float32)})["y"]
        assert output.shape == (3, height * width, 8)


def test_both_branches_run(models):
    session, model = ReferenceSession(models["branches"].ir), models["branches"]
    (branch,) = [node for node in model.graph if node.op_type == "If"]
    assert len(list(model.graph.subgraphs())) == 2
    assert branch.name == "branch"
    ones = np.ones((1, 16), np.float32)
    assert not np.allclose(session.run({"x": ones})["y"], -session.run({"x": -ones})["y"])


def test_the_weights_of_the_external_one_stand_in_a_file_of_their_own(tmp_path):
    model = tiny_external(tmp_path)
    assert (tmp_path / "tiny_external" / "model.onnx.data").stat().st_size >= 32 * 64 * 4
    large = model.graph.initializers["up.weight"].const_value
    assert not isinstance(large, ir.TensorProtoTensor)
    assert tuple(large.shape.numpy()) == (32, 64)


def test_making_them_imports_no_torch():
    code = "import sys; from edgesmith.testing import TINY_MODELS; [make() for make in TINY_MODELS.values()];"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_data_has_labels_for_each_sample_or_token(models):
    (batch,) = tiny_data(models["bert"], samples=5).batches(5)
    assert batch.labels.shape == (5,)
    assert batch.labels.min() >= 0 and batch.labels.max() < 4
    (batch,) = tiny_data(models["gpt"], samples=5).batches(5)
    assert batch.labels.shape == batch.inputs["input_ids"].shape == (5, 8)
