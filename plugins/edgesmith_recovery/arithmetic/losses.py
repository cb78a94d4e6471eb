"""What a student loses against its teacher."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

IGNORED_LABEL = -100
"""Positions with this label do not count, as in `edgesmith_calibration.metrics`."""


def divergence(student: Tensor, teacher: Tensor, temperature: float, shown: Tensor | None = None) -> Tensor:
    """Return the Kullback-Leibler divergence of the student's probabilities from the teacher's, times temperature^2.

    Hinton, Vinyals and Dean, arXiv 1503.02531, section 2.

    Args:
        student: Logits [..., classes].
        teacher: Logits of the same shape.
        temperature: Both are divided by it.
        shown: Rows that count, bool [...]; None for all.
    """
    rows, targets = student.flatten(0, -2).float(), teacher.flatten(0, -2).float()
    if shown is not None:
        rows, targets = rows[shown.flatten()], targets[shown.flatten()]
    with torch.no_grad():
        log = F.log_softmax(targets / temperature, -1)
        probabilities = log.exp()
        # A probability of 0 has a logarithm of -inf where a model masks classes, and adds nothing. The student masks
        # the same classes, so the same holds of its logarithms.
        entropy = -torch.where(probabilities == 0, 0, probabilities * log).sum(-1).mean()
        del log
    cross = -torch.where(probabilities == 0, 0, probabilities * F.log_softmax(rows / temperature, -1)).sum(-1).mean()
    return temperature**2 * (cross - entropy)


def label_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [..., classes] with integer labels [...]; 0 where no label counts."""
    rows, wanted = logits.flatten(0, -2).float(), labels.flatten().long()
    total = F.cross_entropy(rows, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (wanted != IGNORED_LABEL).sum().clamp_min(1)
