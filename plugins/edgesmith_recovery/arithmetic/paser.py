"""Chooses samples by what a model lost on their kind. PASER, arXiv 2502.12594, sections 3.2 to 3.4.

Kinds are found by spectral clustering. Unlike the released code, the Laplacian is symmetric, as its solver assumes,
clusters come from k-means, and divergences are means over positions, so that long samples do not win by their length.
The rule on key phrases (section 3.5) is left out: it needs texts, and blocks almost everything late in a selection.
"""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]


def spectral_embedding(features: Float64, count: int) -> Float64:
    """Return the samples in the space of the smoothest functions on their graph, rows of length 1.

    Ng, Jordan and Weiss, On Spectral Clustering, 2001, steps 1 to 4, with the median distance as the width.

    Args:
        features: One row per sample, [samples, width].
        count: Number of eigenvectors.

    Returns:
        [samples, count]
    """
    squares = np.square(features).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * features @ features.T, 0.0)
    others = distances[~np.eye(len(features), dtype=bool)]
    width = float(np.median(others)) if others.size else 0.0
    affinity = np.exp(-distances / (2 * width)) if width > 0 else np.ones_like(distances)
    np.fill_diagonal(affinity, 0.0)
    root = 1 / np.sqrt(np.maximum(affinity.sum(axis=1), 1e-300))
    # The smallest eigenvalues of the Laplacian I - S belong to the largest of S.
    _, vectors = np.linalg.eigh(root[:, None] * affinity * root[None, :])
    chosen = vectors[:, -min(count, len(features)) :]
    lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
    embedding: Float64 = np.divide(chosen, lengths, out=np.zeros_like(chosen), where=lengths > 0)
    return embedding


def k_means(points: Float64, count: int, seed: int, rounds: int = 50) -> Indices:
    """Return the cluster of each point. Centres start far apart (k-means++), at places that the seed decides."""
    generator = np.random.default_rng(seed)
    centres = points[[generator.integers(len(points))]]
    while len(centres) < min(count, len(points)):
        nearest = np.square(points[:, None] - centres[None]).sum(axis=2).min(axis=1)
        if nearest.sum() == 0:
            break
        centres = np.vstack([centres, points[generator.choice(len(points), p=nearest / nearest.sum())]])
    labels = np.full(len(points), -1)
    for _ in range(rounds):
        found = np.square(points[:, None] - centres[None]).sum(axis=2).argmin(axis=1)
        if np.array_equal(found, labels):
            break
        labels = found
        for cluster in np.unique(labels):
            centres[cluster] = points[labels == cluster].mean(axis=0)
    return labels.astype(np.intp)


def jensen_shannon(first: Float64, second: Float64) -> Float64:
    """Return the Jensen-Shannon divergence of two rows of logits each, [..., classes] to [...]; from 0 to log 2."""
    p, q = _probabilities(first), _probabilities(second)
    middle = (p + q) / 2

    def from_middle(rows: Float64) -> Float64:
        ratio = np.divide(rows, middle, out=np.ones_like(rows), where=rows > 0)
        total: Float64 = (rows * np.log(ratio)).sum(axis=-1)
        return total

    return np.maximum((from_middle(p) + from_middle(q)) / 2, 0.0)


def allot(total: int, weights: Float64, sizes: Indices) -> Indices:
    """Return how many samples each cluster gives: in proportion to its weight, and never more than it has.

    What a small cluster cannot give goes to the others. Remainders go to the largest fractions.
    """
    given = np.zeros(len(sizes), np.intp)
    total = min(total, int(sizes.sum()))
    while given.sum() < total:
        room = np.where(sizes > given, weights, 0.0)
        if room.sum() == 0:
            room = (sizes > given).astype(np.float64)
        share = (total - given.sum()) * room / room.sum()
        more = np.minimum(np.floor(share).astype(np.intp), sizes - given)
        if more.sum() == 0:
            order = np.argsort(-(share - np.floor(share)), kind="stable")
            best = next(index for index in order if room[index] > 0)
            more[best] = 1
        given += more
    return given


def choose_samples(divergences: Float64, costs: Float64, clusters: Indices, total: int) -> Indices:
    """Return the samples to train on, in increasing order.

    Each cluster gives a number in proportion to its mean divergence, and first those that lost most for their cost:
    divergence / log(1 + cost), the 1 being ours, since a sample of one position has the cost 1.

    Args:
        divergences: What the model lost on each sample, [samples].
        costs: What each sample costs, such as its length squared, [samples].
        clusters: Cluster of each sample, [samples].
        total: How many to choose.
    """
    names = np.unique(clusters)
    members = [np.flatnonzero(clusters == name) for name in names]
    weights = np.array([divergences[each].mean() for each in members])
    counts = allot(total, weights, np.array([len(each) for each in members]))
    efficiency = divergences / np.log1p(costs)
    chosen = [
        each[np.argsort(-efficiency[each], kind="stable")[:count]] for each, count in zip(members, counts, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _probabilities(logits: Float64) -> Float64:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    rows: Float64 = shifted / shifted.sum(axis=-1, keepdims=True)
    return rows
