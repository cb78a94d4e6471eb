"""What methods that train a graph share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads while the block is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def relative_error(found: Tensor, wanted: Tensor, shown: Tensor | None = None) -> Tensor:
    """Return the energy of the difference over the energy of what is wanted, in float32.

    Args:
        found: Values of any shape.
        wanted: Values of the same shape.
        shown: Leading places that count, bool; None for all.
    """
    difference, signal = found.float() - wanted.float(), wanted.float()
    if shown is not None:
        difference, signal = difference[shown], signal[shown]
    return difference.square().sum() / signal.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, shown: Tensor | None = None) -> Tensor:
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
