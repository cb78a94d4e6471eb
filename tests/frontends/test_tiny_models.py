"""The fixtures are what their descriptions say: they run at other sizes than the exported ones, and are normal."""

import numpy as np
import pytest

from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.normalize import normalize
from edgesmith.model import Model
from edgesmith.serialization import to_bytes

NAMES = ["tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn"]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_runs_at_other_batch_and_sequence_sizes(model: Model) -> None:
    session = ReferenceSession(model.ir)
    for batch, length in ((1, 3), (5, 9)):
        inputs = {}
        for value in model.graph.inputs:
            assert value.name is not None and value.shape is not None and value.dtype is not None
            sizes = {"batch": batch, "sequence": length}
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
            inputs[value.name] = np.ones(shape, value.dtype.numpy())
        for output in session.run(inputs).values():
            assert output.shape[0] == batch
            assert np.isfinite(output).all()
            assert output.std() > 0


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_is_normalized_already(model: Model) -> None:
    assert to_bytes(normalize(model.ir)) == to_bytes(model.ir)


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_every_large_weight_keeps_its_name_in_the_module(model: Model) -> None:
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.size >= 256:
            assert "." in name, f"{name} {value.shape}"


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_nothing_of_the_exporting_machine_is_inside(model: Model) -> None:
    content = to_bytes(model.ir)
    assert b"site-packages" not in content
    assert b'File "' not in content
