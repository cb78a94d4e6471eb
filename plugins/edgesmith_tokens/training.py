"""Trains a few weights of a graph to give the features of another one. All other weights stay as they are."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.execution.observe import fixed_batch
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.split import Indices, split_samples
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import relative_error, torch_threads
from edgesmith.progress import Progress
from edgesmith_calibration.sources import Batch, DataSource

Array = NDArray[Any]
Extra = Callable[[Mapping[str, Tensor], Batch, Mapping[str, Tensor]], Tensor]
"""A further part of the loss, from the weights by name, a batch, and what the student gives for it by name."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A value that both graphs have, and what of it is compared."""

    name: str
    tokens: int | None = None
    """Tokens [batch, tokens, width] in front that are compared; 0 for the mean of all; None for the whole value."""

    def part(self, value: Any) -> Any:
        """Return what is compared, of an array or a tensor."""
        if self.tokens is None:
            return value
        return value[:, : self.tokens] if self.tokens else value.mean(1)


@dataclass(frozen=True, slots=True)
class Regime:
    """How long and how fast to train."""

    epochs: float
    seconds: float
    """Longest time; the step that passes it is the last."""
    learning_rate: float
    batch_size: int
    held_out: float
    """Share of the samples that decides and is not trained on."""
    seed: int
    threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training brought, on samples held out."""

    weights: Mapping[str, Array]
    """The best weights that were seen; those at the start are among them."""
    before: float
    after: float
    """Mean squared error of the features over their mean square, before and after."""
    steps: int
    samples: int


def train_features(
    student: ir.Model,
    names: Sequence[str],
    teacher: ir.Model,
    features: Sequence[Feature],
    data: DataSource,
    regime: Regime,
    progress: Progress,
    *,
    extra: Extra | None = None,
) -> Outcome:
    """Return initializers of the student, trained by Adam with a rate that falls to zero.

    Args:
        student: The graph that is trained; not changed.
        names: Its initializers to train.
        teacher: The graph to learn from.
        features: Values to compare; each counts alike.
        data: Two samples or more (batches, where the graph has a fixed batch).
        regime: How long and how fast.
        progress: Told about every step.
        extra: Added to the loss while training; samples held out are judged by the features alone.
    """
    batch = fixed_batch(student) or regime.batch_size
    split = split_samples(len(data), regime.held_out, fixed_batch(student) or 1, regime.seed)
    targets = _targets(teacher, features, data, batch, regime.threads)
    with torch_threads(regime.threads):
        graph = TorchGraph(student).requires_grad_(False)
        leaves = {name: parameter for name, parameter in graph.named_parameters() if name in names}
        for leaf in leaves.values():
            leaf.requires_grad_()
        course = _Course(graph, leaves, features, targets, data, batch, extra)
        return course.run(split.training, split.held_out, regime, progress)


class _Course:
    """One training.

    Args:
        graph: The student.
        leaves: Its weights that are trained.
        features: Values to compare.
        targets: What the teacher gives for all samples, by feature.
        data: The samples.
        batch: Samples per step.
        extra: A further part of the loss.
    """

    def __init__(
        self,
        graph: TorchGraph,
        leaves: Mapping[str, torch.nn.Parameter],
        features: Sequence[Feature],
        targets: Mapping[str, Array],
        data: DataSource,
        batch: int,
        extra: Extra | None,
    ) -> None:
        self._graph, self._leaves, self._features = graph, leaves, features
        self._targets, self._data, self._batch, self._extra = targets, data, batch, extra

    def run(self, training: Indices, held: Indices, regime: Regime, progress: Progress) -> Outcome:
        """Train, and return the best weights by the error on the samples held out."""
        began = time.monotonic()
        steps = max(round(regime.epochs * max(len(training) // self._batch, 1)), 1)
        before = after = self._score(held)
        best = self._copy()
        optimizer = torch.optim.Adam(list(self._leaves.values()), lr=regime.learning_rate)
        per_epoch = max(len(training) // self._batch, 1)
        done, batches = 0, self._order(training, regime.seed)
        for done in progress.track(range(1, steps + 1), "training", steps):
            used = max((done - 0.5) / steps, (time.monotonic() - began) / regime.seconds)
            for group in optimizer.param_groups:
                group["lr"] = regime.learning_rate * max(1 - used, 0.0)
            optimizer.zero_grad()
            self._loss(next(batches)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            late = time.monotonic() - began > regime.seconds
            if done % per_epoch == 0 or done == steps or late:
                error = self._score(held)
                if error < after:
                    after, best = error, self._copy()
            if late:
                break
        return Outcome(best, before, after, done, len(held))

    def _order(self, training: Indices, seed: int) -> Iterator[Indices]:
        """Yield batches of samples without end, mixed anew in each epoch; what is left over of one is left out."""
        epoch = 0
        while True:
            mixed = np.random.default_rng((seed, epoch)).permutation(training)
            size = min(self._batch, len(mixed))
            for start in range(0, len(mixed) - size + 1, size):
                yield np.sort(mixed[start : start + size])
            epoch += 1

    def _loss(self, samples: Indices) -> Tensor:
        batch = self._read(samples)
        found = self._run(batch)
        loss = self._error(found, samples)
        return loss if self._extra is None else loss + self._extra(self._leaves, batch, found)

    def _score(self, held: Indices) -> float:
        parts = [held[start : start + self._batch] for start in range(0, len(held), self._batch)]
        with torch.no_grad():
            errors = [float(self._error(self._run(self._read(part)), part)) for part in parts]
        return float(np.average(errors, weights=[len(part) for part in parts]))

    def _read(self, samples: Indices) -> Batch:
        (batch,) = self._data.select(samples).batches(len(samples))
        return batch

    def _run(self, batch: Batch) -> dict[str, Tensor]:
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        found: dict[str, Tensor] = self._graph(inputs, tuple(feature.name for feature in self._features))
        return found

    def _error(self, found: Mapping[str, Tensor], samples: Indices) -> Tensor:
        """Return the mean over features of the error of a batch."""
        targets = {name: torch.from_numpy(array[samples]) for name, array in self._targets.items()}
        errors = [relative_error(each.part(found[each.name]), targets[each.name]) for each in self._features]
        return torch.stack(errors).mean()

    def _copy(self) -> dict[str, Array]:
        return {name: leaf.detach().numpy().copy() for name, leaf in self._leaves.items()}


def _targets(
    teacher: ir.Model, features: Sequence[Feature], data: DataSource, batch: int, threads: int
) -> dict[str, Array]:
    """Return what the teacher gives for all samples; of tokens only the few that are compared."""
    session = ReferenceSession(teacher, taps=[each.name for each in features], optimization="all", threads=threads)
    names = {value.name for value in teacher.graph.inputs}
    parts: dict[str, list[Array]] = {feature.name: [] for feature in features}
    for each in data.batches(batch):
        found = session.run({name: array for name, array in each.inputs.items() if name in names})
        for feature in features:
            parts[feature.name].append(feature.part(found[feature.name]).copy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
