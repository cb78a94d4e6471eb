"""Blocks of other shapes, MLPs of every kind, and the activation functions in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attention_builder import HIDDEN, WIDTH, Builder, Style, build, finish
from onnx import TensorProto

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.structure import find_structure


def half(builder: Builder, value: str, start: int, stop: int) -> str:
    return builder.op("Slice", value, *(builder.const([each]) for each in (start, stop, -1)))


def silu(builder: Builder, value: str) -> str:
    return builder.op("Mul", value, builder.op("Sigmoid", value))


def gated(builder: Builder, value: str, form: str) -> str:
    if form == "two":
        gate, up = builder.linear(value, HIDDEN), builder.linear(value, HIDDEN)
    elif form == "split":
        gate, up = builder.op("Split", builder.linear(value, 2 * HIDDEN), outputs=2, axis=-1, num_outputs=2)
    else:
        whole = builder.linear(value, 2 * HIDDEN)
        up, gate = half(builder, whole, 0, HIDDEN), half(builder, whole, HIDDEN, 2 * HIDDEN)
    return builder.linear(builder.op("Mul", silu(builder, gate), up), WIDTH, HIDDEN)


@pytest.mark.parametrize("form", ["two", "split", "slice"])
@pytest.mark.parametrize("linear", ["matmul", "gemm"])
def test_gated_mlps(form: str, linear: str) -> None:
    builder = Builder(Style(linear=linear))
    value = builder.residual("x", builder.attention)
    model = finish(builder, builder.residual(value, lambda v: gated(builder, v, form)))
    (block,) = find_structure(model).blocks
    (mlp,) = block.mlps
    assert (mlp.gated, mlp.activation, mlp.width, mlp.fused) == (True, "silu", HIDDEN, form != "two")
    assert mlp.gate is not None
    # The gate passes the activation: of its value a Sigmoid is taken, of the other none.
    assert "Sigmoid" in _readers(_value(model, mlp.gate_value))
    assert "Sigmoid" not in _readers(_value(model, mlp.up_value))


def _readers(value: Any) -> set[str]:
    """Operators that read a value, behind a Reshape too."""
    found: set[str] = set()
    for node, _ in value.uses():
        found |= _readers(node.outputs[0]) if node.op_type == "Reshape" else {node.op_type}
    return found


def _value(model: Any, name: str | None) -> Any:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


ACTIVATIONS: dict[str, list[Callable[[Builder, str], str]]] = {
    "relu": [lambda b, v: b.op("Relu", v), lambda b, v: b.op("Max", v, b.const(0, np.float32))],
    "relu6": [lambda b, v: b.op("Clip", v, b.const(0, np.float32), b.const(6, np.float32))],
    "relu_squared": [lambda b, v: b.op("Pow", b.op("Relu", v), b.const(2, np.float32))],
    "gelu": [
        lambda b, v: b.op("Gelu", v),
        lambda b, v: b.op(
            "Mul",
            b.op("Mul", v, b.const(0.5, np.float32)),
            b.op(
                "Add",
                b.const(1, np.float32),
                b.op("Erf", b.op("Mul", v, b.const(2**-0.5, np.float32))),
            ),
        ),
    ],
    "gelu_tanh": [lambda b, v: b.op("Gelu", v, approximate="tanh")],
    "quick_gelu": [lambda b, v: b.op("Mul", v, b.op("Sigmoid", b.op("Mul", b.const(1.702, np.float32), v)))],
    "silu": [silu],
    "sigmoid": [lambda b, v: b.op("Sigmoid", v)],
    "tanh": [lambda b, v: b.op("Tanh", v)],
    "hard_swish": [
        lambda b, v: b.op("HardSwish", v),
        lambda b, v: b.op("Mul", v, b.op("HardSigmoid", v, alpha=1 / 6, beta=0.5)),
    ],
    "elu": [lambda b, v: b.op("Elu", v)],
    "leaky_relu": [lambda b, v: b.op("LeakyRelu", v), lambda b, v: b.op("PRelu", v, b.const([0.01], np.float32))],
    "mish": [lambda b, v: b.op("Mish", v), lambda b, v: b.op("Mul", v, b.op("Tanh", b.op("Softplus", v)))],
    "softplus": [lambda b, v: b.op("Softplus", v)],
    "unknown": [lambda b, v: b.op("Mul", v, b.op("Tanh", v))],
}


@pytest.mark.parametrize(("name", "index"), [(n, i) for n, forms in ACTIVATIONS.items() for i in range(len(forms))])
def test_activations(name: str, index: int) -> None:
    builder = Builder(Style())
    value = builder.linear("x", HIDDEN)
    model = finish(
        builder, builder.op("Add", "x", builder.linear(ACTIVATIONS[name][index](builder, value), WIDTH, HIDDEN))
    )
    (mlp,) = find_structure(model).mlps
    assert (mlp.activation, mlp.gated) == (name, False)


def test_two_linear_layers_without_activation_are_no_mlp() -> None:
    """A low-rank pair, such as an adapter, is not mistaken for an MLP."""
    builder = Builder(Style())
    model = finish(builder, builder.op("Add", "x", builder.linear(builder.linear("x", 4), WIDTH, 4)))
    structure = find_structure(model)
    assert structure.mlps == ()
    assert len(structure.linears) == 2


@pytest.mark.parametrize("order", ["sum first", "attention first", "mlp first"])
def test_parallel_attention_and_mlp(order: str) -> None:
    """GPT-J and its relatives: both read the same normalized stream, and their results are added in any order."""
    builder, value = Builder(Style()), "x"
    for _ in range(2):
        normed = builder.norm(value)
        attention, mlp = builder.attention(normed), builder.mlp(normed)
        if order == "sum first":
            value = builder.op("Add", builder.op("Add", attention, mlp), value)
        else:
            first, second = (attention, mlp) if order == "attention first" else (mlp, attention)
            value = builder.op("Add", builder.op("Add", value, first), second)
    structure = find_structure(finish(builder, value))
    assert [(len(block.attentions), len(block.mlps), block.norm) for block in structure.blocks] == [(1, 1, "pre")] * 2
    assert structure.blocks[0].output == structure.blocks[1].input


def test_sandwich_norm() -> None:
    """Gemma 2: a norm before and behind each branch."""
    builder, value = Builder(Style()), "x"
    for _ in range(2):
        for layer in (builder.attention, builder.mlp):
            value = builder.op("Add", value, builder.norm(layer(builder.norm(value))))
    blocks = find_structure(finish(builder, value)).blocks
    assert [(block.norm, len(block.residuals)) for block in blocks] == [("sandwich", 2)] * 2


def test_decoder_with_cross_attention() -> None:
    """Attention to itself, attention to an encoder, MLP: three connections in one block."""
    builder, value = Builder(Style()), "x"

    def cross(source: str) -> str:
        query = builder.op("Transpose", builder.reshape(builder.linear(source, WIDTH), 4, 6), perm=[0, 2, 1, 3])
        encoder = builder.op("Unsqueeze", builder.op("Cast", "mask", to=TensorProto.FLOAT), builder.const([2]))
        encoder = builder.op("Expand", encoder, builder.const([1, 1, WIDTH]))
        key, values = (
            builder.op("Transpose", builder.reshape(builder.linear(encoder, WIDTH), 4, 6), perm=[0, 2, 1, 3])
            for _ in range(2)
        )
        scores = builder.op("MatMul", query, builder.op("Transpose", key, perm=[0, 1, 3, 2]))
        context = builder.op("MatMul", builder.op("Softmax", scores, axis=-1), values)
        return builder.linear(builder.reshape(builder.op("Transpose", context, perm=[0, 2, 1, 3]), WIDTH), WIDTH)

    for _ in range(2):
        for layer in (builder.attention, cross, builder.mlp):
            value = builder.residual(value, layer)
    blocks = find_structure(finish(builder, value)).blocks
    assert [(len(block.residuals), len(block.attentions), len(block.mlps)) for block in blocks] == [(3, 2, 1)] * 2


def test_mixer_of_mlps() -> None:
    """Without attention every MLP is a block of its own; a Transpose before it changes nothing."""
    builder, value = Builder(Style()), "x"
    for _ in range(2):
        value = builder.residual(value, builder.mlp)
    structure = find_structure(finish(builder, value))
    assert [(len(block.mlps), block.norm) for block in structure.blocks] == [(1, "pre")] * 2


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_inputs_and_outputs_carry_the_stream(norm: str) -> None:
    """Replacing the output of the first block by its input skips the block, in both kinds of norm."""
    model = build(Style(norm=norm))
    first, second = find_structure(model).blocks
    assert first.input == "x"
    assert first.output == second.input
    inputs = {"x": np.random.default_rng(1).standard_normal((2, 7, WIDTH)).astype(np.float32)}
    inputs["mask"] = np.ones((2, 7), np.int64)  # type: ignore[assignment]
    taps = ReferenceSession(model, taps=[first.output, second.output]).run(inputs)
    np.testing.assert_array_equal(taps[second.output], taps["y"])
    continued = build(Style(norm=norm))
    outer, source = _value(continued, first.output), continued.graph.inputs[0]
    for node, index in tuple(outer.uses()):
        node.replace_input_with(index, source)
    result = ReferenceSession(continued).run({**inputs, "x": taps[first.output]})["y"]
    np.testing.assert_allclose(result, taps["y"], atol=1e-6)
