"""Each outer atom may lose inner atoms of its own choice, where that is said; then removal equals zeroing."""

import numpy as np
import onnx_ir as ir
import pytest
from coupling_checks import KEPT, distance, places, run, samples, with_random_weights
from coupling_networks import SIDE, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.graph.couplings import Nesting, Slot, find_couplings, find_nestings, remove_channels, remove_within
from edgesmith.graph.edit import GraphEditor
from edgesmith.model import Model
from edgesmith.testing.builder import GraphBuilder

HEADS, GROUPS, WIDTH, BLOCKS = 4, 2, 8, 2
Choices = list[list[int]]


def nestings(model: ir.Model) -> tuple[Nesting, ...]:
    return find_nestings(model, find_couplings(model))


def random_choices(nesting: Nesting, seed: int = 0) -> Choices:
    generator = np.random.default_rng(seed)
    count = generator.integers(1, nesting.inner.size)
    return [generator.choice(nesting.inner.size, count, replace=False).tolist() for _ in range(nesting.outer.size)]


def silenced(model: ir.Model, nesting: Nesting, choices: Choices) -> ir.Model:
    """Return the model with each chosen inner atom zero within its outer atom."""
    result = model.clone()
    editor = GraphEditor(result.graph)
    readers = {node.outputs[0].name: node for node in result.graph}
    for slot in nesting.inner.slots:
        node = readers[slot.reader]
        if (node.op_type, slot.port) not in KEPT:
            tensor = node.inputs[slot.port].const_value
            array = silence(tensor.numpy().copy(), slot, nesting, choices)
            node.replace_input_with(slot.port, editor.add_initializer(slot.value, array, tensor.dtype))
    return result


def silence(array: NDArray, slot: Slot, nesting: Nesting, choices: Choices) -> NDArray:
    outer = next(each for each in nesting.outer.slots if each.site == slot.site)
    for atom, choice in enumerate(choices):
        for inner in choice:
            if outer.axis == slot.axis:
                array[(slice(None),) * slot.axis + (nesting.cell(slot, atom, inner),)] = 0
            else:
                where = [slice(None)] * array.ndim
                where[slot.axis] = list(slot.indices[inner])
                for position in outer.indices[atom]:
                    where[outer.axis] = position
                    array[tuple(where)] = 0
    return array


def assert_choices_are_zeroing(model: ir.Model, inputs: dict[str, NDArray]) -> tuple[Nesting, ...]:
    found = nestings(model)
    for number, nesting in enumerate(found):
        choices = random_choices(nesting, number)
        smaller, reference = remove_within(model, nesting, choices), silenced(model, nesting, choices)
        np.testing.assert_allclose(run(smaller, inputs)[0], run(reference, inputs)[0], atol=1e-5, rtol=1e-5)
        assert distance(run(reference, inputs), run(model, inputs)) > 1e-4
        uniform = remove_channels(model, nesting.inner, choices[0])
        shapes = [{name: value.shape for name, value in each.graph.initializers.items()} for each in (smaller, uniform)]
        assert {name: tuple(shape) for name, shape in shapes[0].items()} == {n: tuple(s) for n, s in shapes[1].items()}
    return found


