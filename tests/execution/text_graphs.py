"""Small graphs written as text, for the tests of execution."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from edgesmith.execution.dtypes import from_array, to_array
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.torch_graph import TorchGraph


def parse(body: str, *, opset: int = 20, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """Return a model from the text of its graph; names without a producer get the arrays in `weights`."""
    domains = f'"" : {opset}, "local" : 1, "com.microsoft" : 1'
    model = ir.from_onnx_text(f"<ir_version: 10, opset_import: [{domains}]>\n{body}")
    add_weights(model, weights or {})
    return model


def add_weights(model: ir.Model, weights: Mapping[str, np.ndarray]) -> None:
    for name, array in weights.items():
        values = {
            value
            for node in model.graph.all_nodes()
            for value in node.inputs
            if value is not None and value.name == name
        }
        first, *others = values
        for other in others:
            other.replace_all_uses_with(first)
        first.const_value = ir.tensor(array, name=name)
        first.shape, first.dtype = first.const_value.shape, first.const_value.dtype
        model.graph.register_initializer(first)


def tensors(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: from_array(np.asarray(array)) for name, array in inputs.items()}


def run_torch(model: ir.Model, inputs: Mapping[str, np.ndarray], taps: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = TorchGraph(model)(tensors(inputs), taps)
    return {name: to_array(value) for name, value in found.items()}


def assert_same_as_reference(
    model: ir.Model, inputs: Mapping[str, np.ndarray], *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Check that TorchGraph and ONNX Runtime agree on every output."""
    expected = ReferenceSession(model).run(inputs)
    found = run_torch(model, inputs)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_allclose(
            found[name].astype(np.float64), array.astype(np.float64), rtol=rtol, atol=atol, err_msg=name
        )
