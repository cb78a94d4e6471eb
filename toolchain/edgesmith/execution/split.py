"""Which samples a training learns from, and which decide. Needs no torch, so that checks can ask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]

_MOST_HELD_OUT = 64


@dataclass(frozen=True, slots=True)
class Split:
    """Samples to train on and samples to decide by, none in both."""

    training: Indices
    held_out: Indices


def split_samples(count: int, share: float, batch: int, seed: int) -> Split:
    """Return a random split into whole batches, at least one on either side.

    Args:
        count: Number of samples, those of two batches at least.
        share: Share that is held out; 64 samples are enough to decide by, however many there are.
        batch: Samples that a run needs at least: the graph's fixed batch size, or 1.
        seed: Decides which.
    """
    order = np.random.default_rng(seed).permutation(count)
    whole = count // batch * batch
    held = max(min(round(count * share), _MOST_HELD_OUT) // batch * batch, batch)
    held = min(held, whole - batch)
    return Split(np.sort(order[held:whole]), np.sort(order[:held]))
