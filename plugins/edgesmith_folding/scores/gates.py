"""Gates between 0 and 1 that become exact, and the budget that they keep. Nothing here knows a graph."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

WIDEST, NARROWEST = 0.1, 1e-4
"""Epsilon at the start and at the end."""


def gates(numbers: Tensor, epsilon: float) -> Tensor:
    """Return a^2 / (a^2 + epsilon), the smoothed count of what is not zero (GDP, arXiv 2109.02220, section 3.2).

    Args:
        numbers: What is trained, of any sign.
        epsilon: How wide the step from 0 to 1 is.
    """
    squares = numbers.square()
    return squares / (squares + epsilon)


def epsilon_at(progress: float) -> float:
    """Return epsilon for a share of the training that is done: it falls by equal factors."""
    return float(WIDEST * (NARROWEST / WIDEST) ** progress)


def excess(opened: Tensor, costs: Tensor, budget: float) -> Tensor:
    """Return max(0, sum(g_i F_i) / sum(F_i) - budget)^2: how far the gates are above what may be left (FoldGPT).

    Args:
        opened: Gates, [branches].
        costs: MACs of each branch, [branches].
        budget: Share of all MACs that may be left.
    """
    return F.relu((opened * costs).sum() / costs.sum() - budget).square()
