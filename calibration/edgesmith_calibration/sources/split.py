"""Cuts a source into two parts that share no sample."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.sources.base import Array, DataSource, whole_labels
from edgesmith_calibration.sources.iterables import as_samples
from edgesmith_calibration.sources.samples import SampleSource


def split(source: DataSource, count: int, *, seed: int = 0) -> tuple[SampleSource, SampleSource]:
    """Return about `count` samples of a source, and the rest. Both keep the source's order.

    Equal samples stay together, so that no sample stands in both parts; a sample that occurs often may therefore make
    the first part smaller than `count`. Where there is one label per sample, both parts hold the classes in equal
    shares, as far as whole samples allow. Which samples are chosen depends on their content and on `seed` alone: not
    on their order, the machine or library versions.

    Args:
        source: What to cut.
        count: Samples of the first part, at least 1.
        seed: Another seed chooses other samples.

    Raises:
        DataError: There are fewer than two different samples, `count` leaves no sample for either part, or labels are
            not integers.
    """
    source = as_samples(source)
    if not 1 <= count < len(source):
        raise _too_few(source, f"{count} of its {len(source)} samples were asked for")
    groups = _groups(source.sample_keys())
    if len(groups) < 2:
        raise _too_few(source, "all its samples are equal")
    labels = source.labels()
    classes = whole_labels(labels, source.description) if labels is not None and labels.ndim == 1 else None
    first = np.array(_chosen(groups, classes, count, seed), np.intp)
    if not first.size:
        raise _too_few(source, f"its samples repeat so often that {count} cannot be set apart")
    return source.select(first), source.select(np.setdiff1d(np.arange(len(source)), first))


def choose(source: DataSource, count: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Return the positions of `count` samples of a source, ascending; of all where there are fewer.

    They are chosen as `split` chooses: from all over the source, and the classes in equal shares where there is one
    whole label per sample. Equal samples count as samples of their own here.

    Args:
        source: What to choose from. Every sample is read once to tell it from others.
        count: How many.
        seed: Another seed chooses other samples.
    """
    source = as_samples(source)
    if count >= len(source):
        return np.arange(len(source))
    groups: dict[bytes, list[int]] = {}
    for key, members in _groups(source.sample_keys()).items():
        groups |= {key + b"%d" % nth: [member] for nth, member in enumerate(members)}
    labels = source.labels()
    has_classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub"
    return np.array(_chosen(groups, labels if has_classes else None, max(count, 0), seed), np.intp)


def without(source: DataSource, other: DataSource) -> DataSource:
    """Return `source` without the samples that are also in `other`.

    Raises:
        DataError: No sample is left.
    """
    taken = set(as_samples(other).sample_keys())
    kept = [index for index, key in enumerate(as_samples(source).sample_keys()) if key not in taken]
    if not kept:
        raise DataError(
            f"every sample of {source.description} is also in {other.description}",
            expected="calibration samples that are not evaluated on",
            why="a score on data that the model was calibrated on promises too much",
            fix="use other data for one of the two, or name the file once and leave the split to Edgesmith",
        )
    return source if len(kept) == len(source) else source.select(kept)


def _groups(keys: Sequence[bytes]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups


def _chosen(groups: Mapping[bytes, list[int]], labels: Array | None, count: int, seed: int) -> list[int]:
    """Return about `count` positions in ascending order, with groups kept whole and classes in equal shares."""
    strata = _strata(groups, labels)
    quotas = _shares({name: sum(map(len, group.values())) for name, group in strata.items()}, count, seed)
    chosen: list[int] = []
    for name, stratum in strata.items():
        taken = 0
        for key in sorted(stratum, key=lambda key: _rank(key, seed)):
            if taken + len(stratum[key]) <= quotas[name]:
                taken += len(stratum[key])
                chosen.extend(stratum[key])
    return sorted(chosen)


def _strata(groups: Mapping[bytes, list[int]], labels: Array | None) -> dict[int, dict[bytes, list[int]]]:
    """Return the groups by class, classes in ascending order. Equal samples with several labels count as the first."""
    strata: dict[int, dict[bytes, list[int]]] = {}
    for key, members in groups.items():
        strata.setdefault(0 if labels is None else int(labels[members[0]]), {})[key] = members
    return dict(sorted(strata.items()))


def _shares(sizes: Mapping[int, int], count: int, seed: int) -> dict[int, int]:
    """Return how many samples each class gives: proportional, with the largest remainders rounded up."""
    total = sum(sizes.values())
    shares = {name: size * count // total for name, size in sizes.items()}
    # Equal remainders are common where classes are many; taking them in order would leave out the last classes.
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * count % total), _rank(b"%d" % name, seed)))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def _rank(key: bytes, seed: int) -> bytes:
    """Return a number that looks random but depends on `key` and `seed` alone."""
    return hashlib.sha256(b"%d:" % seed + key).digest()


def _too_few(source: DataSource, reason: str) -> DataError:
    return DataError(
        f"{source.description} cannot be split: {reason}",
        expected="at least two different samples, and fewer asked for than there are",
        why="a model is never evaluated on the data it was calibrated on",
        fix="provide more data, or separate files for calibration and evaluation",
    )
