"""What the loss would gain without weights, to first order. Nothing here knows a graph."""

from collections.abc import Iterable

from torch import Tensor


def taylor_importance(weights: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return sum |w * g| over all weights of a block (Shortened LLaMA, arXiv 2402.02834, section 3.1).

    The gradient is that of the mean loss over all samples, as in the released code: what samples pull to opposite sides
    cancels.

    Args:
        weights: Pairs of a weight and its gradient.
    """
    return sum(float((weight * gradient).abs().double().sum()) for weight, gradient in weights)
