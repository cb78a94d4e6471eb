"""Resize and Upsample.

Interpolation is separable: along each axis every output value is a weighted sum of input values. The weights of
one axis form a matrix, which covers all modes of the operator and has the right gradient.
"""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.execution.operators.registry import UnsupportedFormError, operator

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Axis:
    """How one axis is resized."""

    length: int
    size: int
    scale: float
    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool
    start: float = 0.0
    end: float = 1.0


def _source(axis: _Axis) -> Floats:
    """Return where in the input each output position lies."""
    x = np.arange(axis.size, dtype=np.float64)
    width = axis.scale * axis.length
    half_pixel = (x + 0.5) / axis.scale - 0.5
    match axis.coordinates:
        case "half_pixel":
            return half_pixel
        case "half_pixel_symmetric":
            return axis.length / 2 * (1 - axis.size / width) + half_pixel
        case "pytorch_half_pixel":
            return half_pixel if width > 1 else np.zeros_like(x)
        case "align_corners":
            return np.zeros_like(x) if width == 1 else x * (axis.length - 1) / (width - 1)
        case "asymmetric":
            return x / axis.scale
        case "tf_crop_and_resize":
            extent = (axis.end - axis.start) * (axis.length - 1)
            inner = x * extent / (width - 1) if width > 1 else np.full_like(x, extent / 2)
            return inner + axis.start * (axis.length - 1)
    raise UnsupportedFormError(f"coordinate transformation {axis.coordinates!r}")


def _linear(distance: Floats) -> Floats:
    weight: Floats = np.clip(1 - np.abs(distance), 0, 1)
    return weight


def _cubic(distance: Floats, a: float) -> Floats:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _nearest(axis: _Axis, ratio: Floats) -> Floats:
    """Return the weight of the upper neighbour. A source on a grid point is seen as ratio 1 above the one before."""
    match axis.nearest:
        case "round_prefer_floor":
            upper = ratio > 0.5
        case "round_prefer_ceil":
            upper = ratio >= 0.5
        case "ceil":
            upper = np.ones_like(ratio, dtype=bool)
        case "floor":
            upper = ratio == 1
        case "simple":
            upper = (ratio == 1) | (axis.scale < 1)
        case _:
            raise UnsupportedFormError(f"nearest mode {axis.nearest!r}")
    return upper.astype(np.float64)


@lru_cache(maxsize=64)
def _weights(axis: _Axis) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the weight matrix, shape (size, length), and which output positions lie outside the input."""
    source = _source(axis)
    outside = (source < 0) | (source > axis.length - 1)
    base = np.ceil(source).astype(np.int64) - 1
    ratio = source - base
    shrink = min(axis.scale, 1.0) if axis.antialias else 1.0
    if axis.mode == "nearest":
        upper = _nearest(axis, ratio)
        taps, values = np.array([0, 1]), np.stack([1 - upper, upper], 1)
    elif axis.mode in ("linear", "cubic"):
        reach = 1 if axis.mode == "linear" else 2
        first = int(np.floor(-reach / shrink)) + 1
        taps = np.arange(first, 2 - first)
        distance = (taps - ratio[:, None]) * shrink
        values = _linear(distance) if axis.mode == "linear" else _cubic(distance, axis.cubic)
    else:
        raise UnsupportedFormError(f"mode {axis.mode!r}")
    index = base[:, None] + taps
    if axis.exclude_outside:
        values = np.where((index < 0) | (index >= axis.length), 0, values)
    if axis.exclude_outside or axis.antialias:
        values = values / values.sum(1, keepdims=True)
    matrix = np.zeros((axis.size, axis.length))
    np.add.at(matrix, (np.arange(axis.size)[:, None], np.clip(index, 0, axis.length - 1)), values)
    return matrix, outside


def _resize_axis(x: Tensor, dimension: int, axis: _Axis, extrapolation: float) -> Tensor:
    matrix, outside = _weights(axis)
    if axis.mode == "nearest":
        x = x.index_select(dimension, torch.from_numpy(matrix.argmax(1)).to(x.device))
    else:
        wide = x if x.is_floating_point() else x.float()
        weights = torch.from_numpy(matrix).to(dtype=wide.dtype, device=x.device)
        y = torch.matmul(wide.movedim(dimension, -1), weights.t()).movedim(-1, dimension)
        x = y if x.is_floating_point() else y.round().to(x.dtype)
    if axis.coordinates == "tf_crop_and_resize" and outside.any():
        shape = [-1 if i == dimension else 1 for i in range(x.ndim)]
        x = x.masked_fill(torch.from_numpy(outside).to(x.device).reshape(shape), extrapolation)
    return x


def _policy(x: Tensor, axes: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    scales = [size / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [int(np.floor(scale * x.shape[axis] + 0.5)) for axis in axes], [scale] * len(axes)


@operator("Resize", since=11, host=("roi", "scales", "sizes"))
def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    chosen = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    if sizes:
        sizes, factors = _policy(x, chosen, sizes, keep_aspect_ratio_policy)
    elif scales:
        factors = scales
        sizes = [int(np.floor(x.shape[axis] * scale)) for axis, scale in zip(chosen, scales, strict=True)]
    else:
        raise UnsupportedFormError("neither scales nor sizes")
    cropped = coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None
    for index, (dimension, size, scale) in enumerate(zip(chosen, sizes, factors, strict=True)):
        if scale == 1 and size == x.shape[dimension] and not cropped:
            continue
        axis = _Axis(
            length=x.shape[dimension],
            size=size,
            scale=scale,
            mode=mode,
            coordinates=coordinate_transformation_mode,
            nearest=nearest_mode,
            cubic=cubic_coeff_a,
            antialias=bool(antialias),
            exclude_outside=bool(exclude_outside),
            start=roi[index] if cropped and roi else 0.0,
            end=roi[len(chosen) + index] if cropped and roi else 1.0,
        )
        x = _resize_axis(x, dimension, axis, extrapolation_value)
    return x


def _old(x: Tensor, scales: Sequence[float], mode: str) -> Tensor:
    return resize(x, None, list(scales), coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="simple")


@operator("Upsample", since=7)
def upsample_by_attribute(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    return _old(x, scales, mode)


@operator("Upsample", since=9, host="scales")
@operator("Resize", since=10, host="scales")
def upsample(x: Tensor, scales: list[Any], *, mode: str = "nearest") -> Tensor:
    return _old(x, scales, mode)
