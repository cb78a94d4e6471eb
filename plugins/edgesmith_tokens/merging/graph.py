"""Token merging as nodes of a graph: the formulas of `formula`, operator by operator.

Two forms add up what is merged. `scatter` adds into the tokens of B with ScatterElements. `one-hot` multiplies with a
matrix that has a one where a source goes, so that nothing is scattered; TensorRT takes that one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Attribute
from edgesmith_tokens.merging.formula import sets
from edgesmith_tokens.tokens.reduction import Tokens
from edgesmith_tokens.tokens.writer import Writer

CombineForm = Literal["scatter", "one-hot"]
Adder = Callable[[ir.Value, ir.Value], ir.Value]
"""Returns what the tokens of B hold, [batch, B, width], with what the sources hold, [batch, r, width], added; both in
float32."""

_FULL, _INTEGER = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, slots=True)
class _Places:
    """The values of a matching in the graph; see `formula.Matching`."""

    kept: ir.Value
    sources: ir.Value
    destinations: ir.Value
    first: range
    second: range
    r: int
    protected: int

    @property
    def stays(self) -> int:
        """Tokens of A that stay."""
        return len(self.first) - self.r


def merge_by_metric(
    writer: Writer, tokens: Tokens, metric: ir.Value, r: int, protected: int, form: CombineForm
) -> Tokens:
    """Merge the r pairs of tokens that are most alike.

    Args:
        writer: Where to put the nodes.
        tokens: What the stream holds.
        metric: What tokens are compared by, [batch, tokens, size].
        r: Tokens to take away, at least 1.
        protected: Tokens in front that take no part.
        form: How merged tokens are added up.
    """
    first, second = sets(tokens.count, protected)
    batch = _batch(tokens.values)
    size = None if metric.shape is None else metric.shape[2]
    shape = None if size is None else (batch, tokens.count, size)
    norm = writer.add("ReduceL2", (metric, writer.integers(-1)), {"keepdims": 1}, shape=(batch, tokens.count, 1))
    floor = writer.constant(np.asarray(1e-6, np.float32), "smallest_norm")
    norm = writer.add("Max", (norm, floor), shape=(batch, tokens.count, 1))
    unit = writer.add("Div", (metric, norm), shape=shape)
    left = writer.slice(unit, first.start, tokens.count, 2)
    right = writer.slice(unit, second.start, tokens.count, 2)
    turned = None if size is None else (batch, size, len(second))
    right = writer.add("Transpose", (right,), {"perm": (0, 2, 1)}, shape=turned)
    scores = writer.add("MatMul", (left, right), shape=(batch, len(first), len(second)))
    return _merge(writer, tokens, _match(writer, scores, tokens, r, protected), form)


def merge_by_chance(
    writer: Writer, tokens: Tokens, generator: np.random.Generator, r: int, protected: int, form: CombineForm
) -> Tokens:
    """Merge r pairs of tokens that are drawn once, the same for all images. Arguments as in `merge_by_metric`."""
    first, second = sets(tokens.count, protected)
    drawn = generator.random((1, len(first), len(second))).astype(np.float32)
    shape = writer.batch_of(tokens.values, 1, 1)
    sizes = (_batch(tokens.values), len(first), len(second))
    scores = writer.add("Expand", (writer.constant(drawn, "scores"), shape), shape=sizes)
    return _merge(writer, tokens, _match(writer, scores, tokens, r, protected), form)


def _batch(values: ir.Value) -> int | ir.SymbolicDim:
    return values.shape[0] if values.shape is not None else ir.SymbolicDim(None)


def _match(writer: Writer, scores: ir.Value, tokens: Tokens, r: int, protected: int) -> _Places:
    first, second = sets(tokens.count, protected)
    batch, count = _batch(tokens.values), len(first)
    last = writer.integers(-1)
    best = writer.add("ReduceMax", (scores, last), {"keepdims": 0}, shape=(batch, count))
    partner = writer.add("ArgMax", (scores,), {"axis": -1, "keepdims": 0}, shape=(batch, count), dtype=_INTEGER)
    order = _top(writer, best, count, batch)
    sources, kept = writer.slice(order, 0, r), writer.slice(order, r, count)
    if protected and count - r > 1:
        kept = _sorted(writer, kept, count - r, batch)
    destinations = writer.add("GatherElements", (partner, sources), {"axis": 1}, shape=(batch, r), dtype=_INTEGER)
    return _Places(
        _whole(writer, kept, first, (batch, count - r)),
        _whole(writer, sources, first, (batch, r)),
        destinations,
        first,
        second,
        r,
        protected,
    )


def _top(writer: Writer, values: ir.Value, count: int, batch: int | ir.SymbolicDim) -> ir.Value:
    """Return the places of values from the highest to the lowest."""
    attributes = {"axis": -1, "largest": 1, "sorted": 1}
    best = writer.add("TopK", (values, writer.integers(count)), attributes, shape=(batch, count), outputs=2)
    node = best.producer()
    order = best if node is None else node.outputs[1]
    order.type, order.shape = ir.TensorType(_INTEGER), ir.Shape([batch, count])
    return order


def _sorted(writer: Writer, places: ir.Value, count: int, batch: int | ir.SymbolicDim) -> ir.Value:
    """Return places in rising order."""
    attributes = {"axis": -1, "largest": 0, "sorted": 1}
    inputs = (places, writer.integers(count))
    rising = writer.add("TopK", inputs, attributes, shape=(batch, count), dtype=_INTEGER, outputs=2)
    node = rising.producer()
    if node is not None:
        node.outputs[1].type, node.outputs[1].shape = ir.TensorType(_INTEGER), ir.Shape([batch, count])
    return rising


def _whole(writer: Writer, places: ir.Value, within: range, shape: tuple[int | ir.SymbolicDim, int]) -> ir.Value:
    """Turn places within A into places among all tokens."""
    step, start = writer.integers(within.step), writer.integers(within.start)
    scaled = writer.add("Mul", (places, step), shape=shape, dtype=_INTEGER)
    return writer.add("Add", (scaled, start), shape=shape, dtype=_INTEGER)


def _column(writer: Writer, places: ir.Value) -> ir.Value:
    """Return places [batch, n] as [batch, n, 1]."""
    shape = None if places.shape is None else (*places.shape, 1)
    return writer.add("Unsqueeze", (places, writer.integers(-1)), shape=shape, dtype=_INTEGER)


def _take(writer: Writer, values: ir.Value, column: ir.Value) -> ir.Value:
    """Return the tokens at places [batch, n, 1]."""
    shape = None
    if values.shape is not None and column.shape is not None:
        shape = (values.shape[0], column.shape[1], values.shape[2])
    dtype = values.dtype or _FULL
    return writer.add("GatherND", (values, column), {"batch_dims": 1}, shape=shape, dtype=dtype)


def _merge(writer: Writer, tokens: Tokens, places: _Places, form: CombineForm) -> Tokens:
    values, count, protected = tokens.values, tokens.count, places.protected
    batch, start = _batch(values), places.second.start
    sizes = _sizes(writer, tokens)
    add = (_scattered if form == "scatter" else _multiplied)(writer, places, batch)
    sources = _column(writer, places.sources)
    # In float32, since sums of large activations pass what float16 holds, and ONNX Runtime scatters no float16.
    others, moved = (
        writer.cast(each, _FULL) for each in (writer.slice(values, start, count, 2), _take(writer, values, sources))
    )
    other_sizes, moved_sizes = writer.slice(sizes, start, count, 2), _take(writer, sizes, sources)
    size = add(other_sizes, moved_sizes)
    if tokens.sizes is not None:
        others = writer.add("Mul", (others, other_sizes), shape=others.shape)
        moved = writer.add("Mul", (moved, moved_sizes), shape=moved.shape)
    means = writer.add("Div", (add(others, moved), size), shape=others.shape)
    parts = [(writer.cast(means, _type(values)), size)]
    if places.stays:
        kept = _column(writer, places.kept)
        parts.insert(0, (_take(writer, values, kept), _take(writer, sizes, kept)))
    if protected:
        parts.insert(0, (writer.slice(values, 0, protected), writer.slice(sizes, 0, protected)))
    left = count - places.r
    width = None if values.shape is None else (batch, left, values.shape[2])
    new_sizes = writer.add("Concat", [each for _, each in parts], {"axis": 1}, shape=(batch, left, 1))
    new = writer.add("Concat", [each for each, _ in parts], {"axis": 1}, shape=width, dtype=_type(values))

    def restore(behind: Writer, reduced: ir.Value) -> ir.Value:
        # Places are narrow, so all merges are gone back on them, and the tokens themselves are taken once.
        whole = tokens.restore(behind, _column(behind, _went_to(behind, places, count)))
        return _take(behind, reduced, whole)

    return Tokens(new, left, new_sizes, restore)


def _sizes(writer: Writer, tokens: Tokens) -> ir.Value:
    """Return the sizes of tokens as [batch, tokens, 1], also where all images have the same."""
    sizes, values = tokens.sizes, tokens.values
    if sizes is None:
        sizes = writer.constant(np.ones((1, tokens.count, 1), np.float32), "ones")
    if sizes.shape is not None and sizes.shape[0] != 1:
        return sizes
    return writer.add("Expand", (sizes, writer.batch_of(values, 1, 1)), shape=(_batch(values), tokens.count, 1))


def _scattered(writer: Writer, places: _Places, batch: int | ir.SymbolicDim) -> Adder:
    column = _column(writer, places.destinations)

    def add(values: ir.Value, moved: ir.Value) -> ir.Value:
        width = values.shape[2] if values.shape is not None else 1
        spread = writer.integers(1, 1, width if isinstance(width, int) else 1)
        indices = writer.add("Expand", (column, spread), shape=(batch, places.r, width), dtype=_INTEGER)
        attributes: dict[str, Attribute] = {"axis": 1, "reduction": "add"}
        inputs = (values, indices, moved)
        return writer.add("ScatterElements", inputs, attributes, shape=values.shape)

    return add


def _multiplied(writer: Writer, places: _Places, batch: int | ir.SymbolicDim) -> Adder:
    count, row = len(places.second), (batch, 1, places.r)
    goes_to = writer.add("Unsqueeze", (places.destinations, writer.integers(1)), shape=row, dtype=_INTEGER)
    numbers = writer.constant(np.arange(count, dtype=np.int64).reshape(1, count, 1), "numbers")
    shape = (batch, count, places.r)
    equal = writer.add("Equal", (goes_to, numbers), shape=shape, dtype=ir.DataType.BOOL)
    hot = writer.cast(equal, _FULL)

    def add(values: ir.Value, moved: ir.Value) -> ir.Value:
        product = writer.add("MatMul", (hot, moved), shape=values.shape)
        return writer.add("Add", (values, product), shape=values.shape)

    return add


def _type(values: ir.Value) -> ir.DataType:
    return values.dtype or _FULL


def _went_to(writer: Writer, places: _Places, count: int) -> ir.Value:
    """Return where each token of before the merge is behind it: [batch, count]."""
    batch = _batch(places.sources)
    left = count - places.r
    begins = left - len(places.second)

    def rows(numbers: Iterable[int]) -> ir.Value:
        row = writer.constant(np.asarray([list(numbers)], np.int64), "places")
        shape = writer.batch_of(places.sources, 1)
        return writer.add("Expand", (row, shape), shape=(batch, row.shape[1] if row.shape else 0), dtype=_INTEGER)

    merged = writer.add("Add", (places.destinations, writer.integers(begins)), shape=(batch, places.r), dtype=_INTEGER)
    at = [rows([*range(places.protected), *places.second]), places.sources]
    goes_to = [rows([*range(places.protected), *range(begins, left)]), merged]
    if places.stays:
        at.append(places.kept)
        goes_to.append(rows(range(places.protected, begins)))
    shape = (batch, count)
    before = writer.add("Concat", at, {"axis": 1}, shape=shape, dtype=_INTEGER)
    behind = writer.add("Concat", goes_to, {"axis": 1}, shape=shape, dtype=_INTEGER)
    return writer.add("ScatterElements", (before, before, behind), {"axis": 1}, shape=shape, dtype=_INTEGER)
