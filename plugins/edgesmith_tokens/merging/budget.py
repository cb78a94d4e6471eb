"""Chooses how many tokens each block merges, so that a model is fast enough at the least error.

Blocks are tried one at a time: how far the outputs move on calibration data, and how many multiplications go. From
these curves a sequence of plans follows, each with one more step in the block of least error per multiplication that
goes. The target's clock says which of these plans is the first that is fast enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from edgesmith.data import required_data
from edgesmith.errors import MeasurementError
from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cost import count_cost
from edgesmith.graph.outputs import float_outputs
from edgesmith.host.context import Context
from edgesmith.host.trial import Trial
from edgesmith.model import Model
from edgesmith_calibration.sources import DataSource
from edgesmith_tokens.finding.vision import VisionStream
from edgesmith_tokens.merging.formula import most_merged
from edgesmith_tokens.merging.place import MergeForm, merge_stream
from edgesmith_tokens.merging.schedule import fitted
from edgesmith_tokens.options.merging import MergeTokensOptions

Counts = tuple[int, ...]

_TIMED_PLANS = 4
"""Plans of each round that are timed in turns."""
_ROUNDS = 6
"""Most rounds. Each leaves about a third of the plans, so that these settle some hundreds."""
_TIMING_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Curve:
    """What merging in one block alone costs and saves: error = scale * tokens ** power, and MACs for each token."""

    scale: float
    power: float
    macs: float

    def error(self, tokens: int) -> float:
        """Return the error for so many tokens."""
        return self.scale * tokens**self.power if tokens else 0.0


def power_curve(tokens: Sequence[int], errors: Sequence[float], macs: float) -> Curve:
    """Return the curve through two points, which rises at least linearly.

    Args:
        tokens: Merged tokens, rising.
        errors: The error at each.
        macs: Multiplications that each token saves.
    """
    if len(tokens) < 2 or errors[0] <= 0 or errors[1] <= errors[0]:
        return Curve(max(errors) / tokens[-1], 1.0, macs)
    power = max(1.0, log(errors[1] / errors[0]) / log(tokens[1] / tokens[0]))
    return Curve(errors[1] / tokens[1] ** power, power, macs)


def plans(curves: Sequence[Curve], tokens: int, protected: int, step: int) -> tuple[Counts, ...]:
    """Return plans of rising savings, each with some tokens more in the block of least error for what it saves.

    A block further on loses what it can no longer merge, because fewer tokens come to it.

    Args:
        curves: One for each block.
        tokens: Tokens at first.
        protected: Tokens that are never merged.
        step: Tokens that are added at a time.
    """
    found = [(0,) * len(curves)]
    while True:
        costs = {}
        for number in range(len(curves)):
            counts = found[-1]
            tried = fitted((*counts[:number], counts[number] + step, *counts[number + 1 :]), tokens, protected)
            saved = _saved(curves, tried) - _saved(curves, counts)
            if tried[number] > counts[number] and saved > 0:
                costs[tried] = (_error(curves, tried) - _error(curves, counts)) / saved
        if not costs:
            return tuple(found[1:])
        found.append(min(costs, key=lambda tried: costs[tried]))


def _saved(curves: Sequence[Curve], counts: Counts) -> float:
    return sum(curve.macs * count for curve, count in zip(curves, counts, strict=True))


def _error(curves: Sequence[Curve], counts: Counts) -> float:
    return sum(curve.error(count) for curve, count in zip(curves, counts, strict=True))


def choose_counts(
    model: Model, stream: VisionStream, form: MergeForm, context: Context[MergeTokensOptions], *, given: Model
) -> Counts:
    """Return how many tokens each block merges so that the model runs as many times as fast as the options ask for.

    Args:
        model: The model, with attention in single operators; it is not changed.
        stream: Its vision transformer.
        form: How tokens are merged.
        context: Options, calibration data, and the trial that times.
        given: The model as it came to the step, maybe with fused attention: the speed-up is measured against it.

    Raises:
        DataError: There is no calibration data.
        MeasurementError: Nothing is timed in this run.
    """
    options, trial = context.options, context.trial
    if trial is None or not trial.measures_latency or options.speedup is None:
        raise MeasurementError(
            "the option speedup needs times of the target, and nothing is timed in this run",
            expected="a runner that has the device",
            why="whether a model is fast enough is measured and not estimated",
            fix="run where the device is, or set the option ratio or r",
        )
    why, fix = "errors are those of outputs on real inputs", "set the option ratio or r"
    data = required_data(context.calibration, "choosing how many tokens merge", why=why, fix=fix)
    if not most_merged(stream.tokens, stream.protected):
        return (0,) * len(stream.blocks)
    curves = _curves(model, stream, form, data.take(options.samples), context)
    step = max(1, (stream.tokens - stream.protected) // (4 * len(stream.blocks)))
    sequence = plans(curves, stream.tokens, stream.protected, step)
    if not sequence:
        return (0,) * len(stream.blocks)
    search = _Search(model, stream, form, trial, given)
    counts, reached = search.first_of(sequence, options.speedup)
    enough = "" if reached >= options.speedup else f", short of {options.speedup:.3g}: no plan is faster"
    context.notes.remark(
        f"Blocks merge {', '.join(map(str, counts))} tokens; timed at {reached:.3g} times the speed of the model "
        f"before{enough}."
    )
    return counts


def _curves(
    model: Model, stream: VisionStream, form: MergeForm, data: DataSource, context: Context[MergeTokensOptions]
) -> list[Curve]:
    """Return for each block what merging in it alone costs and saves."""
    batch_size = fixed_batch(model.ir) or context.options.batch_size
    wanted = _outputs(model, data, batch_size, context.threads)
    whole = count_cost(model.ir).macs
    blocks, most = len(stream.blocks), most_merged(stream.tokens, stream.protected)
    small = max(1, (stream.tokens - stream.protected) // (2 * blocks))
    levels = sorted({min(small, most), min(3 * small, most)})
    found = []
    for number in context.progress.track(range(blocks), "trying merges block by block", blocks):
        errors, macs = [], 0.0
        for level in levels:
            merged = _merged(model, stream, form, tuple(level if each == number else 0 for each in range(blocks)))
            errors.append(_distance(_outputs(merged, data, batch_size, context.threads), wanted))
            macs = (whole - count_cost(merged.ir).macs) / level
        found.append(power_curve(levels, errors, macs))
    return found


def _merged(model: Model, stream: VisionStream, form: MergeForm, counts: Counts) -> Model:
    merged = model.ir.clone()
    merge_stream(merged, stream, counts, form)
    return model.with_ir(merged)


def _outputs(model: Model, data: DataSource, batch_size: int, threads: int) -> list[np.ndarray]:
    """Return all outputs of floats, sample by sample, as one list of arrays for each batch and output."""
    session = ReferenceSession(model.ir, optimization="all", threads=threads)
    names, found = float_outputs(model.graph), []
    for batch in data.batches(batch_size):
        results = session.run({name: batch.inputs[name] for name in session.input_names})
        found += [results[name].astype(np.float32) for name in names]
    return found


def _distance(actual: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Return the mean over batches and outputs of the squared distance, relative to the squared size."""
    return float(
        np.mean([np.square(a - w).sum() / max(np.square(w).sum(), 1e-30) for a, w in zip(actual, wanted, strict=True)])
    )


