"""How the learning rate goes up and down."""

import math


def rate_factor(progress: float, warm_up: float, decay: str) -> float:
    """Return the share of the highest learning rate at a point of the training.

    Args:
        progress: Share of the training that is done, 0 to 1.
        warm_up: Share in which the rate rises linearly.
        decay: "linear" or "cosine" down to 0, or "none".
    """
    if progress < warm_up:
        return progress / warm_up
    left = (1 - min(progress, 1.0)) / (1 - warm_up)
    return {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "none": 1.0}[decay]
