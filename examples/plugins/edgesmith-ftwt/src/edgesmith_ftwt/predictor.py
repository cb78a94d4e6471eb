"""The predictor of a layer: one logistic regression for each filter, on what pooling leaves of the layer's input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_ftwt.masks import Mask, strongest_by_count

Matrix = NDArray[np.float64]

DECAYS = (1e-3, 1e-2, 1e-1)
"""Tried as weights of the squared norm; the best on images held out is taken."""
_EVERY = 4
"""Every fourth image is held out."""
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True)
class Predictor:
    """Logits of all filters: `features @ weight.T + bias`; a filter is chosen where its logit is not below 0."""

    weight: Matrix
    """[filters, features]."""
    bias: Matrix
    """[filters]."""
    agreement: float
    """Share of the decisions on images held out that were right; NaN where there were too few images."""
    constant_agreement: float
    """The same for the best guess that does not look at the image."""

    def logits(self, features: NDArray[np.floating]) -> Matrix:
        """Return [images, filters] for features [images, features]."""
        return np.asarray(features @ self.weight.T + self.bias)

    def chosen(self, features: NDArray[np.floating]) -> Mask:
        """Return the filters chosen for each image; where no logit reaches 0, those of the highest one."""
        logits = self.logits(features)
        return np.asarray(logits >= np.minimum(logits.max(axis=1, keepdims=True), 0.0))

    def highest(self, features: NDArray[np.floating], count: int) -> Mask:
        """Return the `count` filters of the highest logits for each image."""
        return strongest_by_count(self.logits(features), count)


def features(
    pooled: NDArray[np.floating], chosen: Mask | None = None, *, softmax: bool = True, gone: bool = False
) -> Matrix:
    """Return what a predictor sees, [images, channels].

    Args:
        pooled: One number for each channel of the layer's input, [images, channels].
        chosen: Channels that a gate before this one lets through; None: all.
        softmax: Whether channels are put in relation to each other.
        gone: Whether channels that were not chosen are not there, and not zero.
    """
    seen = pooled.astype(np.float64)
    if chosen is not None and not (gone and softmax):
        seen = np.where(chosen, seen, 0.0)
    if not softmax:
        return seen
    present = chosen if chosen is not None and gone else np.ones(seen.shape, np.bool_)
    powers = np.where(present, np.exp(seen - seen.max(axis=1, keepdims=True, where=present, initial=-np.inf)), 0.0)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def train(features: NDArray[np.floating], wanted: Mask, steps: int) -> Predictor:
    """Return the predictor of the wanted masks.

    Weights are decayed, and how much is chosen on every fourth image, which the others predict.

    Args:
        features: What the predictor sees, [images, features].
        wanted: Which filters each image needs, [images, filters].
        steps: Steps of gradient descent.
    """
    held_out = np.arange(len(features)) % _EVERY == _EVERY - 1
    if not held_out.any():
        weight, bias = logistic(features, wanted, DECAYS[-1], steps)
        return Predictor(weight, bias, float("nan"), float("nan"))
    seen, rest = (features[~held_out], wanted[~held_out]), (features[held_out], wanted[held_out])
    tried = {decay: logistic(*seen, decay, steps) for decay in DECAYS}
    best = min(DECAYS, key=lambda decay: cross_entropy(rest[0] @ tried[decay][0].T + tried[decay][1], rest[1]))
    right = ((rest[0] @ tried[best][0].T + tried[best][1] >= 0) == rest[1]).mean()
    constant = ((seen[1].mean(axis=0) >= 0.5) == rest[1]).mean()
    weight, bias = logistic(features, wanted, best, steps)
    return Predictor(weight, bias, float(right), float(constant))


def logistic(features: NDArray[np.floating], wanted: Mask, decay: float, steps: int) -> tuple[Matrix, Matrix]:
    """Return weight [filters, features] and bias [filters] of least cross entropy plus decay of the weights.

    Features are brought to mean 0 and variance 1 first; the result is for them as they came. Gradient descent with
    Nesterov's momentum and the step that the curvature allows: a quarter of the largest eigenvalue of the features.

    Args:
        features: [images, features].
        wanted: [images, filters].
        decay: Weight of half the squared norm of the weights, beside the mean cross entropy.
        steps: Number of steps.
    """
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(spread > _SMALLEST_SPREAD * (spread.max() or 1.0), spread, np.inf)
    inputs = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    curvature = np.linalg.norm(inputs, 2) ** 2 / len(inputs) / 4 + decay
    weight = before = np.zeros((wanted.shape[1], inputs.shape[1]))
    decays = np.append(np.full(inputs.shape[1] - 1, decay), 0.0)
    for step in range(steps):
        ahead = weight + step / (step + 3) * (weight - before)
        error = _sigmoid(inputs @ ahead.T) - wanted
        weight, before = ahead - (error.T @ inputs / len(inputs) + decays * ahead) / curvature, weight
    slopes = weight[:, :-1] / scale
    return slopes, weight[:, -1] - slopes @ mean


def cross_entropy(logits: NDArray[np.floating], wanted: Mask) -> float:
    """Return the mean cross entropy in nats of logits against masks of the same shape."""
    return float(np.mean(np.logaddexp(0.0, logits) - logits * wanted))


def _sigmoid(logits: Matrix) -> Matrix:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -50, 50))))
