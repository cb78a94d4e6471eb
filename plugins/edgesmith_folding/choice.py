"""Chooses blocks by a score, measured on calibration data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith.progress import Progress
from edgesmith_calibration.sources import DataSource
from edgesmith_folding.finding.places import Place, runs
from edgesmith_folding.options.removal import RemoveBlocksOptions
from edgesmith_folding.running.judge import Judge
from edgesmith_folding.running.streams import Streams
from edgesmith_folding.scores.greedy import best_runs, greedy, lowest
from edgesmith_folding.scores.ranks import kendall_tau


@dataclass(frozen=True, slots=True)
class Ground:
    """What blocks are chosen on."""

    model: ir.Model
    places: Mapping[int, Place]
    """All blocks of the graph by number."""
    candidates: Mapping[int, Place]
    """Those that may go."""
    count: int
    """How many go."""
    data: DataSource
    judge: Judge
    streams: Streams
    progress: Progress
    seed: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Which blocks go."""

    blocks: tuple[int, ...]
    remark: str = ""
    """What they were worth."""
    gates: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """Gates of branches by number of block and of residual connection; none where none were trained."""


def draw(candidates: Mapping[int, Place], count: int, seed: int) -> Choice:
    """Return blocks drawn at random."""
    drawn = np.random.default_rng(seed).permutation(sorted(candidates))[:count]
    return Choice(tuple(sorted(int(number) for number in drawn)), "They were drawn at random.")


def choose(options: RemoveBlocksOptions, ground: Ground) -> Choice:
    """Return which blocks go, and what they were worth.

    Raises:
        StepError: The score needs the loss of a language model, and the graph is none.
    """
    candidates, count, streams = ground.candidates, ground.count, ground.streams
    if options.score == "random":
        return draw(candidates, count, ground.seed)
    if options.score == "angular":
        return _by_angle(ground)
    if options.score == "block-influence":
        return _lowest("Block influence", streams.influences(list(candidates.values())), count)
    if options.score == "perplexity":
        return _lowest("Loss without each", ground.judge.losses_without((), candidates), count)
    if options.score == "taylor":
        return _lowest("Taylor score", _importances(options, ground), count)
    if options.score == "gates":
        return _by_gates(options, ground)
    order, _ = _sleb(options, ground)
    return Choice(tuple(sorted(order)), "Loss after each removal: " + _listed(order) + ".")


def _by_angle(ground: Ground) -> Choice:
    """Return the run of least angular distance; where none is as long as what goes, the fewest of the least sum."""
    longest = max(len(run) for run in runs(ground.candidates, ground.candidates))
    lengths = [ground.count] if ground.count <= longest else range(1, longest + 1)
    distances = ground.streams.distances(ground.candidates, lengths)
    found = best_runs(distances, ground.count)
    listed = ", ".join(f"blocks {run[0]} to {run[-1]} {distances[run]:.4f}" for run in found)
    return Choice(tuple(number for run in found for number in run), f"Angular distance: {listed}.")


def _lowest(what: str, scores: Mapping[int, float], count: int) -> Choice:
    chosen = lowest(scores, count)
    return Choice(tuple(sorted(chosen)), f"{what}: " + _listed({each: scores[each] for each in chosen}) + ".")


def _sleb(options: RemoveBlocksOptions, ground: Ground) -> tuple[dict[int, float], list[int]]:
    """Return the blocks that SLEB removes with the loss after each, and all candidates in its order."""
    few = options.score == "sleb" and options.candidates is not None and len(ground.candidates) > options.candidates
    blocks = list(ground.candidates.values())
    streams = replace(ground.streams, data=ground.data.take(options.score_samples))
    influences = streams.influences(blocks) if few else dict.fromkeys(ground.candidates, 0.0)
    latest: dict[int, float] = {}

    def losses_without(removed: tuple[int, ...]) -> Mapping[int, float]:
        left = {each: influences[each] for each in ground.candidates if each not in removed}
        tried = lowest(left, options.candidates or len(left)) if few else tuple(left)
        latest.clear()
        latest.update(ground.judge.losses_without(removed, tried))
        return latest

    order = dict(greedy(ground.count, losses_without))
    rest = [number for number in lowest(latest, len(latest)) if number not in order]
    return order, [*order, *rest]


def _by_gates(options: RemoveBlocksOptions, ground: Ground) -> Choice:
    from edgesmith_folding.training.gates import GateTraining, block_gates, train_gates

    pinned = {number: place for number, place in ground.places.items() if number not in ground.candidates}
    output = None if ground.judge.language_model is None else ground.judge.language_model[1]
    plan = GateTraining(
        steps=options.gate_steps,
        learning_rate=options.gate_rate,
        budget=1 - ground.count / len(ground.places),
        batch_size=options.batch_size,
        seed=ground.seed,
        threads=ground.streams.threads,
    )
    opened = train_gates(ground.model, ground.candidates, pinned, ground.data, output, plan, ground.progress)
    worth = block_gates(opened)
    chosen = tuple(sorted(lowest(worth, ground.count)))
    order, ranking = _sleb(options, ground)
    tau = kendall_tau(lowest(worth, len(worth)), ranking)
    remark = (
        f"Gates: {_listed({each: worth[each] for each in chosen})}. Kendall's tau of their order against SLEB's: "
        f"{tau:.2f}. Loss without these blocks {ground.judge.loss(chosen):.4g}, without SLEB's "
        f"({', '.join(map(str, sorted(order)))}) {ground.judge.loss(tuple(order)):.4g}."
    )
    kept = {(branch.block, branch.residual): gate for branch, gate in opened.items() if branch.block not in chosen}
    return Choice(chosen, remark, kept)


def _importances(options: RemoveBlocksOptions, ground: Ground) -> Mapping[int, float]:
    from edgesmith_folding.training.importance import importances

    if ground.judge.language_model is None:
        raise StepError(
            "the score taylor needs the loss of a language model, and the graph predicts no next token",
            expected="a causal language model whose logits stand at each position",
            why="gradients of the distance from a network's own outputs are zero",
            fix="choose another score, such as sleb",
        )
    data = ground.data.take(options.score_samples)
    return importances(
        ground.model,
        ground.candidates,
        data,
        ground.judge.language_model,
        batch_size=options.batch_size,
        threads=ground.streams.threads,
    )


def _listed(scores: Mapping[int, float]) -> str:
    return ", ".join(f"block {number} {score:.4g}" for number, score in scores.items())
