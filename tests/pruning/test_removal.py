"""Cutting units out of whole models equals zeroing what their consumers read."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_transformers import transformers

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.edit import GraphEditor
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.removal import Decision, remove
from graph.coupling_networks import networks

FAMILIES = ("tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn")
KINDS_OF_ATTENTION = ("heads", "value-channels")
KINDS = {
    "tiny_bert": {"heads", "value-channels", "channels"},
    "tiny_llama": {"heads", "query-heads", "value-channels", "channels"},
    "tiny_cnn": {"convolution-channels"},
}


def masked(model: ir.Model, decisions: list[Decision]) -> ir.Model:
    """Return the model with zeros where consumers read what the decisions remove."""
    result = model.clone()
    editor = GraphEditor(result.graph)
    readers = {node.outputs[0].name: node for node in result.graph}
    for decision in decisions:
        for place in decision.unit.consumers:
            node = readers[place.reader]
            array = node.inputs[place.port].const_value.numpy().copy()
            gone = [position for atom in decision.removed for position in place.positions[atom]]
            array[(slice(None),) * place.axis + (gone,)] = 0
            node.replace_input_with(place.port, editor.add_initializer(place.weight, array))
    return result


def chosen(unit, generator, count) -> Decision:
    groups = [generator.choice(unit.group_size, count, replace=False) + g * unit.group_size for g in range(unit.groups)]
    return Decision(unit, tuple(sorted(np.concatenate(groups).tolist())))


def outputs(model: ir.Model, inputs) -> list[np.ndarray]:
    return list(ReferenceSession(model).run(inputs).values())


@pytest.mark.parametrize("name", FAMILIES)
def test_slicing_equals_masking(name, request):
    model = request.getfixturevalue(name).ir
    units = find_units(model)
    assert {unit.kind for unit in units} >= KINDS.get(name, {"heads", "channels"})
    generator = np.random.default_rng(0)
    inputs = sample_inputs(model)
    before = outputs(model, inputs)
    for unit in units:
        decision = chosen(unit, generator, max(1, unit.group_size // 3))
        expected = outputs(masked(model, [decision]), inputs)
        for ours, theirs in zip(outputs(remove(model, [decision]), inputs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)
        assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(expected, before, strict=True)), unit.key


@pytest.mark.parametrize("name", FAMILIES)
def test_all_units_are_cut_at_once(name, request):
    model = request.getfixturevalue(name).ir
    generator = np.random.default_rng(1)
    decisions = [chosen(unit, generator, unit.group_size // 4) for unit in find_units(model)]
    inputs = sample_inputs(model)
    expected = outputs(masked(model, decisions), inputs)
    for ours, theirs in zip(outputs(remove(model, decisions), inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)


@given(st.one_of(networks(), transformers()), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_slicing_equals_masking_on_random_networks(model, seed):
    generator = np.random.default_rng(seed)
    inputs = sample_inputs(model)
    units = [unit for unit in find_units(model) if unit.group_size > 1]
    for unit in units:
        decision = chosen(unit, generator, int(generator.integers(1, unit.group_size)))
        assert_equal(remove(model, [decision]), masked(model, [decision]), inputs)
    try:
        all_at_once = [chosen(unit, generator, 1) for unit in units]
        smaller = remove(model, all_at_once)
    except ModelError as error:
        # Several units may share an axis and together leave nothing of it.
        assert "nothing would be left" in str(error) or "two removals meet" in str(error)
        return
    assert_equal(smaller, masked(model, all_at_once), inputs)


def assert_equal(ours, theirs, inputs) -> None:
    """Outputs are sums of numbers near 1 in another order: 1e-6 of their size, and of what cancelled in them."""
    for left, right in zip(outputs(ours, inputs), outputs(theirs, inputs), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(right).max())))


def test_values_of_a_single_head_are_no_heads(tiny_bert):
    heads, values = ([unit for unit in find_units(tiny_bert.ir) if unit.kind == kind] for kind in KINDS_OF_ATTENTION)
    alone = remove(tiny_bert.ir, [Decision(unit, tuple(range(1, unit.size))) for unit in heads])
    kinds = [unit.kind for unit in find_units(alone) if unit.kind in KINDS_OF_ATTENTION]
    assert kinds == ["value-channels"] * len(values)
