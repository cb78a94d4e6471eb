"""Couplings of exported transformers: heads, their widths, MLPs and the residual stream; removal equals zeroing."""

import numpy as np
import onnx_ir as ir
import pytest
from coupling_checks import (
    assert_removal_is_zeroing,
    distance,
    only,
    run,
    samples,
    with_random_weights,
    zeroed,
)
from numpy.typing import NDArray

from edgesmith.graph.couplings import Coupling, find_couplings, remove_channels, remove_many
from edgesmith.model import Model
from edgesmith.testing.builder import GraphBuilder

BLOCKS = 2
HEADS, GROUPS, WIDTH, STREAM, INNER = 4, 2, 8, 32, 64
ENCODERS = ["tiny_bert", "tiny_distilbert", "tiny_vit", "tiny_dinov2", "tiny_gpt2"]


def inputs_of(model: ir.Model, *, batch: int, length: int) -> dict[str, NDArray]:
    generator = np.random.default_rng(batch)
    made = {}
    for value in model.graph.inputs:
        dims = [dim if isinstance(dim, int) else (batch, length)[axis] for axis, dim in enumerate(value.shape.dims)]
        if value.dtype == ir.DataType.FLOAT:
            made[value.name] = generator.standard_normal(dims).astype(np.float32)
        elif value.name == "attention_mask":
            made[value.name] = np.ones(dims, np.int64)
            made[value.name][0, -2:] = 0
        else:
            made[value.name] = generator.integers(0, 2 if "type" in value.name else 100, dims)
    return made


def both_sizes(model: ir.Model) -> list[dict[str, NDArray]]:
    return [inputs_of(model, batch=2, length=7), inputs_of(model, batch=3, length=5)]


