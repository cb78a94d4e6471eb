"""Sample, train, select: masks drawn at random, each tried by a short training, the best trained on, stage by stage.

Li et al. 2023, arXiv 2310.13183, section 3. The network learns the dense one's outputs, so that no labels are needed.
Candidates are compared, and the best state is known, by samples that nothing was trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.progress import Progress
from edgesmith_calibration.sources import Batch, DataSource
from edgesmith_pruning.finding.sparse_layers import SparseLayer
from edgesmith_pruning.sparsity.masks import Mask, Pattern, select
from edgesmith_pruning.sparsity.sampler import candidate_masks
from edgesmith_pruning.sparsity.scores import magnitude

STAGES = (0.28, 0.64, 0.91, 1.0)
"""How far, on a logarithmic scale, the share of weights that stay falls by each stage. The last step is small."""
_CHECK_RATE, _RATE = 2e-4, 5e-5
_WARM_UP = 0.1
_SCORES = 10
"""Scores that are averaged at the end of a check, or as many as there are."""
_HELD_OUT = 10
"""Every so many samples one is held out."""

Masks = Mapping[str, Mask]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How masks are drawn, tried and trained."""

    sparsity: float
    pattern: Pattern | None
    steps: int
    """Updates with the chosen mask, in each stage."""
    check_steps: int
    """Updates to try a candidate."""
    candidates: int
    """Masks to draw in each stage. 0: none; the largest weights stay, which is iterative magnitude pruning."""
    seed: int

    @property
    def stages(self) -> tuple[float, ...]:
        """Sparsity of each stage. A pattern is reached in one: its groups have one count."""
        if self.pattern is not None:
            return (self.pattern.sparsity,)
        return tuple(1 - (1 - self.sparsity) ** share for share in STAGES)


@dataclass(frozen=True, slots=True)
class Selection:
    """What one stage chose."""

    sparsity: float
    scores: tuple[float, ...]
    """Mean held-out loss of each candidate; none where nothing was drawn."""
    distances: tuple[int, ...]
    """Places in which each candidate differs from the mask of the largest weights."""
    chosen: int | None
    """Which candidate was trained on; None: the largest weights."""

    def sentence(self) -> str:
        """Return it for the report."""
        if self.chosen is None:
            return f"At {self.sparsity:.1%} zeros the largest weights were trained on."
        scores = ", ".join(
            f"{score:.3g} ({distance})" for score, distance in zip(self.scores, self.distances, strict=True)
        )
        return (
            f"At {self.sparsity:.1%} zeros the masks scored a held-out loss of {scores}; in brackets the places in "
            f"which each differs from the largest weights. Number {self.chosen + 1} was trained on."
        )


