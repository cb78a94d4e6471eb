"""What methods that train a graph share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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
