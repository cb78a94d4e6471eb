"""What a student loses against labels."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

IGNORED_LABEL = -100
"""Positions with this label do not count, as in `edgesmith_calibration.metrics`."""


def label_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [..., classes] with integer labels [...]; 0 where no label counts."""
    rows, wanted = logits.flatten(0, -2).float(), labels.flatten().long()
    total = F.cross_entropy(rows, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (wanted != IGNORED_LABEL).sum().clamp_min(1)