class SampleTrainSelect:
    """Trains one network to given sparsity.

    Args:
        dense: The network to learn from.
        layers: Layers to make sparse.
        stays: Weights that must not be removed, by layer.
        data: Samples; some are held out to decide by.
        schedule: How.
        progress: Told about every candidate and stage.
        batch_size: Samples per update.
    """

    def __init__(
        self,
        dense: ir.Model,
        layers: Sequence[SparseLayer],
        stays: Masks,
        data: DataSource,
        schedule: Schedule,
        progress: Progress,
        batch_size: int = 1,
    ) -> None:
        self._layers, self._stays, self._schedule, self._progress = layers, stays, schedule, progress
        self._teacher, self._student = TorchGraph(dense), TorchGraph(dense)
        self._taps = list(dict.fromkeys(str(layer.site.readers[0].outputs[0].name) for layer in layers))
        batches = list(data.batches(batch_size))
        self._held_out = batches[::_HELD_OUT]
        self._batches = [batch for at, batch in enumerate(batches) if at % _HELD_OUT] or batches
        self.selections: list[Selection] = []

    def run(self) -> tuple[ir.Model, Masks]:
        """Return the trained network, and the masks of its layers [outputs, inputs]."""
        generator = np.random.default_rng(self._schedule.seed)
        masks: Masks = {layer.name: self._weight(layer) == 0 for layer in self._layers}
        stages = self._schedule.stages
        for sparsity in self._progress.track(stages, "sampling and training", len(stages)):
            masks = self._stage(sparsity, masks, generator)
        return self._student.to_ir(), masks

    def _stage(self, sparsity: float, before: Masks, generator: np.random.Generator) -> Masks:
        """Draw candidates, try each from the same start, and train the best."""
        start = {name: value.clone() for name, value in self._student.state_dict().items()}
        largest = {layer.name: self._largest(layer, sparsity, before[layer.name]) for layer in self._layers}
        drawn = self._candidates(sparsity, before, generator)
        scores = tuple(self._check(masks, start) for masks in drawn)
        best = int(np.argmin(scores)) if drawn else None
        chosen = largest if best is None else drawn[best]
        distances = tuple(sum(int((each[name] != largest[name]).sum()) for name in each) for each in drawn)
        self.selections.append(Selection(sparsity, scores, distances, best))
        self._student.load_state_dict(start)
        last = sparsity == self._schedule.stages[-1]
        for _ in self._train(chosen, self._schedule.steps, _RATE, decay=last):
            pass
        return chosen

    def _check(self, masks: Masks, start: Mapping[str, Tensor]) -> float:
        """Return the mean held-out loss at the end of a short training from `start`."""
        self._student.load_state_dict(start)
        losses = list(self._train(masks, self._schedule.check_steps, _CHECK_RATE, decay=True))
        return float(np.mean(losses[-_SCORES:]))

    def _candidates(self, sparsity: float, before: Masks, generator: np.random.Generator) -> list[Masks]:
        drawn = {
            layer.name: candidate_masks(
                self._weight(layer),
                sparsity,
                self._schedule.pattern,
                count=self._schedule.candidates,
                generator=generator,
                removed=before[layer.name],
                stays=self._stays[layer.name],
            )
            for layer in self._layers
        }
        return [{name: masks[at] for name, masks in drawn.items()} for at in range(self._schedule.candidates)]

    def _largest(self, layer: SparseLayer, sparsity: float, removed: Mask) -> Mask:
        scores = np.where(self._stays[layer.name], np.inf, magnitude(self._weight(layer)))
        return select(scores, sparsity, self._schedule.pattern, whole=True, removed=removed)

    def _train(self, masks: Masks, steps: int, rate: float, *, decay: bool) -> Iterator[float]:
        """Train with the masked weights at 0 throughout; yield the held-out loss now and then, and at the end."""
        gone = {layer.name: torch.from_numpy(layer.stored(masks[layer.name])) for layer in self._layers}
        parameters = dict(self._student.named_parameters())
        optimizer = torch.optim.Adam(self._student.parameters(), lr=rate)
        _clear(parameters, gone)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _factor(step, steps, decay=decay)
            optimizer.zero_grad()
            self._loss(self._batches[step % len(self._batches)]).backward()  # type: ignore[no-untyped-call]
            for name, mask in gone.items():
                gradient = parameters[name].grad
                if gradient is not None:  # so that no moment of the optimizer ever moves what is removed
                    gradient[mask] = 0
            optimizer.step()
            _clear(parameters, gone)
            if (step + 1) % max(1, steps // _SCORES) == 0 or step + 1 == steps:
                yield self._held_out_loss()
        if steps == 0:
            yield self._held_out_loss()

    def _held_out_loss(self) -> float:
        with torch.no_grad():
            return float(np.mean([float(self._loss(batch)) for batch in self._held_out]))

    def _loss(self, batch: Batch) -> Tensor:
        """Return the mean relative squared error of the outputs, and of the pruned layers."""
        inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.inputs.items()}
        with torch.no_grad():
            wanted = self._teacher(inputs, self._taps)
        found = self._student(inputs, self._taps)
        names = [name for name, value in wanted.items() if value.is_floating_point()]
        errors = [
            torch.mean((found[name] - wanted[name]).square()) / (torch.mean(wanted[name].square()) + 1e-12)
            for name in names
        ]
        return torch.stack(errors).mean()

    def _weight(self, layer: SparseLayer) -> np.ndarray:
        return layer.arranged(dict(self._student.named_parameters())[layer.name].detach().numpy())


def _clear(parameters: Mapping[str, Tensor], gone: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, mask in gone.items():
            parameters[name][mask] = 0


def _factor(step: int, steps: int, *, decay: bool) -> float:
    """Return the share of the learning rate: a linear warm-up, then constant or falling linearly to 0."""
    warm_up = max(1, int(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return (steps - step) / max(1, steps - warm_up) if decay else 1.0
