"""One layer: chooses what goes and what the rest becomes, and takes for each output what has the least error."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.damping import damped
from edgesmith_pruning.sparsity.blocked import sweep
from edgesmith_pruning.sparsity.elimination import eliminate
from edgesmith_pruning.sparsity.masks import Mask, Pattern, removed_count, select
from edgesmith_pruning.sparsity.refit import adaptive_target, refit
from edgesmith_pruning.sparsity.sampler import candidate_masks
from edgesmith_pruning.sparsity.scores import magnitude, wanda
from edgesmith_pruning.statistics.paired import Objective, PairedMoments

Float64 = NDArray[np.float64]
Criterion = Literal["knowledge-retention", "sparsegpt", "wanda", "magnitude", "randomized"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How layers are made sparse."""

    criterion: Criterion
    sparsity: float
    pattern: Pattern | None
    adaptive_hessian: bool = True
    """Use inputs of the network as pruned so far; otherwise those of the dense one."""
    adaptive_weight: bool = True
    """Aim at dense weights that make up for the error of the inputs."""
    refit: bool = True
    """Fit what stays by least squares, where that lowers the error."""
    damping: float = 0.03
    exact_width: int = 1024
    """Widest layer whose weights are removed one by one."""
    candidates: int = 4
    """Masks that are sampled for each layer."""
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sparse:
    """A layer after pruning. Errors are over the calibration data, relative to the squares of the dense outputs."""

    weight: Float64
    mask: Mask
    error: float
    plain_error: float
    """The same without adaptation and refit."""
    damping: float
    """What was used, after raising it where there were few inputs."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """The rows of one layer that may lose weights."""

    weight: Float64
    moments: PairedMoments
    objective: Objective
    hessian: Float64
    """Damped moments that weights are chosen by."""
    removed: Mask
    stays: Mask
    rule: Rule

    def solution(self, weight: Float64, mask: Mask) -> "_Solution":
        return _Solution(weight, mask, self.objective.errors(weight))


@dataclass(frozen=True, slots=True)
class _Solution:
    weight: Float64
    mask: Mask
    errors: Float64
    """Of each output, [outputs]."""

    def or_better(self, other: "_Solution") -> "_Solution":
        """Return for each output the weights with the lower error."""
        take = other.errors < self.errors
        return _Solution(
            np.where(take[:, None], other.weight, self.weight),
            np.where(take[:, None], other.mask, self.mask),
            np.where(take, other.errors, self.errors),
        )


def prune_layer(weight: NDArray[Any], moments: PairedMoments, rule: Rule, stays: Mask | None = None) -> Sparse:
    """Return the layer with its zeros.

    Args:
        weight: [outputs, inputs]. Weights that are 0 stay so, and count among those to remove.
        moments: Statistics of its inputs; without their means where the bias may take these up.
        rule: How.
        stays: Weights that must not be removed. Outputs that keep all of theirs do not change at all.
    """
    dense = weight.astype(np.float64)
    stays = np.zeros(dense.shape, bool) if stays is None else stays
    rows = ~stays.all(axis=1)
    damping = rule.damping * max(1.0, 4 * dense.shape[1] / max(moments.rows, 1))
    dead = np.diag(moments.now) <= 0
    problem = _Problem(
        weight=dense[rows],
        moments=moments,
        objective=moments.objective(dense[rows]),
        hessian=damped(moments.now if rule.adaptive_hessian else moments.dense, damping),
        removed=((dense == 0) | dead)[rows] & ~stays[rows],
        stays=stays[rows],
        rule=rule,
    )
    plain, chosen = _solved(problem, damped(moments.now, damping), damped(moments.dense, damping))
    values, zeros = dense.copy(), np.zeros(dense.shape, bool)
    values[rows], zeros[rows] = chosen.weight, chosen.mask
    power = float(problem.objective.powers.sum()) or 1.0
    return Sparse(values, zeros, float(chosen.errors.sum()) / power, float(plain.errors.sum()) / power, damping)


def _solved(problem: _Problem, now: Float64, dense: Float64) -> tuple["_Solution", "_Solution"]:
    """Return the weights without adaptation, and those of least error."""
    rule = problem.rule
    target = adaptive_target(problem.weight, problem.moments, now) if rule.adaptive_weight else problem.weight
    plain = problem.solution(*_removed(problem, dense))
    best = plain
    if rule.criterion == "knowledge-retention":
        best = best.or_better(problem.solution(*_retained(problem, target)))
    if rule.refit:
        best = best.or_better(problem.solution(refit(best.weight, best.mask, now, target), best.mask))
    return plain, best


def _retained(problem: _Problem, target: Float64) -> tuple[Float64, Mask]:
    """Return adaptive dense weights after removal: one by one where the layer is narrow, in one sweep otherwise."""
    rule, inputs = problem.rule, target.shape[1]
    if inputs > rule.exact_width:
        return _swept(problem, target, problem.hessian, whole=False)
    sparsity = rule.sparsity if rule.pattern is None else rule.pattern.sparsity
    counts = np.full(len(target), removed_count(inputs, sparsity))
    return eliminate(
        target,
        problem.hessian,
        counts,
        pattern=rule.pattern,
        removed=problem.removed,
        stays=problem.stays,
        threads=rule.threads,
    )


def _removed(problem: _Problem, dense: Float64) -> tuple[Float64, Mask]:
    """Return the weights after removal as published, without adaptation."""
    criterion, weight = problem.rule.criterion, problem.weight
    if criterion == "knowledge-retention":
        return _swept(problem, weight, dense, whole=False)
    if criterion == "sparsegpt":
        return _swept(problem, weight, problem.hessian, whole=True)
    mask = _masks(problem)
    return np.where(mask, 0, weight), mask


def _swept(problem: _Problem, target: Float64, hessian: Float64, *, whole: bool) -> tuple[Float64, Mask]:
    rule = problem.rule
    return sweep(
        target,
        hessian,
        rule.sparsity,
        pattern=rule.pattern,
        whole=whole,
        removed=problem.removed,
        stays=problem.stays,
    )


def _masks(problem: _Problem) -> Mask:
    """Return the mask by a score, or the best of those sampled."""
    rule, weight = problem.rule, problem.weight
    if rule.criterion == "randomized":
        masks = candidate_masks(
            weight,
            rule.sparsity,
            rule.pattern,
            count=rule.candidates,
            generator=np.random.default_rng(rule.seed),
            removed=problem.removed,
            stays=problem.stays,
        )
        errors = [problem.objective.errors(np.where(mask, 0, weight)).sum() for mask in masks]
        return masks[int(np.argmin(errors))]
    scores = magnitude(weight) if rule.criterion == "magnitude" else wanda(weight, problem.hessian)
    scores[problem.stays] = np.inf
    return select(scores, rule.sparsity, rule.pattern, whole=rule.criterion == "magnitude", removed=problem.removed)