def text(batch: int, length: int, model: ir.Model) -> dict[str, NDArray]:
    ids = np.random.default_rng(0).integers(0, 100, (batch, length))
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {value.name: made[value.name] for value in model.graph.inputs}


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_each_head_may_lose_its_own_channels(name: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(name)
    loud = with_random_weights(model.ir)
    found = assert_choices_are_zeroing(loud, text(2, 6, loud))
    assert [(nesting.outer.size, nesting.inner.size) for nesting in found] == [(HEADS, WIDTH)] * 2 * BLOCKS


def test_groups_may_lose_their_own_value_channels_and_queries_but_rotary_pairs_are_common(tiny_llama: Model):
    loud = with_random_weights(tiny_llama.ir)
    found = assert_choices_are_zeroing(loud, text(2, 6, loud))
    sizes = [(nesting.outer.size, nesting.inner.size) for nesting in found]
    assert sizes == [(GROUPS, HEADS // GROUPS), (GROUPS, WIDTH)] * BLOCKS


def grouped_network() -> ir.Model:
    builder = GraphBuilder(x=("n", 3, 6, 6))
    inner = builder.add("Relu", builder.conv("x", "in", 3, 12))
    grouped = builder.conv(inner, "grouped", 12, 8, group=4, kernel=3)
    return builder.finish(builder.conv(grouped, "out", 8, 3))


def test_each_group_of_a_convolution_may_lose_its_own_inputs_and_outputs():
    model = grouped_network()
    found = assert_choices_are_zeroing(model, samples((2, 3, 6, 6))[0])
    assert [(nesting.outer.size, nesting.inner.size) for nesting in found] == [(4, 3), (4, 2)]
    assert ("grouped.weight", 1) in places(found[0].inner)


def test_a_scale_with_a_row_for_each_head_is_cut_row_by_row():
    builder = GraphBuilder(x=("n", "s", 6))
    wide = builder.add("Einsum", "x", builder.weight("in", 6, 12), equation="nsc,cd->nsd")
    heads = builder.add("Reshape", wide, builder.integers(0, 0, 4, 3))
    scaled = builder.add("Mul", heads, builder.weight("scale", 4, 3))
    model = builder.finish(builder.linear(builder.add("Reshape", scaled, builder.integers(0, 0, -1)), "out", 12, 5))
    (nesting,) = assert_choices_are_zeroing(model, samples((2, 3, 6))[0])
    smaller = remove_within(model, nesting, [[0], [1], [2], [0]])
    kept = [[1, 2], [0, 2], [0, 1], [1, 2]]
    before, after = (each.graph.initializers["scale"].const_value.numpy() for each in (model, smaller))
    np.testing.assert_array_equal(after, [row[keep] for row, keep in zip(before, kept, strict=True)])


@pytest.mark.parametrize("obstacle", ["shared scale", "slice", "mixed heads", "inner first"])
def test_no_free_choice_where_outer_atoms_meet(obstacle: str):
    builder = GraphBuilder(x=("n", 5, 6))
    wide = builder.linear("x", "in", 6, 12)
    if obstacle == "inner first":
        heads = builder.add("Transpose", builder.add("Reshape", wide, builder.integers(0, 0, 3, 4)), perm=[0, 1, 3, 2])
    else:
        heads = builder.add("Reshape", wide, builder.integers(0, 0, 4, 3))
    if obstacle == "shared scale":
        heads = builder.add("Mul", heads, builder.weight("scale", 3))
    elif obstacle == "slice":
        back = [builder.integers(number) for number in (-1, -9, 3, -1)]
        heads = builder.add("Add", heads, builder.add("Slice", heads, *back))
    elif obstacle == "mixed heads":
        mixing = builder.add("MatMul", heads, builder.add("Transpose", heads, perm=[0, 1, 3, 2]))
        heads = builder.add("MatMul", mixing, heads)
    model = builder.finish(builder.linear(builder.add("Reshape", heads, builder.integers(0, 0, 12)), "out", 12, 5))
    found = nestings(model)
    sizes = sorted(coupling.size for coupling in find_couplings(model) if coupling.removable)
    assert sizes == ([2, 4] if obstacle == "slice" else [3, 4])
    assert all(nesting.outer.size != 4 for nesting in found)


@given(networks(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_choices_in_random_networks_equal_zeroing(model: ir.Model, seed: int):
    inputs = samples((2, 4, SIDE, SIDE))[0]
    for nesting in nestings(model):
        choices = random_choices(nesting, seed)
        expected = run(silenced(model, nesting, choices), inputs)
        scale = max(1.0, float(np.abs(expected[0]).max()))
        assert distance(run(remove_within(model, nesting, choices), inputs), expected) < 1e-5 * scale


def test_bad_choices_are_refused():
    model = grouped_network()
    nesting = nestings(model)[0]
    for choices in ([[0]] * 3, [[0], [0], [0], [0, 1]]):
        with pytest.raises(ModelError, match="choices of"):
            remove_within(model, nesting, choices)
    with pytest.raises(ModelError, match="no atom 3"):
        remove_within(model, nesting, [[3]] * 4)
    with pytest.raises(ModelError, match="nothing would be left"):
        remove_within(model, nesting, [[0, 1, 2]] * 4)
    smaller = remove_within(model, nesting, [[0], [1], [2], [0]])
    with pytest.raises(ModelError, match="the coupling says"):
        remove_within(smaller, nesting, [[0]] * 4)
