"""The parts of a transformer as exporters write them, added to a `GraphBuilder`. Used by the tiny models."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgesmith.testing.builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of a tiny transformer."""

    width: int = 32
    heads: int = 2
    kv_heads: int = 2
    hidden: int = 64
    tokens: int = 96
    positions: int = 32

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.heads


def token_table(builder: GraphBuilder, sizes: Sizes) -> str:
    """Add the rows of all tokens; return the name of the table."""
    return builder.weight("tokens.table", sizes.tokens, sizes.width)


def token_embedding(builder: GraphBuilder, table: str) -> str:
    """Add the rows of `table` for "input_ids": [batch, sequence, width]."""
    return builder.add("Gather", table, "input_ids", name="tokens.gather", axis=0)


def position_embedding(builder: GraphBuilder, hidden: str, sizes: Sizes) -> str:
    """Add a learned row for each position to `hidden`."""
    places = builder.add("Range", builder.number(0, np.int64), _length(builder), builder.number(1, np.int64))
    table = builder.weight("positions.table", sizes.positions, sizes.width)
    return builder.add("Add", hidden, builder.add("Gather", table, places, name="positions.gather", axis=0))


def layer_norm(builder: GraphBuilder, source: str, name: str, width: int) -> str:
    """Add a LayerNormalization."""
    scale = builder.weight(f"{name}.scale", width)
    return builder.add("LayerNormalization", source, scale, builder.weight(f"{name}.bias", width), name=name, axis=-1)


def rms_norm(builder: GraphBuilder, source: str, name: str, width: int) -> str:
    """Add a root mean square norm, in the six nodes that exporters make of it before opset 23."""
    square = builder.add("Pow", source, builder.number(2.0))
    mean = builder.add("ReduceMean", square, builder.integers(-1), keepdims=1)
    root = builder.add("Sqrt", builder.add("Add", mean, builder.number(1e-6)))
    normal = builder.add("Mul", source, builder.add("Reciprocal", root))
    return builder.add("Mul", normal, builder.weight(f"{name}.scale", width), name=name)


def visible_mask(builder: GraphBuilder) -> str:
    """Add what hides padding: [batch, 1, 1, sequence], 0 where "attention_mask" is 1 and very low elsewhere."""
    seen = builder.add("Cast", builder.add("Unsqueeze", "attention_mask", builder.integers(1, 2)), to=TensorProto.FLOAT)
    return builder.add("Mul", builder.add("Sub", builder.number(1.0), seen), builder.number(-1e4))


def causal_mask(builder: GraphBuilder) -> str:
    """Add what hides later tokens: [sequence, sequence], true where a position may not look."""
    places = builder.add("Range", builder.number(0, np.int64), _length(builder), builder.number(1, np.int64))
    return builder.add("Greater", places, builder.add("Unsqueeze", places, builder.integers(1)))


def rotary_tables(builder: GraphBuilder, sizes: Sizes) -> tuple[str, str]:
    """Add cosines and sines of rotary positions, each [sequence, head size]."""
    places = builder.add("Range", builder.number(0, np.int64), _length(builder), builder.number(1, np.int64))
    column = builder.add("Unsqueeze", builder.add("Cast", places, to=TensorProto.FLOAT), builder.integers(1))
    frequencies = 10000.0 ** -(np.arange(0, sizes.head_size, 2, dtype=np.float32) / sizes.head_size)
    angles = builder.add("Mul", column, builder.constant("rotary.frequencies", frequencies.astype(np.float32)))
    both = builder.add("Concat", angles, angles, axis=-1)
    return builder.add("Cos", both), builder.add("Sin", both)


def attention(
    builder: GraphBuilder,
    source: str,
    name: str,
    sizes: Sizes,
    *,
    added: str = "",
    hidden: str = "",
    rotary: tuple[str, str] | None = None,
) -> str:
    """Add attention of `source` [batch, sequence, width] to itself.

    Args:
        builder: Where it is added.
        source: What queries, keys and values are made of.
        name: Stem of the names of its weights.
        sizes: Widths; fewer `kv_heads` than `heads` share keys and values among queries.
        added: Name of a mask that is added to the scores.
        hidden: Name of a mask that is true where a score counts nothing.
        rotary: Names of cosines and sines that turn queries and keys.
    """
    parts = []
    for role, heads in (("query", sizes.heads), ("key", sizes.kv_heads), ("value", sizes.kv_heads)):
        projected = builder.linear(source, f"{name}.{role}", sizes.width, heads * sizes.head_size)
        apart = builder.add("Reshape", projected, builder.integers(0, 0, heads, sizes.head_size))
        parts.append(builder.add("Transpose", apart, perm=[0, 2, 1, 3]))
    if rotary is not None:
        parts[:2] = [_rotate(builder, part, rotary, sizes) for part in parts[:2]]
    query, key, value = parts[0], *(_repeat(builder, part, sizes) for part in parts[1:])
    scores = builder.add("MatMul", query, builder.add("Transpose", key, perm=[0, 1, 3, 2]), name=f"{name}.scores")
    scores = builder.add("Mul", scores, builder.number(sizes.head_size**-0.5))
    if added:
        scores = builder.add("Add", scores, added)
    if hidden:
        scores = builder.add("Where", hidden, builder.number(-np.inf), scores)
    context = builder.add("MatMul", builder.add("Softmax", scores, axis=-1), value, name=f"{name}.context")
    joined = builder.add("Transpose", context, perm=[0, 2, 1, 3])
    flat = builder.add("Reshape", joined, builder.integers(0, 0, sizes.width))
    return builder.linear(flat, f"{name}.output", sizes.width, sizes.width)


def mlp(builder: GraphBuilder, source: str, name: str, sizes: Sizes) -> str:
    """Add two linear layers with Gelu between them."""
    wide = builder.linear(source, f"{name}.up", sizes.width, sizes.hidden)
    return builder.linear(builder.add("Gelu", wide), f"{name}.down", sizes.hidden, sizes.width)


def gated_mlp(builder: GraphBuilder, source: str, name: str, sizes: Sizes) -> str:
    """Add a gated pair of linear layers (SiLU) and the one behind their product."""
    gate = builder.linear(source, f"{name}.gate", sizes.width, sizes.hidden)
    opened = builder.add("Mul", gate, builder.add("Sigmoid", gate))
    product = builder.add("Mul", opened, builder.linear(source, f"{name}.up", sizes.width, sizes.hidden))
    return builder.linear(product, f"{name}.down", sizes.hidden, sizes.width)


def _length(builder: GraphBuilder) -> str:
    """Add the length of the sequence as a single number."""
    return builder.add("Squeeze", builder.add("Shape", "input_ids", start=1, end=2), builder.integers(0))


def _rotate(builder: GraphBuilder, source: str, rotary: tuple[str, str], sizes: Sizes) -> str:
    cosines, sines = rotary
    half = sizes.head_size // 2
    first, second = builder.add_many("Split", source, builder.integers(half, half), outputs=2, axis=-1)
    turned = builder.add("Concat", builder.add("Neg", second), first, axis=-1)
    return builder.add("Add", builder.add("Mul", source, cosines), builder.add("Mul", turned, sines))


def _repeat(builder: GraphBuilder, source: str, sizes: Sizes) -> str:
    """Add copies of keys or values for all queries that share them."""
    groups = sizes.heads // sizes.kv_heads
    if groups == 1:
        return source
    wide = builder.add("Unsqueeze", source, builder.integers(2))
    wide = builder.add("Expand", wide, builder.integers(1, 1, groups, 1, 1))
    return builder.add("Reshape", wide, builder.integers(0, sizes.heads, -1, sizes.head_size))
