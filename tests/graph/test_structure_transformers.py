"""The structure of six transformer families, as exported with both ways of writing attention, is what their
configuration says."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from structure_networks import export

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.edit import set_initializer
from edgesmith.graph.structure import Structure, find_structure, label_values


@dataclass(frozen=True)
class Expected:
    """What the configuration of a network says."""

    norm: str
    activation: str
    width: int
    embeddings: tuple[str, ...]
    blocks: int = 2
    heads: int = 3
    kv_heads: int = 3
    head_dim: int = 8
    stream: int = 24
    gated: bool = False
    causal: bool = False
    padding: bool = True
    rotary: bool = False
    norms: str = "layer"
    head_norms: int = 0
    head: tuple[str, int, bool, int] | None = None
    """Kind, classes, tied, linear layers before it."""


BERT = Expected("post", "gelu", 40, ("position", "token", "type"), head=("classifier", 5, False, 1))
VIT = Expected("pre", "gelu", 40, ("class", "patch", "position"), padding=False, head=("classifier", 5, False, 0))
GPT2 = Expected("pre", "gelu_tanh", 96, ("position", "token"), causal=True, head=("language_model", 99, True, 0))
LLAMA = Expected(
    "pre",
    "silu",
    40,
    ("token",),
    heads=6,
    kv_heads=2,
    head_dim=4,
    gated=True,
    causal=True,
    rotary=True,
    norms="rms",
    head=("language_model", 99, True, 0),
)
EXPECTED = {
    "bert": BERT,
    "distilbert": replace(BERT, embeddings=("position", "token")),
    "vit": VIT,
    "dinov2": replace(VIT, width=48, head=None),
    "dinov2_gated": replace(VIT, width=32, activation="silu", gated=True, head=None),
    "gpt2": GPT2,
    "llama": LLAMA,
}
# The fixtures that all tests share: scaled dot product attention, cleaned by the frontend.
WIDE = {"stream": 32, "heads": 4, "kv_heads": 4}
FIXTURES = {
    "tiny_bert": replace(BERT, **WIDE, width=64, head=("classifier", 3, False, 1)),
    "tiny_distilbert": replace(
        BERT, **WIDE, width=64, embeddings=("position", "token"), head=("language_model", 100, True, 1), head_norms=1
    ),
    "tiny_vit": replace(VIT, **WIDE, width=64),
    "tiny_dinov2": replace(VIT, **WIDE, width=64, head=None),
    "tiny_gpt2": replace(GPT2, **WIDE, width=128, head=("language_model", 100, True, 0)),
    "tiny_llama": replace(
        LLAMA, stream=32, heads=4, kv_heads=2, head_dim=8, width=64, head=("language_model", 100, False, 0)
    ),
}


def check(structure: Structure, expected: Expected) -> None:
    assert [stream.width for stream in structure.streams] == [expected.stream]
    assert len(structure.blocks) == expected.blocks
    assert structure.streams[0].input == structure.blocks[0].input
    assert structure.streams[0].output == structure.blocks[-1].output
    for block, following in zip(structure.blocks, structure.blocks[1:], strict=False):
        assert block.output == following.input
    for block in structure.blocks:
        assert block.norm == expected.norm
        assert len(block.residuals) == 2
        assert len(block.attentions) == len(block.mlps) == 1
        check_attention(block.attentions[0], expected)
        mlp = block.mlps[0]
        assert (mlp.width, mlp.activation, mlp.gated) == (expected.width, expected.activation, expected.gated)
        assert mlp.up.in_features == mlp.down.out_features == expected.stream
        assert mlp.up.out_features == mlp.down.in_features == expected.width
        if mlp.gate is not None:
            assert mlp.gate.product != mlp.up.product
    assert {norm.kind for norm in structure.norms} == {expected.norms}
    assert {norm.size for norm in structure.norms} == {expected.stream}
    # Two norms in each block, and one before the first block or behind the last.
    assert len(structure.norms) == 2 * expected.blocks + 1 + expected.head_norms
    assert tuple(sorted(embedding.kind for embedding in structure.embeddings)) == expected.embeddings
    found = [(head.kind, head.classes, head.tied, len(head.before)) for head in structure.heads]
    assert found == ([] if expected.head is None else [expected.head])
    assert not structure.recurrent
    assert not structure.quantized


def check_attention(attention: Any, expected: Expected) -> None:
    assert (attention.heads, attention.kv_heads) == (expected.heads, expected.kv_heads)
    assert attention.head_dim == attention.value_head_dim == expected.head_dim
    assert attention.grouped == (expected.kv_heads < expected.heads)
    assert attention.causal is expected.causal
    assert attention.padding_mask is expected.padding
    assert attention.rotary is expected.rotary
    widths = [expected.heads * expected.head_dim, *[expected.kv_heads * expected.head_dim] * 2]
    for projection, width in zip((attention.query, attention.key, attention.value), widths, strict=True):
        assert sum(stop - start for start, stop in projection.features) == width
        assert projection.linear.in_features == expected.stream
    assert attention.output.features == ((0, widths[0]),)
    assert attention.output.linear.out_features == expected.stream


@pytest.mark.parametrize("name", EXPECTED)
def test_structure_of_plain_attention(name: str) -> None:
    check(find_structure(export(name, "eager")), EXPECTED[name])


@pytest.mark.parametrize("name", FIXTURES)
def test_structure_of_scaled_dot_product_attention(name: str, request: pytest.FixtureRequest) -> None:
    check(find_structure(request.getfixturevalue(name).ir), FIXTURES[name])


def test_fused_projections_are_told_apart() -> None:
    attention = find_structure(export("gpt2", "eager")).attentions[0]
    projections = (attention.query, attention.key, attention.value)
    assert [projection.features for projection in projections if projection] == [((0, 24),), ((24, 48),), ((48, 72),)]
    assert len({projection.linear.node for projection in projections if projection}) == 1


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_records_name_what_is_in_the_graph(name: str) -> None:
    """Every node and value that a record names exists, and stored weights have the shape that it says."""
    model = export(name, "eager")
    structure = find_structure(model)
    nodes = {node.name: node for node in model.graph.all_nodes()}
    values = {value.name: value for node in nodes.values() for value in node.outputs}
    assert structure.linears
    for linear in structure.linears:
        assert nodes[linear.node].outputs[0].name == linear.product
        assert linear.output in values
        weight = model.graph.initializers[linear.weight].const_value
        assert weight is not None
        assert linear.weight_axis is not None
        assert weight.shape[linear.weight_axis] == linear.out_features
        assert weight.shape[1 - linear.weight_axis] == linear.in_features
        if linear.bias is not None:
            assert tuple(model.graph.initializers[linear.bias].const_value.shape) == (linear.out_features,)  # type: ignore[union-attr]
    for attention in structure.attentions:
        assert nodes[attention.softmax].op_type == "Softmax"
        assert nodes[attention.score].op_type == nodes[attention.context_node].op_type == "MatMul"
        assert attention.probability in [value.name for value in nodes[attention.context_node].inputs if value]
        assert nodes[attention.context_node].outputs[0].name == attention.context
    for norm in structure.norms:
        assert values[norm.output].producer() is nodes[norm.nodes[-1]]
        assert norm.scale in model.graph.initializers


def test_features_of_heads_are_real() -> None:
    """Zeroing one head of the values changes what the query heads that share it make, and no other head."""
    model = export("llama", "eager").clone()
    attention = find_structure(model).attentions[0]
    assert attention.value is not None
    inputs = sample_inputs(model, dimensions={"batch": 2, "sequence": 7})
    before = ReferenceSession(model, taps=[attention.context]).run(inputs)[attention.context]
    weight = model.graph.initializers[attention.value.linear.weight]
    start = attention.value.features[0][0]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    array[:, start : start + 4] = 0
    set_initializer(weight, array)
    after = ReferenceSession(model, taps=[attention.context]).run(inputs)[attention.context]
    changed = np.abs(before - after).max(axis=(0, 2, 3)) > 1e-6
    # Three query heads share the first head of keys and values.
    assert changed.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_can_be_tapped(name: str) -> None:
    model = export(name, "eager")
    labels = label_values(find_structure(model))
    expected = [f"block {i} / {part}output" for i in range(2) for part in ("attention / ", "mlp / ", "")]
    assert [label for label in labels.values() if label.startswith("block")] == expected
    outputs = ReferenceSession(model, taps=list(labels)).run(sample_inputs(model, dimensions={"sequence": 7}))
    assert set(labels) <= set(outputs)


@pytest.mark.parametrize("name", EXPECTED)
def test_json_and_summary(name: str) -> None:
    structure = find_structure(export(name, "eager"))
    data = json.loads(json.dumps(structure.to_json()))
    expected = EXPECTED[name]
    block = data["streams"][0]["blocks"][1]
    assert block["attentions"][0]["heads"] == expected.heads
    assert block["mlps"][0]["gated"] is expected.gated
    assert data["summary"].startswith(f"2 blocks of width 24: {expected.norm}-norm, ")
    assert ("causal" in data["summary"]) is expected.causal
