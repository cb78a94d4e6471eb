"""Puts merges into a stream: behind the sum with attention of each block, before its MLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgesmith_tokens.finding.vision import VisionBlock, VisionStream
from edgesmith_tokens.merging.graph import CombineForm, merge_by_chance, merge_by_metric
from edgesmith_tokens.tokens.paths import TokenPaths
from edgesmith_tokens.tokens.reduction import Reducer, Tokens, examine, reduce_tokens
from edgesmith_tokens.tokens.writer import Writer


@dataclass(frozen=True, slots=True)
class MergeForm:
    """How tokens are merged, wherever that happens."""

    combine: CombineForm = "one-hot"
    metric: Literal["keys", "input"] = "keys"
    score: Literal["similarity", "random"] = "similarity"
    proportional: bool = True
    seed: int = 0


def merge_stream(model: ir.Model, stream: VisionStream, counts: Sequence[int], form: MergeForm) -> tuple[int, ...]:
    """Merge tokens of a stream in place.

    Args:
        model: A clone of the model in which the stream was found.
        stream: The stream.
        counts: Tokens that each block merges.
        form: How.

    Returns:
        Tokens that the attention of each block has.

    Raises:
        StepError: A node cannot work on fewer tokens.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    paths = examine(model, stream)
    reducers = {
        block.attended: _reducer(block, r, stream.protected, form, values, paths)
        for block, r in zip(stream.blocks, counts, strict=True)
        if r
    }
    return reduce_tokens(model, stream, reducers, proportional=form.proportional, paths=paths)


def _reducer(
    block: VisionBlock,
    r: int,
    protected: int,
    form: MergeForm,
    values: dict[str, ir.Value],
    paths: TokenPaths,
) -> Reducer:
    if form.score == "random":
        generator = np.random.default_rng((form.seed, block.number))
        return lambda writer, tokens: merge_by_chance(writer, tokens, generator, r, protected, form.combine)
    keys = block.attention.key
    by_keys = form.metric == "keys" and keys is not None
    source = values[keys.value if by_keys and keys is not None else block.input]
    axis = next(iter(paths.axes[source]))

    def reduce(writer: Writer, tokens: Tokens) -> Tokens:
        metric = _mean_over_heads(writer, source, axis) if by_keys else source
        return merge_by_metric(writer, tokens, writer.cast(metric, ir.DataType.FLOAT), r, protected, form.combine)

    return reduce


def _mean_over_heads(writer: Writer, keys: ir.Value, axis: int) -> ir.Value:
    """Return the mean of keys [batch, heads, ...] over heads as [batch, tokens, size]; tokens are along `axis`."""
    dtype = keys.dtype or ir.DataType.FLOAT
    shape = None if keys.shape is None else (keys.shape[0], keys.shape[2], keys.shape[3])
    mean = writer.add("ReduceMean", (keys, writer.integers(1)), {"keepdims": 0}, shape=shape, dtype=dtype)
    if axis == 2:
        return mean
    turned = None if shape is None else (shape[0], shape[2], shape[1])
    return writer.add("Transpose", (mean,), {"perm": (0, 2, 1)}, shape=turned, dtype=dtype)
