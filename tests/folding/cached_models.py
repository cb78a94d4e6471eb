"""Small decoders with a cache of keys and values, in the forms that exporters give them, and greedy decoding."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cache import find_caches
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith.testing import transformer
from edgesmith.testing.builder import GraphBuilder

FORMS = ("apart", "tokens first", "stacked")
"""Keys and values in caches of their own [batch, heads, tokens, channels]; with tokens before heads, as some runtimes
want them; or both in one array [2, batch, heads, tokens, channels] whose batch is the second axis."""

BLOCKS = 4
_SIZES = transformer.Sizes(heads=4, kv_heads=2, positions=96)
_LAYOUT = {
    "apart": ("batch", 2, "past", 8),
    "tokens first": ("batch", "past", 2, 8),
    "stacked": (2, "batch", 2, "past", 8),
}


def cached_decoder(kind: str = "llama", form: str = "apart", *, seed: int = 0, padded: bool = False) -> Model:
    """Return a decoder whose positions and mask follow from the length of its first cache.

    With `padded`, an input `attention_mask` hides padding too.
    """
    builder = GraphBuilder(seed=seed)
    builder.input("input_ids", ("batch", "sequence"), ir.DataType.INT64.value)
    if padded:
        builder.input("attention_mask", ("batch", "all"), ir.DataType.INT64.value)
    slots = [("both",) if form == "stacked" else ("key", "value") for _ in range(BLOCKS)]
    # Names say nothing, and inputs and outputs stand in opposite order.
    inputs = [
        [builder.input(f"in{2 * n + i}", _LAYOUT[form]) for i, _ in enumerate(each)] for n, each in enumerate(slots)
    ]
    past = _size(builder, inputs[0][0], _LAYOUT[form].index("past"))
    new = _size(builder, "input_ids", 1)
    total = builder.add("Add", past, new)
    rows, columns = (
        builder.add("Range", first, total, builder.number(1, np.int64)) for first in (past, builder.number(0, np.int64))
    )
    mask = builder.add("Greater", columns, builder.add("Unsqueeze", rows, builder.integers(1)))
    if padded:
        hidden = builder.add("Equal", "attention_mask", builder.number(0, np.int64))
        mask = builder.add("Or", mask, builder.add("Unsqueeze", hidden, builder.integers(1, 2)))
    hidden = transformer.token_embedding(builder, transformer.token_table(builder, _SIZES))
    rotary = None
    if kind == "llama":
        rotary = _rotary(builder, rows)
    else:
        table = builder.weight("positions.table", _SIZES.positions, _SIZES.width)
        hidden = builder.add("Add", hidden, builder.add("Gather", table, rows, axis=0))
    outputs: dict[str, str] = {}
    for number, caches in enumerate(inputs):
        stem = f"block{number}"
        normal = transformer.layer_norm(builder, hidden, f"{stem}.norm1", _SIZES.width)
        attended, presents = _attention(builder, normal, f"{stem}.attention", caches, form, mask, rotary)
        outputs |= {present: f"out{2 * (BLOCKS - number) + i}" for i, present in enumerate(presents)}
        hidden = builder.add("Add", hidden, attended)
        normal = transformer.layer_norm(builder, hidden, f"{stem}.norm2", _SIZES.width)
        mlp = transformer.gated_mlp if kind == "llama" else transformer.mlp
        hidden = builder.add("Add", hidden, mlp(builder, normal, f"{stem}.mlp", _SIZES))
    hidden = transformer.layer_norm(builder, hidden, "norm", _SIZES.width)
    logits = builder.add("MatMul", hidden, builder.weight("head.weight", _SIZES.width, _SIZES.tokens))
    model = builder.finish(logits, *outputs)
    for value, name in zip(model.graph.outputs, ("logits", *outputs.values()), strict=True):
        value.name = name
    return Model(model, Task(kind="causal-lm"), Provenance("cached", "testing", f"{kind} {form} {seed}"))


def data_for(model: Model, count: int = 8, length: int = 12, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return tokens, none of them padding, and caches that hold nothing yet."""
    tokens = np.random.default_rng(seed).integers(0, _SIZES.tokens, (count, length))
    masked = any(value.name == "attention_mask" for value in model.graph.inputs)
    mask = {"attention_mask": np.ones_like(tokens)} if masked else {}
    return {"input_ids": tokens} | mask | _nothing_cached(model, count)


