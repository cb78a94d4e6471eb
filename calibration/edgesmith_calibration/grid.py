"""The integer grid that a range becomes: scale and zero point of ONNX QuantizeLinear.

`x ~ (q - zero_point) * scale` with `q = saturate(round(x / scale) + zero_point)` (ONNX operator specification;
Jacob et al. 2018, arXiv 1712.05877, equation 1).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgesmith_calibration.errors import DataError

INTEGER_LIMITS = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}
"""Smallest and largest code of each integer type."""

_STORAGE = {"int4": np.int8, "uint4": np.uint8}
"""NumPy has no 4-bit integers; their codes are held in the next larger type."""


class QuantizationParameters(NamedTuple):
    """Scale and zero point, of one shape: [] for a tensor, [channels] for ranges per channel."""

    scale: NDArray[np.float32]
    """Positive normal float32."""
    zero_point: NDArray[Any]
    """Code of 0.0, in the integer type; 4-bit codes are held in 8 bits."""


def quantization_parameters(low: ArrayLike, high: ArrayLike, dtype: str, symmetric: bool) -> QuantizationParameters:
    """Return the scale and zero point that cover `low` to `high`. Zero is always represented exactly.

    Symmetric grids put the larger magnitude on the largest code: zero point 0 for signed types, the middle code for
    unsigned ones. Asymmetric grids spread all codes over the range, widened to include zero. A range too narrow for a
    normal float32 scale gets scale 1: all its values are zero to float32 arithmetic.

    Args:
        low: Lower ends, a number or [channels].
        high: Upper ends, of the same shape and not below `low`.
        dtype: A key of `INTEGER_LIMITS`.
        symmetric: Whether 0.0 has the middle code.

    Raises:
        DataError: The type is unknown, or an end is not finite or below the other.
    """
    smallest, largest = integer_limits(dtype)
    bottom, top = _checked_ends(low, high)
    if symmetric:
        middle = (smallest + largest + 1) // 2
        scale = normal_scale(np.maximum(-bottom, top) / (largest - middle))
        codes = np.full(scale.shape, middle)
    else:
        scale = normal_scale((top - bottom) / (largest - smallest))
        codes = np.clip(np.rint(smallest - bottom / scale.astype(np.float64)), smallest, largest)
    # NumPy turns arrays without dimensions into scalars, which runtimes do not take.
    return QuantizationParameters(scale, np.asarray(codes, _STORAGE.get(dtype, dtype)))


def integer_limits(dtype: str) -> tuple[int, int]:
    """Return the smallest and largest code of an integer type.

    Raises:
        DataError: The type is not one of `INTEGER_LIMITS`.
    """
    if dtype not in INTEGER_LIMITS:
        raise DataError(
            f"'{dtype}' is not an integer type to quantize to",
            expected=f"one of {', '.join(INTEGER_LIMITS)}",
            why="scale and zero point depend on the smallest and largest code",
            fix="choose one of these types",
        )
    return INTEGER_LIMITS[dtype]


def normal_scale(scale: ArrayLike) -> NDArray[np.float32]:
    """Return scales as float32, with 1 in place of those that are zero or subnormal."""
    with np.errstate(under="ignore"):
        rounded = np.asarray(scale, np.float32)
    return np.where(rounded < np.finfo(np.float32).tiny, np.float32(1), rounded)


def _checked_ends(low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends in float64, widened to include zero."""
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if bottom.shape != top.shape or not (
        np.isfinite(bottom).all() and np.isfinite(top).all() and (bottom <= top).all()
    ):
        raise DataError(
            f"no range from {_excerpt(bottom)} to {_excerpt(top)}",
            expected="finite lower and upper ends of one shape, none below its lower end",
            why="scale and zero point follow from these ends",
            fix="check the weights and the calibration data for NaN and infinity",
        )
    return np.minimum(bottom, 0), np.maximum(top, 0)


def _excerpt(ends: NDArray[np.float64]) -> str:
    return np.array2string(ends, threshold=6, edgeitems=2, precision=4)
