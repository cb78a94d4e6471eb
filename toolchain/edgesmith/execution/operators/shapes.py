"""Operators that make, read or change shapes, and move whole blocks of values.

Shapes are computed on the CPU: `Shape` returns a CPU tensor, and whatever is computed from CPU tensors alone stays
there, so that no GPU is waited for.
"""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Sequence
from math import prod
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.dtypes import torch_type
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator, scalar


@operator("Identity", since=1)
def identity(x: Any) -> Any:
    return x


@operator("Shape", since=1)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size", since=1)
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("Reshape", since=5, host="target")
def reshape(x: Tensor, target: list[int], *, allowzero: int = 0) -> Tensor:
    if 0 in target and not allowzero:
        target = [have if want == 0 else want for want, have in zip(target, _pad_shape(x, target), strict=True)]
    return x.reshape(target)


def _pad_shape(x: Tensor, target: list[int]) -> list[int]:
    """Return the shape of `x`, made as long as `target`; what is added is never read by a valid graph."""
    return (list(x.shape) + [1] * len(target))[: len(target)]


@operator("Flatten", since=1)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1) if x.numel() else x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Transpose", since=1)
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(range(x.ndim - 1, -1, -1)))


@operator("Squeeze", since=1)
def squeeze_by_attribute(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Squeeze", since=13, host="axes")
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return squeeze_by_attribute(x, axes=axes)


@operator("Unsqueeze", since=1)
def unsqueeze_by_attribute(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze", since=13, host="axes")
def unsqueeze(x: Tensor, axes: list[int] | int) -> Tensor:
    return unsqueeze_by_attribute(x, axes=axes if isinstance(axes, list) else [axes])


@operator("Expand", since=8, host="target")
def expand(x: Tensor, target: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, target))  # type: ignore[no-untyped-call]


@operator("Concat", since=4)
def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


@operator("Split", since=2)
def split_by_attribute(
    x: Tensor, *, split: Sequence[int] | None = None, axis: int = 0, site: Site
) -> tuple[Tensor, ...]:
    return split_at(x, list(split) if split else None, axis=axis, site=site)


@operator("Split", since=13, host="split")
def split_at(
    x: Tensor, split: list[int] | None = None, *, axis: int = 0, num_outputs: int | None = None, site: Site
) -> tuple[Tensor, ...]:
    if split is None:
        parts = num_outputs or site.outputs
        length = -(-x.shape[axis] // parts)
        split = [length] * (parts - 1)
        split.append(x.shape[axis] - sum(split))
    return tuple(torch.split(x, split, axis))


@operator("Slice", since=1)
def slice_by_attribute(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> Tensor:
    return slice_at(x, list(starts), list(ends), list(axes) if axes else None)


@operator("Slice", since=10, host=("starts", "ends", "axes", "steps"))
def slice_at(
    x: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[index] if axes is not None else index
        step = steps[index] if steps is not None else 1
        picked = _picked(start, end, step, x.shape[axis])
        if step > 0:
            x = torch.ops.aten.slice(x, axis, picked.start, max(picked.stop, picked.start), step)
        elif picked:
            x = torch.ops.aten.slice(x, axis, picked[-1], picked[0] + 1, -step).flip(axis)
        else:
            x = x.narrow(axis, 0, 0)
    return x


def _picked(start: int, end: int, step: int, length: int) -> range:
    """Return the indices of a slice. Backwards, ONNX clamps the start into the axis where Python would give nothing."""
    start, end = (bound + length if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return range(min(max(start, 0), length), min(max(end, 0), length), step)
    return range(min(max(start, 0), length - 1), min(max(end, -1), length - 1), step)


@operator("Tile", since=6, host="repeats")
def tile(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


@operator("ConstantOfShape", since=9, host="target")
def constant_of_shape(target: list[int], *, value: Tensor | None = None) -> Tensor:
    return torch.zeros(target) if value is None else value.reshape(()).expand(target).clone()


@operator("Range", since=11, host="*")
def make_range(start: Any, limit: Any, delta: Any, *, stash_type: int = 1, site: Site) -> Tensor:
    start, limit, delta = scalar(start), scalar(limit), scalar(delta)
    dtype = next((kind for kind in (*site.input_types, *site.output_types) if kind is not None), None)
    if dtype is None:
        return torch.arange(start, limit, delta)
    return torch.arange(start, limit, delta, dtype=torch.float64 if dtype.is_floating_point() else None).to(
        torch_type(dtype)
    )


@operator("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else torch_type(ir.DataType(dtype))
    return torch.diagonal_scatter(
        torch.zeros(x.shape, dtype=kind, device=x.device),
        torch.ones(max(x.diagonal(k).shape[0], 0), dtype=kind, device=x.device),
        k,
    )


@operator("Trilu", since=14, host="k")
def triangle(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    diagonal = scalar(k) or 0
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("DepthToSpace", since=1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    depth = c // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, blocksize, blocksize, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, depth, blocksize, blocksize, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, depth, h * blocksize, w * blocksize)


@operator("SpaceToDepth", since=1)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    x = x.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else x.permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@operator("Pad", since=2)
def pad_by_attributes(x: Tensor, *, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    return pad(x, list(pads), value, mode=mode)


@operator("Pad", since=11, host=("pads", "value", "axes"))
def pad(
    x: Tensor, pads: list[int], value: Any = None, axes: list[int] | None = None, *, mode: str = "constant"
) -> Tensor:
    chosen = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    before, after = pads[: len(chosen)], pads[len(chosen) :]
    # Negative padding cuts, whatever the mode.
    for axis, low, high in zip(chosen, before, after, strict=True):
        start, length = max(-low, 0), x.shape[axis] - max(-low, 0) - max(-high, 0)
        x = x.narrow(axis, start, length) if length != x.shape[axis] else x
    sizes = {axis: (max(low, 0), max(high, 0)) for axis, low, high in zip(chosen, before, after, strict=True)}
    if mode == "constant":
        fill = scalar(value)
        flat = [amount for axis in reversed(range(x.ndim)) for amount in sizes.get(axis, (0, 0))]
        return F.pad(x, flat, value=fill or 0)
    for axis, (low, high) in sizes.items():
        if low or high:
            x = x.index_select(axis, _mirrored(x.shape[axis], low, high, mode, x.device))
    return x


def _mirrored(length: int, low: int, high: int, mode: str, device: torch.device) -> Tensor:
    """Return the indices along one axis that a padding by other than a constant reads from."""
    index = torch.arange(-low, length + high, device=device)
    if mode == "edge":
        return index.clamp(0, length - 1)
    if mode == "wrap":
        return index % length
    if mode == "reflect":
        period = max(2 * (length - 1), 1)
        index = index % period
        return torch.where(index >= length, period - index, index)
    raise UnsupportedFormError(f"padding mode {mode!r}")


@operator("ReverseSequence", since=10)
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    step = torch.arange(moved.shape[1], device=x.device)
    length = lengths.reshape(-1, 1).to(x.device)
    index = torch.where(step < length, length - 1 - step, step)
    batch = torch.arange(moved.shape[0], device=x.device).reshape(-1, 1)
    return moved[batch, index].movedim((0, 1), (batch_axis, time_axis))
