"""The mathematics: the two thin matrices whose product disturbs a layer's output least. NumPy in, NumPy out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_DAMPING = 1e-6
"""Added to each eigenvalue, relative to their mean, so that directions without data keep a finite inverse."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A matrix [in, out] as `left @ right`, best directions first."""

    left: Matrix
    """[in, directions]."""
    right: Matrix
    """[directions, out]."""
    energy: Matrix
    """[directions]: share of the output's energy that each direction holds; they sum to 1."""

    def cut(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return the factors of the best `rank` directions: [in, rank] and [rank, out]."""
        return self.left[:, :rank], self.right[:rank]


def factorise(weight: Matrix, gram: Matrix | None = None) -> Factors:
    """Return the factors of `weight` [in, out] that are best for inputs X with XᵀX = `gram` [in, in].

    For each rank r, the first r directions minimise the Frobenius norm of X W - X A B over all matrices A B of rank r.
    With G = L Lᵀ that norm is the one of Lᵀ W - Lᵀ A B, so the singular value decomposition Lᵀ W = U S Vᵀ gives
    A = L⁻ᵀ U and B = S Vᵀ (Eckart and Young 1936; whitening as in SVD-LLM, arXiv 2403.07378, section 3.2). L comes
    from the eigenvectors of G, which exist where data spans fewer directions than there are inputs, too.

    Args:
        weight: The matrix of the layer.
        gram: Sum over samples of the outer products of the layer's inputs; None weighs all directions alike.
    """
    if gram is None or not np.trace(gram) > 0:
        gram = np.eye(len(weight))
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values, 0) + _DAMPING * values.mean())
    u, singular, vt = np.linalg.svd((vectors * roots).T @ weight, full_matrices=False)
    # Half of each singular value on either side keeps both factors in the range of float16.
    halves = np.sqrt(singular)
    total = np.square(singular).sum()
    energy = np.square(singular) / total if total > 0 else np.zeros_like(singular)
    return Factors((vectors / roots) @ u * halves, halves[:, np.newaxis] * vt, energy)


def rank_for_energy(energy: Matrix, kept: float) -> int:
    """Return the fewest directions that hold the share `kept` of the energy, at least 1."""
    # Rounding may leave the sum of all shares just below 1.
    reached = np.cumsum(energy) >= kept * energy.sum() * (1 - 1e-12)
    return int(np.argmax(reached)) + 1


def rank_for_ratio(inputs: int, outputs: int, ratio: float) -> int:
    """Return the most directions whose two products cost at most `ratio` of the one, at least 1."""
    return max(1, int(ratio * inputs * outputs / (inputs + outputs)))


def saves(rank: int, inputs: int, outputs: int) -> bool:
    """Return whether two products through `rank` directions cost less than one product."""
    return rank * (inputs + outputs) < inputs * outputs