class _Search:
    """Times plans of a sequence."""

    def __init__(self, model: Model, stream: VisionStream, form: MergeForm, trial: Trial, given: Model) -> None:
        self._model, self._stream, self._form, self._trial = model, stream, form, trial
        self._baseline = trial.lower(given)

    def first_of(self, sequence: Sequence[Counts], wanted: float) -> tuple[Counts, float]:
        """Return the first plan that is fast enough with its speed-up, or the fastest where none is."""
        below, above = -1, len(sequence) - 1
        timed: dict[int, float] = {}
        for _ in range(_ROUNDS):
            asked = sorted({int(place) for place in np.linspace(below + 1, above, _TIMED_PLANS)} - set(timed))
            if not asked:
                break
            timed |= self._speedups(sequence, asked)
            enough = [place for place in timed if timed[place] >= wanted]
            above = min(enough, default=above)
            below = max((place for place in timed if place < above and timed[place] < wanted), default=-1)
        best = above if timed.get(above, 0.0) >= wanted else max(timed, key=lambda place: timed[place])
        return sequence[best], timed[best]

    def _speedups(self, sequence: Sequence[Counts], places: Sequence[int]) -> dict[int, float]:
        models = [
            self._trial.lower(_merged(self._model, self._stream, self._form, sequence[place])) for place in places
        ]
        found = self._trial.speedups(models, self._baseline, max_seconds=_TIMING_SECONDS)
        return {place: float(each.value) for place, each in zip(places, found, strict=True)}