def logits_of(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of all tokens at once."""
    return ReferenceSession(model.ir).run({"input_ids": tokens, **_nothing_cached(model, len(tokens))})["logits"]


def decode(model: Model, tokens: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return the logits of all tokens when they come in parts of these lengths, each on the cache of those before."""
    session, slots = ReferenceSession(model.ir), {c.input.name: c.output.name for c in find_caches(model.ir)}
    caches, parts, start = _nothing_cached(model, len(tokens)), [], 0
    for length in lengths:
        outputs = session.run({"input_ids": tokens[:, start : start + length], **caches})
        caches = {name: outputs[slot] for name, slot in slots.items()}
        parts.append(outputs["logits"])
        start += length
    return np.concatenate(parts, axis=1)


def greedy(model: Model, prompt: np.ndarray, count: int, *, cached: bool) -> np.ndarray:
    """Return the prompt with so many tokens behind it, each the likeliest."""
    session, slots = ReferenceSession(model.ir), {c.input.name: c.output.name for c in find_caches(model.ir)}
    caches, tokens, fed = _nothing_cached(model, len(prompt)), prompt, prompt
    for _ in range(count):
        outputs = session.run({"input_ids": fed, **caches})
        tokens = np.concatenate([tokens, outputs["logits"][:, -1:].argmax(axis=-1)], axis=1)
        fed = tokens[:, -1:] if cached else tokens
        caches = {name: outputs[slot] for name, slot in slots.items()} if cached else caches
    return tokens


def _nothing_cached(model: Model, batch: int) -> dict[str, np.ndarray]:
    sizes = {"batch": batch, "past": 0}
    shapes = {v.name: v.shape for v in model.graph.inputs if v.name not in ("input_ids", "attention_mask")}
    return {
        str(name): np.zeros([one if isinstance(one, int) else sizes[str(one.value)] for one in shape], np.float32)
        for name, shape in shapes.items()
    }


def _attention(builder, source, name, caches, form, mask, rotary):
    query, key, value = (
        _heads(builder, source, f"{name}.{role}", heads) for role, heads in (("query", 4), ("key", 2), ("value", 2))
    )
    if rotary is not None:
        query, key = (transformer._rotate(builder, part, rotary, _SIZES) for part in (query, key))
    if form == "stacked":
        earlier = [builder.add("Gather", caches[0], builder.number(i, np.int64), axis=0) for i in range(2)]
    elif form == "tokens first":
        earlier = [builder.add("Transpose", cache, perm=[0, 2, 1, 3]) for cache in caches]
    else:
        earlier = caches
    key, value = (builder.add("Concat", old, new, axis=-2) for old, new in zip(earlier, (key, value), strict=True))
    presents = [key, value]
    if form == "stacked":
        apart = [builder.add("Unsqueeze", part, builder.integers(0)) for part in presents]
        presents = [builder.add("Concat", *apart, axis=0)]
    elif form == "tokens first":
        presents = [builder.add("Transpose", part, perm=[0, 2, 1, 3]) for part in presents]
    key, value = (transformer._repeat(builder, part, _SIZES) for part in (key, value))
    scores = builder.add("MatMul", query, builder.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = builder.add("Where", mask, builder.number(-np.inf), builder.add("Mul", scores, builder.number(8**-0.5)))
    context = builder.add("MatMul", builder.add("Softmax", scores, axis=-1), value)
    flat = builder.add("Reshape", builder.add("Transpose", context, perm=[0, 2, 1, 3]), builder.integers(0, 0, 32))
    return builder.linear(flat, f"{name}.output", 32, 32), presents


def _heads(builder, source, name, heads):
    apart = builder.add("Reshape", builder.linear(source, name, 32, heads * 8), builder.integers(0, 0, heads, 8))
    return builder.add("Transpose", apart, perm=[0, 2, 1, 3])


def _rotary(builder, places):
    column = builder.add("Unsqueeze", builder.add("Cast", places, to=ir.DataType.FLOAT.value), builder.integers(1))
    frequencies = builder.constant("frequencies", (10000.0 ** -(np.arange(0, 8, 2) / 8)).astype(np.float32))
    angles = builder.add("Mul", column, frequencies)
    both = builder.add("Concat", angles, angles, axis=-1)
    return builder.add("Cos", both), builder.add("Sin", both)


def _size(builder, source, axis):
    return builder.add("Squeeze", builder.add("Shape", source, start=axis, end=axis + 1), builder.integers(0))
