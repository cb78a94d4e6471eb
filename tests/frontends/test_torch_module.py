"""Modules with example inputs: names, dynamic axes, equality with the module, and modules left as they were."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.errors import ModelError, UnsupportedOperatorError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.torch_module import TorchModuleFrontend

FRONTEND = TorchModuleFrontend()


class TwoInputs(nn.Module):
    """Two named inputs, two named outputs, a frozen part in evaluation mode, and one input handed through."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, left: Any, right: Any) -> dict[str, Any]:
        hidden = self.drop(self.norm(self.first(left)))
        return {"scores": hidden + right, "pair": (hidden, left)}


@pytest.fixture(scope="module")
def module() -> TwoInputs:
    torch.manual_seed(0)
    return TwoInputs().train()


def shapes(values: Any) -> dict[str, str]:
    return {value.name: str(value.shape) for value in values}


def test_names_axes_numbers_and_training_state(module: TwoInputs) -> None:
    module.norm.eval()
    weights = copy.deepcopy(module.state_dict())
    inputs = {"left": torch.randn(2, 4), "right": torch.randn(2, 3)}
    model = FRONTEND.load(module, example_inputs=inputs)
    assert shapes(model.graph.inputs) == {"left": "[batch,4]", "right": "[batch,3]"}
    assert shapes(model.graph.outputs) == {"scores": "[batch,3]", "pair_0": "[batch,3]", "pair_1": "[batch,4]"}
    assert (module.training, module.drop.training, module.norm.training) == (True, True, False)
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())

    left, right = torch.randn(7, 4), torch.randn(7, 3)
    with torch.no_grad():
        expected = copy.deepcopy(module).eval()(left, right)
    found = ReferenceSession(model.ir).run({"left": left.numpy(), "right": right.numpy()})
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["pair_1"], left)

    before = model.digest()
    with torch.no_grad():
        module.first.weight.add_(1)
    assert model.digest() == before, "the model shares memory with the module"
    with torch.no_grad():
        module.first.weight.sub_(1)
    assert model.provenance.source.endswith("TwoInputs")


@pytest.mark.parametrize("form", ["tensor", "tuple", "array"])
def test_positional_examples_and_a_single_example(form: str) -> None:
    linear = nn.Linear(4, 3)
    tensor = torch.randn(1, 4)
    model = FRONTEND.load(linear, example_inputs={"tensor": tensor, "tuple": (tensor,), "array": tensor.numpy()}[form])
    assert shapes(model.graph.inputs) == {"input": "[batch,4]"}
    assert shapes(model.graph.outputs) == {"output": "[batch,3]"}


def test_chosen_dynamic_axes() -> None:
    inputs = {"input": torch.randn(2, 5, 4)}
    model = FRONTEND.load(nn.Linear(4, 3), example_inputs=inputs, dynamic_axes={"input": {1: "length"}})
    assert shapes(model.graph.inputs) == {"input": "[2,length,4]"}
    assert shapes(FRONTEND.load(nn.Linear(4, 3), example_inputs=inputs, dynamic_axes={}).graph.inputs) == {
        "input": "[2,5,4]"
    }
    with pytest.raises(ModelError, match="dynamic axes are given for"):
        FRONTEND.load(nn.Linear(4, 3), example_inputs=inputs, dynamic_axes={"imput": {0: "batch"}})


def test_a_batch_size_that_cannot_vary_is_fixed_and_said() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(2, 8) * 2

    model = FRONTEND.load(Fixed(), example_inputs=torch.randn(2, 2, 4))
    assert shapes(model.graph.inputs) == {"x": "[2,2,4]"}
    assert "batch size is fixed" in model.provenance.remarks[0]


def test_the_first_unsupported_operator_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    class Svd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[1]

    with pytest.raises(UnsupportedOperatorError, match=r"`Svd` uses the operator `aten\._linalg_svd`"):
        FRONTEND.load(Svd(), example_inputs=torch.randn(2, 4, 4))
    assert capfd.readouterr() == ("", "")


def test_control_flow_on_values_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ModelError, match="`Branch` cannot be traced"):
        FRONTEND.load(Branch(), example_inputs=torch.randn(2, 4))
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_differs_from_the_module_is_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Any) -> Any:
            return nn.functional.dropout(x, training=True)

    with pytest.raises(ModelError, match="differs from the module"):
        FRONTEND.load(Noisy(), example_inputs=torch.randn(2, 64))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, "there are none"),
        ((), "there are none"),
        ("text", "`input_0` is a str"),
        ((torch.randn(2, 4), 3), "`input_1` is a int"),
        (torch.randn(2, 5), "it raises on"),
        ((torch.randn(2, 4), torch.randn(2, 4)), "it raises on"),
    ],
)
def test_examples_that_do_not_fit_are_refused(inputs: object, said: str) -> None:
    with pytest.raises(ModelError, match="example inputs") as caught:
        FRONTEND.load(nn.Linear(4, 3), example_inputs=inputs)
    assert said in str(caught.value)


def test_weights_that_are_not_numbers_are_refused() -> None:
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight[1, 2] = torch.nan
    with pytest.raises(ModelError, match=r"`weight`.*holds NaN at"):
        FRONTEND.load(linear, example_inputs=torch.randn(2, 4))


def test_outputs_that_are_no_tensors_are_refused() -> None:
    class Talkative(nn.Module):
        def forward(self, x: Any) -> Any:
            return x, "done"

    with pytest.raises(ModelError, match="returns a str"):
        FRONTEND.load(Talkative(), example_inputs=torch.randn(2, 4))


def test_only_modules_are_accepted() -> None:
    assert FRONTEND.accepts(nn.Linear(1, 1))
    assert not FRONTEND.accepts("model.onnx")
    assert not FRONTEND.accepts(nn.Linear)
    assert not FRONTEND.accepts("model.pth.onnx")


@pytest.mark.parametrize("name", ["model.pt", "missing/model.pth"])
def test_a_weight_file_is_refused_with_the_way_to_go(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"not read")
    assert FRONTEND.accepts(tmp_path / name)
    for ask in (FRONTEND.load, FRONTEND.fingerprint):
        with pytest.raises(ModelError, match=r"not an nn\.Module but a file") as caught:
            ask(tmp_path / name)
        assert "edgesmith.compile(module, example_inputs" in caught.value.fix


def test_the_fingerprint_follows_weights_code_and_shapes() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3)
    same = copy.deepcopy(linear)
    assert FRONTEND.fingerprint(linear) == FRONTEND.fingerprint(same)
    with torch.no_grad():
        same.bias[0] += 1e-3
    others = [
        FRONTEND.fingerprint(linear),
        FRONTEND.fingerprint(same),
        FRONTEND.fingerprint(nn.Sequential(linear)),
        FRONTEND.fingerprint(linear, example_inputs=torch.randn(2, 4)),
        FRONTEND.fingerprint(linear, example_inputs=torch.randn(3, 4)),
    ]
    assert len(set(others)) == len(others)
