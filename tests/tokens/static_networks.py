"""Small transformers over a fixed number of tokens, with queries, keys and values made in the ways exporters know."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from tests.small_graphs import context

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing import transformer
from edgesmith.testing.builder import GraphBuilder
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static.sites import Site, find_sites
from edgesmith_tokens.static_attention import StaticAttention

LAYOUTS = ("separate", "split", "gathered", "interleaved", "gemm")


def network(
    layout: str = "separate",
    *,
    heads: int = 2,
    channels: int = 4,
    tokens: int = 5,
    blocks: int = 2,
    seed: int = 0,
    constant: bool = False,
    batch: int | str = "batch",
) -> Model:
    """Return pre-norm blocks on "x" [batch, tokens, heads * channels], output "y".

    Args:
        layout: How queries, keys and values are made.
        heads: Number of heads.
        channels: Channels of a head.
        tokens: Number of tokens.
        blocks: Number of blocks.
        seed: Seed of the weights.
        constant: Scores come from a table alone, so that all samples have the same maps.
        batch: The first dimension.
    """
    width = heads * channels
    builder = GraphBuilder(seed=seed, x=(batch, tokens, width))
    sizes = transformer.Sizes(width=width, heads=heads, kv_heads=heads, hidden=2 * width)
    hidden = "x"
    for number in range(blocks):
        name = f"block{number}"
        normal = transformer.layer_norm(builder, hidden, f"{name}.norm1", width)
        added = table(builder, f"{name}.table", heads, tokens, seed + number) if constant else ""
        if layout == "separate":
            attended = transformer.attention(builder, normal, f"{name}.attention", sizes, added=added)
        else:
            attended = _fused(builder, normal, f"{name}.attention", sizes, tokens, layout, added)
        hidden = builder.add("Add", attended, hidden)
        normal = transformer.layer_norm(builder, hidden, f"{name}.norm2", width)
        hidden = builder.add("Add", transformer.mlp(builder, normal, f"{name}.mlp", sizes), hidden)
    model = wrap(builder.finish(hidden))
    return without_scores(model) if constant else model


def table(builder: GraphBuilder, name: str, heads: int, tokens: int, seed: int) -> str:
    """Add a table that is added to scores whatever the sample is."""
    numbers = np.random.default_rng(seed).normal(0, 2, (1, heads, tokens, tokens))
    return builder.constant(name, numbers.astype(np.float32))


def wrap(graph: ir.Model) -> Model:
    return Model(graph, Task(), Provenance("test", "test", "test"))


def without_scores(model: Model) -> Model:
    """Return a copy whose scales of scores are zero, so that only what is added to scores counts."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    for attention in find_structure(copy.ir).attentions:
        (scale,) = (node for node, _ in values[f"{attention.score}_0"].uses())
        number = scale.inputs[1]
        number.const_value = ir.tensor(np.zeros((), np.float32), name=number.name)
    return copy


def with_classes(model):
    """Return a copy with the class numbers of its output as a further output, in front."""
    copy = model.clone()
    editor = GraphEditor(copy.graph)
    scores = copy.graph.outputs[0]
    classes = editor.insert_before(copy.graph[-1], "ArgMax", (scores,), {"axis": -1, "keepdims": 0}).outputs[0]
    classes.type, classes.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(list(scores.shape)[:-1])
    copy.graph.sort()
    copy.graph.outputs.insert(0, classes)
    return copy


def _fused(
    builder: GraphBuilder,
    source: str,
    name: str,
    sizes: transformer.Sizes,
    tokens: int,
    layout: str,
    added: str,
) -> str:
    width, heads, size = sizes.width, sizes.heads, sizes.head_size
    if layout == "gemm":
        rows = builder.add("Reshape", source, builder.integers(-1, width))
        weight, bias = (
            builder.weight(f"{name}.qkv.weight", 3 * width, width),
            builder.weight(f"{name}.qkv.bias", 3 * width),
        )
        fused = builder.add("Gemm", rows, weight, bias, transB=1)
    else:
        fused = builder.linear(source, f"{name}.qkv", width, 3 * width)
    if layout == "split":
        thirds = builder.add_many("Split", fused, builder.integers(width, width, width), outputs=3, axis=-1)
        apart = [builder.add("Reshape", each, builder.integers(0, 0, heads, size)) for each in thirds]
        query, key, value = (builder.add("Transpose", each, perm=[0, 2, 1, 3]) for each in apart)
    elif layout == "interleaved":
        # As some language models do: the query, key and value of a head stand together.
        apart_ = builder.add("Reshape", fused, builder.integers(-1, tokens, heads, 3, size))
        turned = builder.add("Transpose", apart_, perm=[3, 0, 2, 1, 4])
        query, key, value = (builder.add("Gather", turned, builder.number(i, np.int64), axis=0) for i in range(3))
    else:
        apart_ = builder.add("Reshape", fused, builder.integers(-1, tokens, 3, heads, size))
        turned = builder.add("Transpose", apart_, perm=[2, 0, 3, 1, 4])
        query, key, value = (builder.add("Gather", turned, builder.number(i, np.int64), axis=0) for i in range(3))
    transposed = builder.add("Transpose", key, perm=[0, 1, 3, 2])
    scores = builder.add("MatMul", query, transposed, name=f"{name}.scores")
    scores = builder.add("Mul", scores, builder.number(size**-0.5))
    if added:
        scores = builder.add("Add", scores, added)
    result = builder.add("MatMul", builder.add("Softmax", scores, axis=-1), value, name=f"{name}.context")
    joined = builder.add("Transpose", result, perm=[0, 2, 1, 3])
    return builder.linear(builder.add("Reshape", joined, builder.integers(0, 0, width)), f"{name}.output", width, width)


def images(model: Model, count: int = 24, seed: int = 1) -> dict[str, np.ndarray]:
    (value,) = model.graph.inputs
    shape = list(value.shape)[1:]
    return {str(value.name): np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)}


def sites_of(model: Model) -> tuple[Site, ...]:
    return find_sites(model.ir, find_structure(model.ir))


def make_static(model: Model, data: Mapping[str, np.ndarray], **options: Any) -> Model:
    return make_static_with_notes(model, data, **options)[0]


def make_static_with_notes(model: Model, data: Mapping[str, np.ndarray], **options: Any) -> tuple[Model, Any]:
    settings = context(StaticAttentionOptions(**options), data)
    assert StaticAttention().check(model, settings).status == "ok"
    return StaticAttention().apply(model, settings), settings.notes
