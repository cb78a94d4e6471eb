"""A refit whose ridges are chosen on samples held out.

Places of a photo and words of a text resemble each other, so a layer sees far fewer independent rows than rows. A
refit that is free to follow them makes up for errors that are gone on the next photo. Two aims are told apart:

- what the layer itself gives on these inputs, before anything of it goes. It is an exact function of them, so a
  small ridge is enough;
- the difference to what it should give, which makes up for layers before. It has a ridge of its own, or none of
  it is made up for.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.moments import Moments
from edgesmith_pruning.statistics.held_out import HeldOut

Float64 = NDArray[np.float64]

OWN_RIDGES = (0.001, 0.01, 0.03, 0.1, 0.3)
"""Tried for what the layer itself gives, as shares of the mean variance of an input."""
EARLIER_RIDGES = (np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Tried for what layers before have changed; infinite: left as it is."""


@dataclass(frozen=True, slots=True)
class HeldOutRefit:
    """A refit to all samples, and how well it did on those held out when it was fitted to the others."""

    matrix: Float64
    """[inputs + 1, outputs], 0 where nothing is kept."""
    error: float
    """Summed squared error on the samples held out."""
    own_ridge: float
    earlier_ridge: float


def held_out_refit(
    moments: HeldOut, judge: Moments, matrix: Float64, kept: NDArray[np.bool_], *, bias: bool
) -> HeldOutRefit:
    """Return the refit whose ridges do best on samples held out.

    Args:
        moments: Of all samples.
        judge: Of those held out.
        matrix: The layer as it is, [inputs + 1, outputs]; the last row is the bias.
        kept: For each input, whether it stays, [inputs].
        bias: Whether the bias may change too.
    """
    path = _Path.of(moments.fit, matrix, kept, bias=bias)
    own = min(OWN_RIDGES, key=lambda ridge: judge.error(path.at(ridge, np.inf)))
    errors = {ridge: judge.error(path.at(own, ridge)) for ridge in EARLIER_RIDGES}
    earlier = min(EARLIER_RIDGES, key=errors.__getitem__)
    whole = _Path.of(moments.total, matrix, kept, bias=bias)
    return HeldOutRefit(whole.at(own, earlier), errors[earlier], own, earlier)


@dataclass(frozen=True, slots=True)
class _Path:
    """All ridge solutions of one set of moments, from one eigendecomposition of the kept inputs."""

    values: Float64
    vectors: Float64
    scale: float
    prior: Float64
    own: Float64
    """Cross moments with what the layer itself gives, in eigenvectors."""
    earlier: Float64
    """Cross moments with what is missing to the aim, in eigenvectors."""
    mean: Float64
    own_mean: Float64
    earlier_mean: Float64
    rows: NDArray[np.intp]
    matrix: Float64

    @classmethod
    def of(cls, moments: Moments, matrix: Float64, kept: NDArray[np.bool_], *, bias: bool) -> Self:
        """Take apart the moments of the kept inputs. Without a free bias nothing is centred."""
        rows, count = np.flatnonzero(kept), float(moments.rows)
        own = moments.gram @ matrix
        missing = moments.cross - own
        gram, own_kept, missing_kept = moments.gram[np.ix_(rows, rows)], own[rows], missing[rows]
        mean = np.zeros(len(rows))
        own_mean, missing_mean = matrix[-1], np.zeros_like(matrix[-1])
        if bias:
            mean = moments.gram[-1, rows] / count
            own_mean, missing_mean = own[-1] / count, missing[-1] / count
            gram = gram - count * np.outer(mean, mean)
            own_kept = own_kept - count * np.outer(mean, own_mean)
            missing_kept = missing_kept - count * np.outer(mean, missing_mean)
        else:
            own_kept = own_kept - np.outer(moments.gram[rows, -1], matrix[-1])
        values, vectors = np.linalg.eigh(gram)
        scale = float(np.mean(np.diag(gram))) or 1.0
        prior = vectors.T @ matrix[rows]
        own_part, earlier_part = vectors.T @ own_kept, vectors.T @ missing_kept
        return cls(
            np.maximum(values, 0),
            vectors,
            scale,
            prior,
            own_part,
            earlier_part,
            mean,
            own_mean,
            missing_mean,
            rows,
            matrix,
        )

    def at(self, own: float, earlier: float) -> Float64:
        """Return the layer [inputs + 1, outputs] with these ridges."""
        ridge = own * self.scale
        solution = (self.own + ridge * self.prior) / (self.values + ridge)[:, None]
        mean = self.own_mean
        if np.isfinite(earlier):
            solution = solution + self.earlier / (self.values + earlier * self.scale)[:, None]
            mean = mean + self.earlier_mean
        result = np.zeros_like(self.matrix)
        result[self.rows] = self.vectors @ solution
        result[-1] = mean - self.mean @ result[self.rows]
        return result
