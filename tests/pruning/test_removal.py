"""Cutting units out of whole models equals zeroing what their consumers read."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_residuals import residual_networks
from random_transformers import transformers

from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends.normalize import normalize
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.context import Notes
from edgesmith.testing.builder import GraphBuilder
from edgesmith_pruning.finding.products import inner_products
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.removal import Decision, remove
from graph.attention_builder import HEADS, Style, build
from graph.coupling_checks import with_random_weights
from graph.coupling_networks import networks
from graph.structure_networks import export, export_mobilenet_v2

FAMILIES = ("tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn")
EXPORTS = ("bert", "distilbert", "vit", "dinov2", "dinov2_gated", "gpt2", "llama")
"""Networks of the core's structure tests as torch's exporter writes them; three heads, or six on two of keys."""
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


@pytest.mark.parametrize("name", EXPORTS)
def test_slicing_equals_masking_on_exports_that_nothing_cleaned(name):
    model = export(name, "eager")
    units = find_units(model)
    assert {unit.kind for unit in units} >= {"heads", "value-channels", "channels"}
    assert [unit.size for unit in units if unit.kind == "heads"] == [2 if name == "llama" else 3] * 2
    assert_all_cut_at_once(model, units)


def test_slicing_equals_masking_on_mobilenet():
    model = normalize(export_mobilenet_v2())
    units = find_units(model)
    # The stem, the hidden layers of 16 blocks, the last layer, and what the 17 projections of 7 widths add up to.
    assert [unit.size for unit in units][:4] == [32, 16, 96, 24]
    assert len(units) == 1 + 16 + 1 + 7
    assert_all_cut_at_once(with_random_weights(model), units)


def assert_all_cut_at_once(model: ir.Model, units) -> None:
    """A third of each unit goes; that is no small change, and slicing it is masking it."""
    generator = np.random.default_rng(0)
    decisions = [chosen(unit, generator, max(1, unit.group_size // 3)) for unit in units]
    inputs, expected = sample_inputs(model), masked(model, decisions)
    for before, after in zip(outputs(model, inputs), outputs(expected, inputs), strict=True):
        assert np.abs(before - after).max() > 1e-2 * np.abs(before).max()
    assert_equal(remove(model, decisions), expected, inputs)


WAYS = st.builds(
    Style,
    projections=st.sampled_from(["separate", "split", "stacked", "interleaved"]),
    linear=st.sampled_from(["matmul", "transposed", "gemm"]),
    scale=st.sampled_from(["query", "both", "scores", "none"]),
    mask=st.sampled_from(["none", "add", "where", "constant", "causal"]),
    product=st.sampled_from(["four", "three", "einsum"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    dynamic=st.booleans(),
    norm=st.sampled_from(["pre", "post"]),
).filter(lambda style: style.kv_heads == HEADS or style.projections in ("separate", "split"))


@given(WAYS)
@example(Style(product="three"))
@example(Style(mask="constant"))
@example(Style(projections="interleaved"))
@example(Style(projections="stacked", product="einsum"))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_slicing_equals_masking_however_attention_is_written(style):
    # Between two blocks ONNX Runtime shares memory by the lengths that the graph promises.
    blocks = 2 if style.product == "three" else 1
    model = normalize(build(style, blocks))
    units = find_units(model)
    kinds = [unit.kind for unit in units]
    assert kinds.count("channels") == blocks
    # One group of keys for all is no heads to choose from, but its query heads are.
    assert "heads" in kinds
    # Where one tensor holds queries, keys and values side by side, channels of values cannot go without those.
    assert ("value-channels" in kinds) is (style.projections in ("separate", "split"))
    inputs = sample_inputs(model)
    for unit in units:
        decision = chosen(unit, np.random.default_rng(0), max(1, unit.group_size // 3))
        if unit.group_size > 1:
            assert_equal(remove(model, [decision]), masked(model, [decision]), inputs)


@pytest.mark.parametrize("rank", [3, 4])
def test_channels_that_queries_and_keys_are_summed_over_stay(rank):
    heads, width = 2, 4
    builder = GraphBuilder(x=(1, 3, heads * width), opset=23)
    made = builder.add("MatMul", "x", builder.weight("qkv", heads * width, 3 * heads * width))
    apart = builder.add("Reshape", made, builder.integers(1, 3, heads, 3, width))
    parts = builder.add_many("Split", apart, outputs=3, axis=3, num_outputs=3)
    parts = [builder.add("Squeeze", part, builder.integers(3)) for part in parts]
    if rank == 3:
        parts = [builder.add("Reshape", part, builder.integers(1, 3, heads * width)) for part in parts]
        mixed = builder.add("Attention", *parts, q_num_heads=heads, kv_num_heads=heads, scale=0.5)
    else:
        parts = [builder.add("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]
        mixed = builder.add("Transpose", builder.add("Attention", *parts, scale=0.5), perm=[0, 2, 1, 3])
        mixed = builder.add("Reshape", mixed, builder.integers(1, 3, heads * width))
    model, notes = builder.finish(builder.linear(mixed, "out", heads * width, 5)), Notes()
    units = find_units(model, notes)
    assert [(unit.kind, unit.size) for unit in units] == [("heads", heads)]
    assert any("sums over these channels too" in reason for reason in notes.skipped.values())
    decision = Decision(units[0], (1,))
    inputs = sample_inputs(model)
    assert_equal(remove(model, [decision]), masked(model, [decision]), inputs)


@pytest.mark.parametrize("operators", [("Transpose",), ("Cast",), ("Cast", "Transpose")])
def test_a_weight_behind_other_operators_is_no_activation(operators):
    builder = GraphBuilder(x=(1, 3, 8))

    def weight(name, *shape):
        value = builder.weight(name, *(shape[::-1] if "Transpose" in operators else shape))
        for operator in operators:
            value = builder.add(operator, value, **({"to": 1} if operator == "Cast" else {"perm": [1, 0]}))
        return value

    hidden = builder.add("Relu", builder.add("MatMul", "x", weight("up", 8, 12)))
    # The layer beside it could be refitted, but this one would lose its channels all the same.
    beside = builder.linear(hidden, "beside", 12, 5)
    model, notes = builder.finish(builder.add("MatMul", hidden, weight("down", 12, 5)), beside), Notes()
    assert inner_products(model.graph) == {}
    assert find_units(model, notes) == ()
    reasons = set(notes.skipped.values())
    assert not any("product of two activations" in reason for reason in reasons)
    assert f"{operators[0]} stands between a weight that sums these channels and its layer" in reasons


@given(st.one_of(networks(), transformers(), residual_networks()), st.integers(0, 1000))
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
