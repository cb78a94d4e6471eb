"""Nodes that make fewer tokens: X' = P X over patch tokens, with protected tokens beside, and back again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Array
from edgesmith_tokens.aggregation.clusters import Labels
from edgesmith_tokens.aggregation.matrices import Float64
from edgesmith_tokens.tokens.reduction import Tokens
from edgesmith_tokens.tokens.writer import Writer

# A group of less is empty; also the smallest normal number of float16.
_SMALLEST_SIZE = 2.0**-14
_EPSILON = 1e-6
_FULL = ir.DataType.FLOAT

LEARNED_WEIGHT, LEARNED_BIAS = "aggregate.weight", "aggregate.bias"


@dataclass(frozen=True, slots=True)
class FixedAverage:
    """Means of groups of places: P is constant."""

    protected: int
    labels: Labels
    """Group of each patch token."""
    matrix: Float64
    """P, [groups, patches]."""
    sizes: Float64 | None
    """Patches that each group stands for; None where that does not count."""

    def __call__(self, writer: Writer, tokens: Tokens) -> Tokens:
        """Put the nodes behind the tokens, and return what is left."""
        matrix = _like(writer, tokens.values, self.matrix, "matrix")
        values = _product(writer, tokens, self.protected, matrix, len(self.matrix))
        places = np.concatenate([np.arange(self.protected), self.labels + self.protected])

        def restore(writer: Writer, value: ir.Value) -> ir.Value:
            """Give each token what its group holds."""
            taken = writer.add(
                "Gather", (value, writer.integers(*places)), {"axis": 1},
                shape=_resized(value, len(places)), dtype=value.dtype or _FULL,
            )  # fmt: skip
            return tokens.restore(writer, taken)

        sizes = None
        if self.sizes is not None:
            ones = np.ones(self.protected)
            sizes = writer.constant(_column(np.concatenate([ones, self.sizes])), "sizes")
        return Tokens(values, self.protected + len(self.matrix), sizes, restore)


@dataclass(frozen=True, slots=True)
class FixedProjection:
    """Leading directions of the tokens: P has orthonormal rows of any sign."""

    protected: int
    matrix: Float64
    """P, [groups, patches]."""

    def __call__(self, writer: Writer, tokens: Tokens) -> Tokens:
        """Put the nodes behind the tokens, and return what is left."""
        matrix = _like(writer, tokens.values, self.matrix, "matrix")
        values = _product(writer, tokens, self.protected, matrix, len(self.matrix))

        def restore(writer: Writer, value: ir.Value) -> ir.Value:
            """Project back: P^T P X is the part of X that was kept."""
            back, groups = (
                _like(writer, value, self.matrix.T, "matrix"),
                Tokens(value, self.protected + len(self.matrix)),
            )
            return tokens.restore(writer, _product(writer, groups, self.protected, back, self.matrix.shape[1]))

        return Tokens(values, self.protected + len(self.matrix), None, restore)


@dataclass(frozen=True, slots=True)
class KeyAverage:
    """Means of tokens whose keys are near one centroid, with soft borders: P depends on the image."""

    protected: int
    keys: str
    """Name of the value that holds the keys of the attention before, [batch, tokens, features]."""
    channels: tuple[int, int]
    """First and last feature that are keys."""
    centroids: Float64
    """[groups, channels]"""
    variance: float
    """Squared distances are divided by twice this number."""

    def __call__(self, writer: Writer, tokens: Tokens) -> Tokens:
        """Put the nodes behind the tokens, and return what is left."""
        count = tokens.count - self.protected
        keys = ir.convenience.create_value_mapping(writer.editor.graph, include_subgraphs=False)[self.keys]
        whole = keys.shape is None or keys.shape[-1] == self.channels[1] - self.channels[0]
        keys = keys if whole else writer.slice(keys, *self.channels, axis=2)
        own = _patches(writer, keys, self.protected, tokens.count)
        shape, groups = [_batch(keys), count, len(self.centroids)], len(self.centroids)
        logits = self._nearness(writer, own, count)
        part = _part(writer, logits, axis=2)
        # By logarithms, so that a group of next to nothing is still a mean of tokens.
        shares = writer.add("LogSoftmax", (logits,), {"axis": 2}, shape=shape)
        if tokens.sizes is not None:
            sizes = _patches(writer, tokens.sizes, self.protected, tokens.count)
            logarithm = writer.add("Log", (sizes,), shape=[_batch(sizes), count, 1])
            shares = writer.add("Add", (shares, logarithm), shape=shape)
        average = _part(writer, shares, axis=1)
        weights = _Weights(average, part, groups)
        return _soft(writer, tokens, self.protected, weights, self._sizes(writer, shares))

    def _sizes(self, writer: Writer, shares: ir.Value) -> ir.Value:
        """Return the sizes of all tokens afterwards, from the logarithms of what each token gives to each group."""
        batch, groups = _batch(shares), len(self.centroids)
        given = writer.add("Exp", (shares,), shape=shares.shape)
        sums = writer.add("ReduceSum", (given, writer.integers(1)), {"keepdims": 1}, shape=[batch, 1, groups])
        smallest = writer.constant(np.asarray(_SMALLEST_SIZE, np.float32), "smallest")
        totals = writer.add("Max", (sums, smallest), shape=sums.shape)
        column = writer.add("Transpose", (totals,), {"perm": (0, 2, 1)}, shape=[batch, groups, 1])
        if not self.protected:
            return column
        ones = writer.add(
            "Expand",
            (writer.constant(np.ones((1, 1, 1), np.float32), "one"), writer.batch_of(column, self.protected, 1)),
            shape=_resized(column, self.protected),
        )
        return _joined(writer, ones, column, self.protected + groups)

    def _nearness(self, writer: Writer, keys: ir.Value, count: int) -> ir.Value:
        """Return minus the squared distances to the centroids over 2 variance, but for a number for each key."""
        shape = [_batch(keys), count, len(self.centroids)]
        weight = writer.constant((self.centroids.T / self.variance).astype(np.float32), "centroids")
        lengths = -np.square(self.centroids).sum(axis=1) / (2 * self.variance)
        product = writer.add("MatMul", (_cast(writer, keys, _FULL), weight), shape=shape)
        return writer.add("Add", (product, writer.constant(lengths.astype(np.float32), "lengths")), shape=shape)


@dataclass(frozen=True, slots=True)
class LearnedAverage:
    """Means weighted by softmax over tokens of LN(X) W + B, with W and B to be trained."""

    protected: int
    weight: Array
    """W, [width, groups]."""
    bias: Array
    """B, [patches, groups]: what the place of a token says."""

    def __call__(self, writer: Writer, tokens: Tokens) -> Tokens:
        """Put the nodes behind the tokens, and return what is left."""
        own = _cast(writer, _patches(writer, tokens.values, self.protected, tokens.count), _FULL)
        width, groups = self.weight.shape
        scale = writer.constant(np.ones(width, np.float32), "scale")
        normal = writer.add("LayerNormalization", (own, scale), {"axis": -1, "epsilon": _EPSILON}, shape=own.shape)
        shape = _resized(own, len(self.bias), groups)
        weight = writer.editor.add_initializer(LEARNED_WEIGHT, self.weight.astype(np.float32))
        bias = writer.editor.add_initializer(LEARNED_BIAS, self.bias.astype(np.float32))
        logits = writer.add("Add", (writer.add("MatMul", (normal, weight), shape=shape), bias), shape=shape)
        average = _part(writer, logits, axis=1)
        one = _resized(own, len(self.bias), 1)
        sums = writer.add("ReduceSum", (average, writer.integers(2)), {"keepdims": 1}, shape=one)
        part = writer.add("Div", (average, sums), shape=shape)
        return _soft(writer, tokens, self.protected, _Weights(average, part, groups), None)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights that depend on the image, [batch, patches, groups]."""

    average: ir.Value
    """P transposed: its columns sum to 1."""
    part: ir.Value
    """How a token is put together again: its rows sum to 1."""
    groups: int


