"""The loss of a student graph against its teacher, and against labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from edgesmith.errors import DataError
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.execution.training import divergence, relative_error
from edgesmith.execution.unpadded import Padding
from edgesmith.graph.structure import Structure
from edgesmith_calibration.sources import Batch
from edgesmith_recovery.arithmetic.losses import IGNORED_LABEL, label_error
from edgesmith_recovery.finding.outputs import compared_outputs, logits_of
from edgesmith_recovery.finding.pairs import Pair
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.training.weights import TrainedWeights


@dataclass(frozen=True, slots=True)
class Goal:
    """What is compared, and how much each part counts."""

    outputs: Mapping[str, Literal["kl", "mse"]]
    """Output name to how it is compared with the teacher's."""
    pairs: tuple[Pair, ...]
    """Inner values of the student and the teacher."""
    labelled: str | None
    """Output that labels belong to, or None."""
    temperature: float = 1.0
    outputs_weight: float = 1.0
    pairs_weight: float = 1.0
    labels_weight: float = 1.0


def make_goal(
    graph: ir.Graph, structure: Structure, pairs: tuple[Pair, ...], options: RecoverOptions, *, has_labels: bool
) -> Goal:
    """Return what the options ask for on this graph.

    Args:
        graph: The student.
        structure: Its structure, which says which outputs are logits.
        pairs: All block outputs that can be compared.
        options: Weights and choices.
        has_labels: Whether the data has labels.
    """
    logits, floats = logits_of(structure), compared_outputs(graph, caches=options.caches)
    outputs: dict[str, Literal["kl", "mse"]] = {}
    for name in floats if options.outputs != "none" and options.outputs_weight > 0 else ():
        if options.outputs == "auto":
            outputs[name] = "kl" if name in logits else "mse"
        else:
            outputs[name] = "kl" if options.outputs == "kl" else "mse"
    chosen = {"all": pairs, "tail": pairs[-options.tail_blocks :], "none": ()}[options.blocks]
    first = next((name for name in floats if name in logits), None)
    return Goal(
        outputs=outputs,
        pairs=chosen if options.blocks_weight > 0 else (),
        labelled=first if has_labels and options.labels_weight > 0 else None,
        temperature=options.temperature,
        outputs_weight=options.outputs_weight,
        pairs_weight=options.blocks_weight,
        labels_weight=options.labels_weight,
    )


class Distillation:
    """Computes the loss of one batch.

    Args:
        student: The graph that is trained.
        teacher: The graph to learn from; None where only labels count.
        weights: The student's trained weights.
        goal: What counts.
        padding: How the graph is told about padding; padded positions do not count.
        mixed: Compute in bfloat16 where torch holds that safe, on a GPU.
    """

    def __init__(
        self,
        student: TorchGraph,
        teacher: TorchGraph | None,
        weights: TrainedWeights,
        goal: Goal,
        *,
        padding: Padding | None = None,
        mixed: bool = False,
    ) -> None:
        self._student, self._teacher, self._weights, self._goal = student, teacher, weights, goal
        self._padding, self._mixed = padding, mixed

    def __call__(self, batch: Batch, *, deployed: bool = False) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            batch: Inputs, and labels where they count.
            deployed: With the weights as they will be written, and without a gradient.

        Raises:
            DataError: The labels are not classes of the output that they belong to.
        """
        inputs = {name: self._tensor(array) for name, array in batch.inputs.items()}
        shown = None if self._padding is None else inputs[self._padding.mask] != 0
        device = self._student.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._mixed):
            taught = self._taught(inputs)
            taps = tuple(pair.student for pair in self._goal.pairs)
            # A student that lost blocks takes fewer caches than its teacher.
            ours = {name: tensor for name, tensor in inputs.items() if name in self._student.input_names}
            with torch.set_grad_enabled(not deployed):
                found = functional_call(self._student, self._weights.effective(deployed=deployed), (ours, taps))
        with torch.set_grad_enabled(not deployed):
            return self._loss(found, taught, batch.labels, shown)

    def _taught(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._teacher is None:
            return {}
        with torch.no_grad():
            found: dict[str, Tensor] = self._teacher(inputs, tuple(pair.teacher for pair in self._goal.pairs))
        return found

    def _loss(
        self,
        found: Mapping[str, Tensor],
        taught: Mapping[str, Tensor],
        labels: NDArray[Any] | None,
        shown: Tensor | None,
    ) -> Tensor:
        goal = self._goal
        loss = torch.zeros((), device=self._student.device)
        for name, kind in goal.outputs.items() if taught else ():
            rows = _shown_for(found[name], shown)
            if kind == "kl":
                part = divergence(found[name], taught[name], goal.temperature, rows)
            else:
                part = relative_error(found[name], taught[name], rows)
            loss = loss + goal.outputs_weight * part
        for pair in goal.pairs if taught else ():
            part = relative_error(found[pair.student], taught[pair.teacher], _shown_for(found[pair.student], shown))
            loss = loss + goal.pairs_weight / len(goal.pairs) * part
        if goal.labelled is not None and labels is not None:
            logits = found[goal.labelled]
            _require_labels(labels, tuple(logits.shape), goal.labelled)
            loss = loss + goal.labels_weight * label_error(logits, self._tensor(labels))
        return loss

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._student.device)


def _shown_for(value: Tensor, shown: Tensor | None) -> Tensor | None:
    """Return the places that count of a value, or None where it has no positions."""
    fits = shown is not None and value.ndim > shown.ndim and value.shape[: shown.ndim] == shown.shape
    return shown if fits else None


def _require_labels(labels: NDArray[Any], logits: tuple[int, ...], output: str) -> None:
    """Refuse labels that are not one class for each row of logits [..., classes].

    Raises:
        DataError: They have another shape, or name classes that the output does not have.
    """
    counted = labels[labels != IGNORED_LABEL]
    if labels.shape == logits[:-1] and (counted.size == 0 or (counted.min() >= 0 and counted.max() < logits[-1])):
        return
    values = f" from {counted.min()} to {counted.max()}" if counted.size else ""
    raise DataError(
        f"labels of shape {list(labels.shape)}{values} for the output {output!r} of shape {list(logits)}",
        expected=f"integers of shape {list(logits[:-1])} from 0 to {logits[-1] - 1}; {IGNORED_LABEL} does not count",
        why="A label is the position of its class among the logits.",
        fix="Correct the labels, or set labels_weight to 0 to learn from the source alone.",
    )
