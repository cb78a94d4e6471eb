"""k-means with a seed: k-means++ (Arthur and Vassilvitskii 2007) and Lloyd's iteration. Pure arithmetic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Points in groups. Groups are numbered by their first point, so that neighbours stay near each other."""

    labels: Labels
    """Group of each point, [points]; each group has one point at least."""
    centers: Float64
    """Mean of each group, [groups, dimensions]."""


def k_means(points: Float64, count: int, seed: int, *, rounds: int = 100) -> Clusters:
    """Return groups of points with a small sum of squared distances to their means.

    Args:
        points: [points, dimensions].
        count: Number of groups, 1 to the number of points.
        seed: Decides the first centers; equal seeds give equal groups.
        rounds: Largest number of Lloyd's rounds.

    Raises:
        ValueError: There are fewer points than groups.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"{len(points)} points cannot make {count} groups")
    centers = points[_first_centers(points, count, np.random.default_rng(seed))]
    labels: Labels = np.full(len(points), -1, np.intp)
    for _ in range(rounds):
        distances = squared_distances(points, centers)
        found = _without_empty(distances, distances.argmin(axis=1))
        if np.array_equal(found, labels):
            break
        labels = found
        centers = group_means(points, labels, count)
    labels = numbered_by_first(labels)
    return Clusters(labels, group_means(points, labels, count))


def spread(points: Float64, clusters: Clusters) -> float:
    """Return the variance of points around the means of their groups, per dimension; at least a small number."""
    distances = np.square(points - clusters.centers[clusters.labels]).mean()
    return float(max(distances, np.finfo(np.float32).tiny, 1e-6 * np.square(points).mean()))


def random_groups(count: int, groups: int, seed: int) -> Labels:
    """Return `groups` groups of `count` points drawn by chance, of sizes that differ by one at most."""
    labels = np.random.default_rng(seed).permutation(count) * groups // count
    return numbered_by_first(labels)


def group_means(points: Float64, labels: Labels, count: int) -> Float64:
    """Return the mean of each group of points, [groups, dimensions]."""
    sums = np.zeros((count, points.shape[1]))
    np.add.at(sums, labels, points)
    means: Float64 = sums / np.bincount(labels, minlength=count)[:, None]
    return means


def squared_distances(points: Float64, centers: Float64) -> Float64:
    """Return the squared distance of each point to each center, [points, centers]."""
    lengths = np.square(points).sum(axis=1)[:, None] + np.square(centers).sum(axis=1)
    distances: Float64 = np.maximum(lengths - 2 * points @ centers.T, 0)
    return distances


def numbered_by_first(labels: Labels) -> Labels:
    """Return the same groups with numbers in the order of their first points."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse], np.intp)


def _first_centers(points: Float64, count: int, generator: np.random.Generator) -> Labels:
    """Draw points, each with a chance in proportion to the squared distance from those drawn before."""
    chosen = [int(generator.integers(len(points)))]
    nearest = squared_distances(points, points[chosen])[:, 0]
    while len(chosen) < count:
        nearest[chosen] = 0
        total = nearest.sum()
        if total > 0:
            following = int(np.searchsorted(np.cumsum(nearest), generator.random() * total, side="right"))
            following = min(following, int(np.flatnonzero(nearest)[-1]))
        else:  # what is left are copies of points that were drawn
            following = int(np.setdiff1d(np.arange(len(points)), chosen)[0])
        chosen.append(following)
        nearest = np.minimum(nearest, squared_distances(points, points[[following]])[:, 0])
    return np.asarray(chosen, np.intp)


def _without_empty(distances: Float64, labels: Labels) -> Labels:
    """Give each empty group the point that is farthest from its own center, of groups that have more than one."""
    labels = labels.copy()
    sizes = np.bincount(labels, minlength=distances.shape[1])
    for empty in np.flatnonzero(sizes == 0):
        own = np.where(sizes[labels] > 1, distances[np.arange(len(labels)), labels], -1.0)
        farthest = int(own.argmax())
        sizes[labels[farthest]] -= 1
        labels[farthest], sizes[empty] = empty, 1
    return labels
