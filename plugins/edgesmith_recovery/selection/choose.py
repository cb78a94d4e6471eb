"""Runs model and source over the samples, and chooses those to train on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.unpadded import Padding
from edgesmith.graph.structure import Structure
from edgesmith.host.context import Context
from edgesmith_calibration.metrics import IGNORED_LABEL
from edgesmith_calibration.sources import Batch, DataSource
from edgesmith_recovery.arithmetic.paser import choose_samples, jensen_shannon, k_means, spectral_embedding
from edgesmith_recovery.finding.outputs import compared_outputs, logits_of
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.reconstruction.distance import shown_rows, taken_by

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]

_MOST_SAMPLES = 4096
"""Samples that are compared pair by pair."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The graphs that are compared, and by what."""

    model: ir.Model
    source: ir.Model
    output: str
    """Output that is compared: logits, where there are any."""
    logits: bool
    feature: str
    """Value of the source whose mean over positions says what kind a sample is."""
    padding: Padding | None


def compared(
    model: ir.Model, source: ir.Model, student: Structure, teacher: Structure, padding: Padding | None
) -> Compared:
    """Return by what two graphs are compared: their logits, and the last block of the source."""
    logits = logits_of(student)
    output = next(iter((*logits, *compared_outputs(model.graph))), model.graph.outputs[0].name or "")
    feature = teacher.blocks[-1].output if teacher.blocks else output
    return Compared(model, source, output, bool(logits), feature, padding)


def select_samples(
    graphs: Compared, data: DataSource, candidates: Indices, context: Context[RecoverOptions]
) -> Indices:
    """Return the candidates to train on, chosen by PASER.

    Args:
        graphs: What is compared.
        data: All samples.
        candidates: Samples that may be trained on, increasing.
        context: Options, seed and threads.
    """
    options = context.options
    if candidates.size > _MOST_SAMPLES:
        chosen = np.random.default_rng(context.seed).permutation(candidates.size)[:_MOST_SAMPLES]
        candidates = candidates[np.sort(chosen)]
    wanted = max(1, round(options.select_share * candidates.size))
    sessions = (
        ReferenceSession(graphs.model, optimization="all", threads=context.threads),
        ReferenceSession(graphs.source, taps=[graphs.feature], optimization="all", threads=context.threads),
    )
    rows = [
        _describe(graphs, sessions, batch)
        for batch in context.progress.track(data.select(candidates).batches(1), "comparing samples", candidates.size)
    ]
    features = np.stack([feature for feature, _, _ in rows])
    losses, costs = (np.array(values) for values in zip(*((loss, cost) for _, loss, cost in rows), strict=True))
    count = min(options.clusters, len(rows))
    clusters = k_means(spectral_embedding(features, count), count, context.seed)
    if len(clusters) != candidates.size:
        # A graph with a fixed batch gives one row per batch; its samples go together.
        whole = candidates.size // len(clusters)
        picked = choose_samples(losses, costs, clusters, max(1, wanted // whole))
        found = candidates[: len(clusters) * whole].reshape(-1, whole)[picked].reshape(-1)
    else:
        found = candidates[choose_samples(losses, costs, clusters, wanted)]
    context.notes.remark(
        f"Chose {found.size} of {candidates.size} samples from {len(np.unique(clusters))} kinds, by what the model "
        "lost on each kind."
    )
    return found


def _describe(
    graphs: Compared, sessions: tuple[ReferenceSession, ReferenceSession], batch: Batch
) -> tuple[Float64, float, float]:
    """Return what a sample is like, what the model lost on it, and what it costs."""
    mask = None if graphs.padding is None else batch.inputs[graphs.padding.mask]
    found, taught = (session.run(taken_by(session, batch.inputs)) for session in sessions)
    counted = _answers(found[graphs.output], mask, batch.labels)
    ours, theirs = (_rows(values, graphs.output, counted) for values in (found, taught))
    if graphs.logits:
        loss = float(jensen_shannon(ours, theirs).mean())
    else:
        loss = float(np.square(ours - theirs).sum() / max(float(np.square(theirs).sum()), np.finfo(float).tiny))
    positions = np.ones(1) if mask is None else mask != 0
    feature = _rows(taught, graphs.feature, mask).mean(axis=0)
    return feature, loss, float(positions.sum()) ** 2


def _answers(output: Array, mask: Array | None, labels: Array | None) -> Array | None:
    """Return which positions of an output count: those with a label where labels name some, else those not padded."""
    if labels is not None and labels.ndim == 2 and labels.shape == output.shape[:2]:
        answered: Array = labels != IGNORED_LABEL
        return answered if answered.any() else mask
    return mask


def _rows(values: Mapping[str, Array], name: str, mask: Array | None) -> Float64:
    array = values[name]
    # Images have their channels second; positions come first everywhere else.
    array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    return shown_rows(array, mask).astype(np.float64)
