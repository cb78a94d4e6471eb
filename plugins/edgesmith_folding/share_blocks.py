"""The method `share-blocks`: neighbouring blocks use one set of weights, so that it is stored once."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError
from edgesmith.execution.segments import SegmentedRun
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.linear import Linear
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Method
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith_calibration.moments import MomentsObserver
from edgesmith_folding.calibration import calibration_data
from edgesmith_folding.finding.places import find_places
from edgesmith_folding.options.sharing import ShareBlocksOptions
from edgesmith_folding.running.chain import BlockChain
from edgesmith_folding.running.judge import Judge
from edgesmith_folding.sharing.formulas import mean_layer, metric, weighted_layer
from edgesmith_folding.sharing.groups import Sharer, choose_groups, find_sharers, left_out, rows_of
from edgesmith_folding.sharing.partition import best_partition
from edgesmith_folding.sharing.swaps import Pair, swap_costs
from edgesmith_folding.sharing.write import layer_matrix, share

SharingContext = Context[ShareBlocksOptions]
Float64 = NDArray[np.float64]


class ShareBlocks(Method[ShareBlocksOptions]):
    """Lets blocks share the weights of their attention and MLP; norms stay private."""

    def check(self, model: Model, context: SharingContext) -> Verdict:
        """Return whether there are blocks that can share, and what the options need."""
        options, data = context.options, context.calibration
        if not options.shares:
            return Verdict.skip("a group of one block shares nothing; set group_size to 2 or more")
        if options.needs.data and not data:
            return Verdict.refuse(
                "weighted weights and losses look at calibration data; pass it with --data, or set weights to mean or "
                "first and grouping to neighbours"
            )
        try:
            groups, sharers = _groups(model.ir, options)
        except EdgesmithError as error:
            return Verdict.refuse(f"{error.what}; {error.fix}")
        if not groups:
            return Verdict.skip(_why_none(options, sharers))
        return Verdict.ok(
            nodes=tuple(linear.node for group in groups for each in group for linear in sharers[each].linears)
        )

    def apply(self, model: Model, context: SharingContext) -> Model:
        """Return the model with shared weights.

        Raises:
            DataError: There is no calibration data, or it makes an activation infinite or NaN.
            StepError: A group that is named cannot share.
        """
        options, shared = context.options, model.ir.clone()
        groups, sharers = _groups(shared, options)
        if groups and options.measures:
            groups = _by_loss(model.ir, sharers, context)
        if not groups:
            return model.with_ir(shared)
        before = _weight_bytes(shared.graph)
        editor = GraphEditor(shared.graph)
        layers = [[sharers[number].linears for number in group] for group in groups]
        statistics = _statistics(model.ir, layers, context) if options.needs.data else iter([{}] * len(groups))
        for group, members, grams in zip(groups, layers, statistics, strict=True):
            for index, linears in enumerate(zip(*members, strict=True)):
                matrices = [layer_matrix(shared.graph, linear) for linear in linears]
                matrix, own = None, None
                if options.weights == "mean":
                    matrix = mean_layer(matrices)
                elif options.weights == "weighted":
                    own = [grams[linear.input] for linear in linears]
                    biases = [linear.bias is not None for linear in linears]
                    matrix = _weighted(matrices, own, biases, private=options.correction_rank > 0)
                name = f"shared.blocks_{group[0]}_to_{group[-1]}.layer_{index}"
                share(editor, linears, matrix, name=name, correction_rank=options.correction_rank, grams=own)
        context.notes.remark(
            f"Groups that share: {'; '.join(', '.join(map(str, group)) for group in groups)}. Stored weights: "
            f"{before / 2**20:.1f} to {_weight_bytes(shared.graph) / 2**20:.1f} MiB."
        )
        private = {} if options.groups is not None else left_out(options, sharers, groups)
        if private:
            reasons = "; ".join(f"block {number}: {reason}" for number, reason in private.items())
            context.notes.remark(f"Blocks in the middle that stay private: {reasons}.")
        return model.with_ir(shared)


def _groups(model: ir.Model, options: ShareBlocksOptions) -> tuple[tuple[tuple[int, ...], ...], dict[int, Sharer]]:
    places = {place.number: place for place in find_places(model, find_structure(model))}
    sharers = find_sharers(model, places)
    return choose_groups(options, sharers), sharers


def _by_loss(model: ir.Model, sharers: Mapping[int, Sharer], context: SharingContext) -> tuple[tuple[int, ...], ...]:
    """Return as many sets of weights as neighbours in turn would leave, in groups that cost least.

    A group costs what the loss rises by when each of its other blocks alone runs with the weights of its first.
    """
    options = context.options
    structure = find_structure(model)
    data = calibration_data(model, structure.attentions, context, options.score_samples)
    places = find_places(model, structure)
    chain = BlockChain(model, places, threads=context.threads)
    judge = Judge(model, structure, chain, data, batch_size=len(data), tokens=options.score_tokens)
    found: list[tuple[int, ...]] = []
    total, largest = 0.0, options.group_size + 1
    for row in rows_of(options, sharers):
        near = frozenset((one, other) for one in row for other in row if 0 < other - one < largest)
        costs = swap_costs(model, sharers, near, judge)

        def cost(start: int, stop: int, row: tuple[int, ...] = row, costs: Mapping[Pair, float] = costs) -> float:
            return sum(costs.get((row[start], other), math.inf) for other in row[start + 1 : stop])

        cut = best_partition(len(row), -(-len(row) // options.group_size), largest, cost)
        found += [row[start:stop] for start, stop in cut if stop - start > 1]
        total += sum(cost(start, stop) for start, stop in cut)
    context.notes.remark(f"Groups are those of the least sum of losses that single blocks cause: {total:.4g}.")
    return tuple(found)


def _why_none(options: ShareBlocksOptions, sharers: Mapping[int, Sharer]) -> str:
    if not sharers:
        return "the graph has no residual stream with blocks"
    obstacles = [sharer.obstacle for sharer in sharers.values() if sharer.obstacle]
    if obstacles:
        return f"no {options.group_size} neighbouring blocks can share; {obstacles[0]}"
    reasons = "".join(f"; block {number}: {reason}" for number, reason in left_out(options, sharers, ()).items())
    return (
        f"no {options.group_size} neighbouring blocks compute the same between the first {options.keep_first} and the "
        f"last {options.keep_last}; lower keep_first, keep_last or group_size{reasons}"
    )


def _statistics(
    model: ir.Model, layers: Sequence[Sequence[Sequence[Linear]]], context: SharingContext
) -> Iterator[dict[str, Float64]]:
    """Yield for each group the Gram matrix, [inputs + 1, inputs + 1], of each value that its layers read."""
    options = context.options
    data = calibration_data(model, find_structure(model).attentions, context, options.samples)
    stops = [[linear.input for linears in group for linear in linears] for group in layers]
    run = SegmentedRun(
        model, stops, data, scratch=context.scratch, batch_size=options.batch_size, threads=context.threads
    )
    for names in stops:
        observers = {name: MomentsObserver(name) for name in names}
        for values in run.advance():
            for name, observer in observers.items():
                rows = values[name].reshape(-1, values[name].shape[-1])
                observer.update(rows, rows[:, :0])
        yield {name: observer.moments.gram for name, observer in observers.items()}


def _weighted(
    matrices: Sequence[Float64], grams: Sequence[Float64], biases: Sequence[bool], *, private: bool
) -> Float64:
    """Return what layers share; where biases stay private, weights of the least error behind the best of them."""
    if all(biases) and not private:
        return weighted_layer(matrices, grams)
    metrics = [metric(gram, has_bias=has_bias) for gram, has_bias in zip(grams, biases, strict=True)]
    weights = weighted_layer([matrix[:-1] for matrix in matrices], metrics)
    return np.vstack([weights, np.zeros((1, weights.shape[1]))])


def _weight_bytes(graph: ir.Graph) -> int:
    """Return the bytes of all initializers."""
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