def _soft(writer: Writer, tokens: Tokens, protected: int, weights: _Weights, sizes: ir.Value | None) -> Tokens:
    """Return means of tokens with these weights; `sizes` are those of all tokens afterwards."""
    shape = [_batch(tokens.values), weights.groups, tokens.count - protected]
    turned = writer.add("Transpose", (weights.average,), {"perm": (0, 2, 1)}, shape=shape)
    matrix = _cast(writer, turned, tokens.values.dtype or _FULL)
    values = _product(writer, tokens, protected, matrix, weights.groups)

    def restore(writer: Writer, value: ir.Value) -> ir.Value:
        """Give each token a mean of the groups that it went to."""
        part = _cast(writer, weights.part, value.dtype or _FULL)
        groups = Tokens(value, protected + weights.groups)
        return tokens.restore(writer, _product(writer, groups, protected, part, tokens.count - protected))

    return Tokens(values, protected + weights.groups, sizes, restore)


def _product(writer: Writer, tokens: Tokens, protected: int, matrix: ir.Value, rows: int) -> ir.Value:
    """Return protected tokens, and behind them matrix [..., rows, patches] times the others."""
    own = _patches(writer, tokens.values, protected, tokens.count)
    kind = tokens.values.dtype or _FULL
    values = writer.add("MatMul", (matrix, own), shape=_resized(own, rows), dtype=kind)
    front = writer.slice(tokens.values, 0, protected) if protected else None
    return values if front is None else _joined(writer, front, values, protected + rows)


def _part(writer: Writer, logits: ir.Value, axis: int) -> ir.Value:
    return writer.add("Softmax", (logits,), {"axis": axis}, shape=logits.shape)


def _patches(writer: Writer, value: ir.Value, protected: int, count: int) -> ir.Value:
    return writer.slice(value, protected, count) if protected else value


def _joined(writer: Writer, front: ir.Value, rest: ir.Value, count: int) -> ir.Value:
    shape, kind = _resized(rest, count), rest.dtype or _FULL
    return writer.add("Concat", (front, rest), {"axis": 1}, shape=shape, dtype=kind)


def _cast(writer: Writer, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    if value.dtype in (None, dtype):
        return value
    return writer.add("Cast", (value,), {"to": int(dtype)}, shape=value.shape, dtype=dtype)


def _like(writer: Writer, value: ir.Value, array: Array, name: str) -> ir.Value:
    """Return a constant in the type of a value."""
    return writer.constant(array.astype((value.dtype or _FULL).numpy()), name)


def _column(sizes: Array) -> Array:
    return sizes.astype(np.float32).reshape(1, -1, 1)


def _batch(value: ir.Value) -> int | ir.SymbolicDim:
    return ir.SymbolicDim(None) if value.shape is None else value.shape[0]


def _resized(value: ir.Value, *sizes: int) -> Sequence[int | ir.SymbolicDim] | None:
    """Return the shape of a value [batch, tokens, width] with another number of tokens, and of width where given."""
    if value.shape is None:
        return None
    return [value.shape[0], *sizes, *list(value.shape)[1 + len(sizes) :]]
