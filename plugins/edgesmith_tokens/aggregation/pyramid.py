"""Builds the pyramid of one stream, place by place: each looks at what the places before it leave."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from edgesmith.data import required_data
from edgesmith.execution.observe import observe
from edgesmith.graph.edit import GraphEditor, set_initializer
from edgesmith.graph.outputs import float_outputs
from edgesmith.host.context import Context
from edgesmith_calibration.observers import Observer
from edgesmith_calibration.sources import DataSource
from edgesmith_tokens.aggregation.cells import Grid, cell_labels, coarser_grid
from edgesmith_tokens.aggregation.clusters import Labels, k_means, random_groups, spread
from edgesmith_tokens.aggregation.matrices import Float64, averaging, principal
from edgesmith_tokens.aggregation.places import Place, grid_of, keys_before
from edgesmith_tokens.aggregation.reducers import (
    LEARNED_BIAS,
    LEARNED_WEIGHT,
    FixedAverage,
    FixedProjection,
    KeyAverage,
    LearnedAverage,
)
from edgesmith_tokens.aggregation.statistics import SampleObserver, TokenGramObserver
from edgesmith_tokens.finding.vision import VisionStream
from edgesmith_tokens.options.aggregation import AggregateTokensOptions
from edgesmith_tokens.tokens.reduction import Reducer, reduce_tokens

ObserverT = TypeVar("ObserverT", bound=Observer)

# Keys that centroids are found among; with 384 channels they take 24 MiB.
_MOST_KEYS = 8192
# Logit of a token outside of a cell, where training starts: such a token weighs e^-10 of one inside.
_OUTSIDE = -10.0


class Pyramid:
    """The places of one stream where tokens become fewer.

    Args:
        model: The graph; not changed.
        vision: The stream.
        places: Where, in the order of the data.
        context: Options, data and seed.
    """

    def __init__(
        self,
        model: ir.Model,
        vision: VisionStream,
        places: Sequence[Place],
        context: Context[AggregateTokensOptions],
    ) -> None:
        self._model, self._vision, self._places, self._context = model, vision, places, context
        self._options = context.options
        self._reducers: dict[str, Reducer] = {}
        self._patches = vision.tokens - vision.protected
        """Patch tokens behind the places so far."""
        self._sizes: Float64 = np.ones(self._patches)
        self._cells = self._grid = grid_of(vision, context.options)
        if self._grid is None and self._options.form == "attention-guided":
            # Groups then start as runs of patches, row by row.
            self._cells = self._grid = Grid(1, self._patches)

    def build(self) -> ir.Model:
        """Return the graph with fewer tokens."""
        for place in self._places:
            groups = max(round(self._patches * place.share), 1)
            if groups < self._patches:
                self._reducers[place.value] = self._reducer(place, groups)
        result, counts = self._reduced()
        GraphEditor(result.graph).remove_unused([node for node in result.graph if not node.outputs[0].uses()])
        parts = [f"{count} x {len(list(same))}" for count, same in groupby(counts)]
        self._context.notes.remark(f"Tokens x blocks ({self._options.form}): {', '.join(parts)}.")
        if self._options.form == "learned" and self._reducers:
            self._train(result)
        return result

    def _reduced(self) -> tuple[ir.Model, tuple[int, ...]]:
        """Return the graph with the places so far, and the tokens of each block."""
        result = self._model.clone()
        counts = reduce_tokens(result, self._vision, self._reducers, proportional=self._options.sized)
        return result, counts

    def _reducer(self, place: Place, groups: int) -> Reducer:
        """Return what to do at a place, and remember what leaves it."""
        form, protected = self._options.form, self._vision.protected
        if form == "pca":
            self._patches = groups
            return FixedProjection(protected, principal(self._gram(place), groups))
        if form == "attention-guided":
            return self._key_average(place, groups)
        labels = self._labels(place, groups)
        matrix, self._sizes = averaging(labels, self._sizes)
        self._patches = len(matrix)
        if form == "learned":
            bias = np.where(matrix.T > 0, 0.0, _OUTSIDE)
            return LearnedAverage(protected, np.zeros((self._vision.width, self._patches)), bias)
        return FixedAverage(protected, labels, matrix, self._sizes if self._options.sized else None)

    def _labels(self, place: Place, groups: int) -> Labels:
        """Return the group of each patch token that arrives at a place."""
        form, seed = self._options.form, self._context.seed
        if form == "random":
            return random_groups(self._patches, groups, seed)
        if form == "cluster" or self._grid is None or self._cells is None:
            return k_means(self._gram(place), groups, seed).labels
        before, first = self._cells, self._cells is self._grid
        self._cells = coarser_grid(before, groups, self._grid)
        labels, patches = cell_labels(before, self._cells), self._vision.patches
        # Protected patches leave numbers that are none of the cells.
        return labels[list(patches)] if first and sorted(patches) == list(range(len(labels))) else labels

    def _gram(self, place: Place) -> Float64:
        """Return E[X X^T] of the patch tokens that arrive at a place."""
        make = partial(TokenGramObserver, protected=self._vision.protected)
        return self._observe(place.value, make).matrix / len(self._data)

    def _key_average(self, place: Place, groups: int) -> KeyAverage:
        protected, options = self._vision.protected, self._options
        found = keys_before(self._model, self._vision, place.block) if options.metric == "keys" else None
        name, channels = found or (None, None)
        width = self._vision.width if channels is None else channels[1] - channels[0]
        if options.rounds:
            start, _ = averaging(self._labels(place, groups), np.ones(self._patches))
            self._patches = len(start)
            return KeyAverage(protected, name, channels, width, start, options.rounds, options.temperature)
        seed = self._context.seed
        sample = partial(SampleObserver, rows=_MOST_KEYS, seed=seed, protected=protected, channels=channels)
        keys = self._observe(name or place.value, sample).rows
        clusters = k_means(keys, groups, seed)
        self._patches = groups
        variance = options.temperature or spread(keys, clusters)
        return KeyAverage(protected, name, channels, width, clusters.centers, 0, variance)

    def _observe(self, value: str, make: Callable[[str], ObserverT]) -> ObserverT:
        """Return what calibration data makes of a value behind the places so far."""
        observed = observe(
            self._reduced()[0] if self._reducers else self._model,
            [value],
            self._data,
            make,
            batch_size=self._options.batch_size,
            threads=self._context.threads,
            progress=self._context.progress,
        )
        return observed[value]

    @property
    def _data(self) -> DataSource:
        data = required_data(self._context.calibration, "aggregating tokens", why="this form looks at its tokens")
        return data.take(self._options.samples)

    def _train(self, result: ir.Model) -> None:
        """Train the weights of all places to give the features of the model that came in."""
        from edgesmith_tokens.training import Feature, Regime, train_features

        options, graph = self._options, result.graph
        made = (name for name in graph.initializers if name not in self._model.graph.initializers)
        names = [name for name in made if name.startswith((LEARNED_WEIGHT, LEARNED_BIAS))]
        features = [Feature(name) for name in float_outputs(graph)]
        known = {feature.name for feature in features}
        first = min(place.block for place in self._places if place.value in self._reducers)
        blocks = (block for block in self._vision.blocks if block.number >= first and block.output not in known)
        features += [Feature(block.output, self._vision.protected) for block in blocks]
        regime = Regime(
            options.epochs,
            60 * options.minutes,
            options.learning_rate,
            options.batch_size,
            options.held_out,
            self._context.seed,
            self._context.threads,
        )
        outcome = train_features(result, names, self._model, features, self._data, regime, self._context.progress)
        for name, array in outcome.weights.items():
            set_initializer(graph.initializers[name], array)
        self._context.notes.remark(
            f"Trained for {outcome.steps} steps: the error of features on {outcome.samples} samples held out fell from "
            f"{outcome.before:.2%} to {outcome.after:.2%}."
        )
