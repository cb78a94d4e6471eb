"""When two sets of outputs count as equal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RELATIVE_TOLERANCE = 1e-4
"""Largest allowed difference, relative to the largest absolute value of that output."""
HALF_TOLERANCE = 2.0**-11
"""The same for graphs in float16, compared in float32: half an ulp, by which a number that is stated may be off."""


def find_difference(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], tolerance: float = RELATIVE_TOLERANCE
) -> str:
    """Return what differs between two sets of outputs, or an empty string when nothing does.

    Floats may differ by `tolerance` times the largest absolute value of that output; the default allows another
    order of summation and nothing more. Everything else must be identical, and so must NaN and infinity.
    """
    if set(expected) != set(found):
        return f"outputs {sorted(expected)} became {sorted(found)}"
    for name, reference in expected.items():
        other = found[name]
        if reference.shape != other.shape or reference.dtype != other.dtype:
            before, after = (f"{array.dtype}{list(array.shape)}" for array in (reference, other))
            return f"output `{name}` changed from {before} to {after}"
        if reference.dtype.kind not in "fcV" or not reference.size:
            if not np.array_equal(reference, other):
                return f"output `{name}` differs in {int(np.sum(reference != other))} of {reference.size} values"
            continue
        reference, other = reference.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(reference)
        if not np.array_equal(reference[~finite], other[~finite], equal_nan=True):
            return f"output `{name}` differs where it is not finite"
        if not finite.any():
            continue
        error = float(np.max(np.abs(reference[finite] - other[finite])))
        scale = float(np.max(np.abs(reference[finite])))
        if not error <= tolerance * scale:
            return f"output `{name}` differs by {error:.3g} where values reach {scale:.3g}"
    return ""