def attention_and_mlp(couplings: tuple[Coupling, ...]) -> list[Coupling]:
    return [coupling for coupling in couplings if coupling.removable and coupling.size != STREAM]


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_widths_and_mlps_are_atoms(name: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(name)
    found = attention_and_mlp(find_couplings(model.ir))
    inner = 4 * STREAM if name == "tiny_gpt2" else INNER
    assert [coupling.size for coupling in found] == [HEADS, WIDTH, WIDTH, inner] * BLOCKS
    head, scores, values, mlp = found[:4]
    heads = [slot for slot in head.slots if slot.role == "consumes"]
    assert [slot.indices for slot in heads] == [tuple(tuple(range(h * WIDTH, (h + 1) * WIDTH)) for h in range(HEADS))]
    assert not scores.with_role("consumes"), "queries and keys meet each other, no weight"
    assert values.with_role("consumes")[0].indices[1] == tuple(range(1, STREAM, WIDTH))
    assert mlp.with_role("consumes")[0].length == inner


@pytest.mark.parametrize("name", [*ENCODERS, "tiny_llama", "tiny_cnn"])
def test_removal_equals_zeroing(name: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(name)
    inputs = both_sizes(model.ir) if name != "tiny_cnn" else samples((1, 3, 16, 16), (2, 3, 16, 16), name="image")
    loud = with_random_weights(model.ir)
    assert len(assert_removal_is_zeroing(loud, inputs, trials=1)) >= 3


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_vit", "tiny_gpt2"])
def test_silent_values_alone_equal_removal(name: str, request: pytest.FixtureRequest):
    """Heads and value channels vanish with the rows that make them: the output projection need not be touched."""
    model: Model = request.getfixturevalue(name)
    loud = with_random_weights(model.ir)
    for coupling in attention_and_mlp(find_couplings(loud)):
        if coupling.size == WIDTH:
            smaller = remove_channels(loud, coupling, [0, 5])
            for inputs in both_sizes(loud):
                silent = zeroed(loud, coupling, [0, 5], consumers=False)
                assert distance(run(smaller, inputs), run(silent, inputs)) < 1e-5


@pytest.mark.parametrize("name", [*ENCODERS, "tiny_llama"])
def test_the_residual_stream_is_held_by_its_normalisation(name: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(name)
    stream = max(find_couplings(model.ir), key=lambda coupling: len(coupling.slots))
    assert stream.size == STREAM and not stream.removable
    kinds = {obstacle.operator for obstacle in stream.obstacles if obstacle.kind == "exactness"}
    assert kinds & {"LayerNormalization", "ReduceMean", "RMSNormalization"}


def test_narrower_residual_streams_run(tiny_gpt2: Model):
    stream = max(find_couplings(tiny_gpt2.ir), key=lambda coupling: len(coupling.slots))
    smaller = remove_channels(tiny_gpt2.ir, stream, range(0, STREAM, 3), allow_inexact=True)
    for inputs in both_sizes(tiny_gpt2.ir):
        before, after = run(tiny_gpt2.ir, inputs), run(smaller, inputs)
        assert [each.shape for each in before] == [each.shape for each in after]


def test_grouped_queries_leave_with_their_group_or_evenly(tiny_llama: Model):
    found = [coupling for coupling in find_couplings(tiny_llama.ir) if coupling.removable]
    rotary = only(found, lambda coupling: len(coupling.with_role("produces")) == 2 * BLOCKS)
    assert rotary.size == WIDTH // 2, "a rotation mixes two channels, and all blocks share its frequencies"
    rest = [coupling for coupling in found if coupling is not rotary]
    assert [coupling.size for coupling in rest] == [GROUPS, HEADS // GROUPS, WIDTH, INNER] * BLOCKS
    group, share, values, mlp = rest[:4]
    assert [len(slot.indices[0]) for slot in group.slots] == [2 * WIDTH, WIDTH, WIDTH, 2 * WIDTH]
    assert [slot.role for slot in group.slots] == ["produces"] * 3 + ["consumes"]
    assert [len(slot.indices[0]) for slot in share.slots] == [2 * WIDTH, 2 * WIDTH]
    assert [len(slot.indices[0]) for slot in values.slots] == [GROUPS, HEADS]
    assert [slot.role for slot in mlp.slots] == ["produces", "produces", "consumes"]


def test_everything_shrinks_in_one_call(tiny_llama: Model):
    loud = with_random_weights(tiny_llama.ir)
    removals = [(coupling, [coupling.size - 1]) for coupling in find_couplings(loud) if coupling.removable]
    smaller, reference = remove_many(loud, removals), loud
    for coupling, atoms in removals:
        reference = zeroed(reference, coupling, atoms)
    for inputs in both_sizes(loud):
        # Scores of removed rotary pairs and heads are zero in the reference, so both sides see the same softmax.
        assert distance(run(smaller, inputs), run(reference, inputs)) < 1e-5


def test_one_product_for_queries_keys_and_values_with_an_axis_for_the_three():
    builder = GraphBuilder(x=("n", 5, 12))
    fused = builder.linear("x", "qkv", 12, 3 * 2 * 4)
    split = builder.add("Reshape", fused, builder.integers(-1, 5, 3, 2, 4))
    parts = builder.add("Transpose", split, perm=[2, 0, 3, 1, 4])
    q, k, v = (builder.add("Gather", parts, builder.constant(f"i{i}", np.int64(i)), axis=0) for i in range(3))
    scores = builder.add("Softmax", builder.add("MatMul", q, builder.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = builder.add("Transpose", builder.add("MatMul", scores, v), perm=[0, 2, 1, 3])
    joined = builder.add("Reshape", mixed, builder.integers(0, 0, -1))
    model = builder.finish(builder.linear(joined, "out", 8, 12))
    removable = assert_removal_is_zeroing(model, samples((1, 5, 12), (3, 5, 12)))
    assert [coupling.size for coupling in removable] == [2, 4]
    assert [len(slot.indices[0]) for slot in removable[0].slots] == [12, 12, 4]
    held = [coupling for coupling in find_couplings(model) if coupling.size == 3]
    assert all(not coupling.sliceable for coupling in held)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("fused_heads", [True, False])
def test_the_attention_operator(groups: int, fused_heads: bool):
    builder = GraphBuilder(x=("n", 5, 12), opset=23)
    ports = []
    for name, heads in (("q", 4), ("k", groups), ("v", groups)):
        port = builder.linear("x", name, 12, heads * 3)
        if not fused_heads:
            split = builder.add("Reshape", port, builder.integers(0, 0, heads, 3))
            port = builder.add("Transpose", split, perm=[0, 2, 1, 3])
        ports.append(port)
    heads = {"q_num_heads": 4, "kv_num_heads": groups} if fused_heads else {}
    mixed = builder.add("Attention", *ports, scale=0.5, **heads)
    if not fused_heads:
        back = builder.add("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = builder.add("Reshape", back, builder.integers(0, 0, 12))
    model = builder.finish(builder.linear(mixed, "out", 12, 12))
    removable = assert_removal_is_zeroing(model, samples((1, 5, 12), (3, 5, 12)))
    assert sorted(coupling.size for coupling in removable) == sorted([groups, 3, 3] + ([2] if groups == 2 else []))
    assert only(removable, lambda each: len(each.slots) == 7 and each.size == groups)
