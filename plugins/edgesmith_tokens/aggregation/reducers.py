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
# Keys that differ by less than this share of their square are the same: what float32 rounds.
_SAME = 1e-6
_FULL = ir.DataType.FLOAT

SOFTNESS = 0.1
"""How soft borders of groups are, as a share of the mean squared distance of keys to the first centers."""

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
            column = np.concatenate([np.ones(self.protected), self.sizes]).astype(np.float32)
            sizes = writer.constant(column.reshape(1, -1, 1), "sizes")
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
            back = _like(writer, value, self.matrix.T, "matrix")
            groups = Tokens(value, self.protected + len(self.matrix))
            return tokens.restore(writer, _product(writer, groups, self.protected, back, self.matrix.shape[1]))

        return Tokens(values, self.protected + len(self.matrix), None, restore)


@dataclass(frozen=True, slots=True)
class KeyAverage:
    """Means of tokens whose keys are near one centroid, with soft borders: P depends on the image."""

    protected: int
    keys: str | None
    """Name of the value that holds the keys of the attention before, [batch, tokens, features]; None: the tokens."""
    channels: tuple[int, int] | None
    """First and last feature that are keys; None for all."""
    width: int
    """Number of features that are compared."""
    start: Float64
    """Centroids [groups, channels], or with rounds, what makes the first ones of an image's keys [groups, patches]."""
    rounds: int
    """Rounds of soft k-means on the keys of the image; 0: centroids are the same for all images."""
    variance: float | None
    """Squared distances are divided by twice this number; None: a share of the image's own, with rounds only."""

    def __call__(self, writer: Writer, tokens: Tokens) -> Tokens:
        """Put the nodes behind the tokens, and return what is left."""
        count, groups = tokens.count - self.protected, len(self.start)
        keys = self._keys(writer, tokens)
        size = None
        if tokens.sizes is not None:
            sizes = _patches(writer, tokens.sizes, self.protected, tokens.count)
            size = writer.add("Log", (sizes,), shape=[_batch(sizes), count, 1])
        shape = [_batch(keys), count, groups]
        keys, centers = self._scaled(writer, keys)
        for last in [*[False] * (self.rounds - 1), True]:
            logits = self._logits(writer, keys, centers, count)
            # By logarithms, so that a group of next to nothing is still a mean of tokens.
            shares = writer.add("LogSoftmax", (logits,), {"axis": 2}, shape=shape)
            if size is not None:
                shares = writer.add("Add", (shares, size), shape=shape)
            average = _part(writer, shares, axis=1)
            if not last:
                turned = _turned(writer, average, groups, count)
                centers = writer.add("MatMul", (turned, keys), shape=_resized(keys, groups))
        weights = _Weights(average, _part(writer, logits, axis=2), groups)
        return _soft(writer, tokens, self.protected, weights, self._sizes(writer, shares))

    def _keys(self, writer: Writer, tokens: Tokens) -> ir.Value:
        """Return what tokens are compared by, in float32."""
        keys = tokens.values
        if self.keys is not None:
            keys = ir.convenience.create_value_mapping(writer.editor.graph, include_subgraphs=False)[self.keys]
        if self.channels is not None and (keys.shape is None or keys.shape[-1] != self.channels[1] - self.channels[0]):
            keys = writer.slice(keys, *self.channels, axis=2)
        return writer.cast(_patches(writer, keys, self.protected, tokens.count), _FULL)

    def _scaled(self, writer: Writer, keys: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return keys and the first centers, moved and scaled so that the variance is 1: small numbers suit float16."""
        groups = len(self.start)
        if not self.rounds:
            middle, scale = self.start.mean(axis=0), (self.variance or 1.0) ** -0.5
            moved = writer.add("Sub", (keys, _stored(writer, middle)), shape=keys.shape)
            scaled = writer.add("Mul", (moved, _stored(writer, scale)), shape=keys.shape)
            return scaled, _stored(writer, (self.start - middle) * scale)
        middle = _mean(writer, keys, 1, [_batch(keys), 1, self.width])
        moved = writer.add("Sub", (keys, middle), shape=keys.shape)
        centers = writer.add("MatMul", (_stored(writer, self.start), moved), shape=_resized(keys, groups))
        factor = self._scale(writer, moved, centers) if self.variance is None else _stored(writer, self.variance**-0.5)
        scaled = writer.add("Mul", (moved, factor), shape=keys.shape)
        return scaled, writer.add("Mul", (centers, factor), shape=centers.shape)

    def _scale(self, writer: Writer, keys: ir.Value, centers: ir.Value) -> ir.Value:
        """Return 1 / standard deviation [batch, 1, 1], from how far keys are from the first centers.

        These are means of groups of n of N keys, so the mean squared distance is mean |k|^2 - sum n / N |c|^2.
        """
        batch, (groups, count) = _batch(keys), self.start.shape
        shape = [batch, 1, 1]
        energies = []
        for each, tokens in ((keys, count), (centers, groups)):
            squares = writer.add("Mul", (each, each), shape=each.shape)
            energies.append(_mean(writer, squares, 2, [batch, tokens, 1]))
        mean = _mean(writer, energies[0], 1, shape)
        shares = (self.start > 0).sum(axis=1)[:, None] / count
        weighed = writer.add("Mul", (energies[1], _stored(writer, shares)), shape=energies[1].shape)
        between = writer.add("ReduceSum", (weighed, writer.integers(1)), {"keepdims": 1}, shape=shape)
        spread = writer.add("Sub", (mean, between), shape=shape)
        # An image of one colour has keys that do not differ; then all groups are equally near.
        floor = writer.add("Mul", (mean, _stored(writer, _SAME)), shape=shape)
        least = writer.add("Max", (spread, floor, _stored(writer, _SAME)), shape=shape)
        inverse = writer.add("Div", (_stored(writer, 1 / (SOFTNESS * self.width)), least), shape=shape)
        return writer.add("Sqrt", (inverse,), shape=shape)

    def _logits(self, writer: Writer, keys: ir.Value, centers: ir.Value, count: int) -> ir.Value:
        """Return minus half the squared distances to centers, but for a number for each key."""
        batch, groups = _batch(keys), len(self.start)
        shape = [batch, count, groups]
        product = writer.add("MatMul", (keys, _turned(writer, centers, self.width, groups)), shape=shape)
        squares = writer.add("Mul", (centers, centers), shape=centers.shape)
        lengths = writer.add("ReduceSum", (squares, writer.integers(2)), {"keepdims": 1}, shape=[batch, groups, 1])
        half = writer.add("Mul", (lengths, _stored(writer, 0.5)), shape=[batch, groups, 1])
        return writer.add("Sub", (product, _turned(writer, half, 1, groups)), shape=shape)

    def _sizes(self, writer: Writer, shares: ir.Value) -> ir.Value:
        """Return the sizes of all tokens afterwards, from the logarithms of what each token gives to each group."""
        batch, groups = _batch(shares), len(self.start)
        given = writer.add("Exp", (shares,), shape=shares.shape)
        sums = writer.add("ReduceSum", (given, writer.integers(1)), {"keepdims": 1}, shape=[batch, 1, groups])
        totals = writer.add("Max", (sums, _stored(writer, _SMALLEST_SIZE)), shape=sums.shape)
        column = _turned(writer, totals, groups, 1)
        if not self.protected:
            return column
        one = writer.constant(np.ones((1, 1, 1), np.float32), "one")
        shape = writer.batch_of(column, self.protected, 1)
        ones = writer.add("Expand", (one, shape), shape=_resized(column, self.protected))
        return _joined(writer, ones, column, self.protected + groups)


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
        own = writer.cast(_patches(writer, tokens.values, self.protected, tokens.count), _FULL)
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
    turned = _turned(writer, weights.average, weights.groups, tokens.count - protected)
    matrix = writer.cast(turned, tokens.values.dtype or _FULL)
    values = _product(writer, tokens, protected, matrix, weights.groups)

    def restore(writer: Writer, value: ir.Value) -> ir.Value:
        """Give each token a mean of the groups that it went to."""
        part = writer.cast(weights.part, value.dtype or _FULL)
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


def _turned(writer: Writer, value: ir.Value, rows: int, columns: int) -> ir.Value:
    """Return the transposed matrices of a batch, [batch, rows, columns]."""
    return writer.add("Transpose", (value,), {"perm": (0, 2, 1)}, shape=[_batch(value), rows, columns])


def _part(writer: Writer, logits: ir.Value, axis: int) -> ir.Value:
    return writer.add("Softmax", (logits,), {"axis": axis}, shape=logits.shape)


def _patches(writer: Writer, value: ir.Value, protected: int, count: int) -> ir.Value:
    return writer.slice(value, protected, count) if protected else value


def _joined(writer: Writer, front: ir.Value, rest: ir.Value, count: int) -> ir.Value:
    shape, kind = _resized(rest, count), rest.dtype or _FULL
    return writer.add("Concat", (front, rest), {"axis": 1}, shape=shape, dtype=kind)


def _like(writer: Writer, value: ir.Value, array: Array, name: str) -> ir.Value:
    """Return a constant in the type of a value."""
    return writer.constant(array.astype((value.dtype or _FULL).numpy()), name)


def _stored(writer: Writer, numbers: Array | float) -> ir.Value:
    """Return a constant in float32; a matrix as a batch of one."""
    whole = np.asarray(numbers, np.float32)
    return writer.constant(whole[None] if whole.ndim == 2 else whole)


def _mean(writer: Writer, value: ir.Value, axis: int, shape: Sequence[int | ir.SymbolicDim] | None) -> ir.Value:
    """Return the mean along an axis, which stays."""
    return writer.add("ReduceMean", (value, writer.integers(axis)), {"keepdims": 1}, shape=shape)


def _batch(value: ir.Value) -> int | ir.SymbolicDim:
    return ir.SymbolicDim(None) if value.shape is None else value.shape[0]


def _resized(value: ir.Value, *sizes: int) -> Sequence[int | ir.SymbolicDim] | None:
    """Return the shape of a value [batch, tokens, width] with another number of tokens, and of width where given."""
    if value.shape is None:
        return None
    return [value.shape[0], *sizes, *list(value.shape)[1 + len(sizes) :]]
