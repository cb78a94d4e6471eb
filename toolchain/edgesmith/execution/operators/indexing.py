"""Gathering, scattering and selecting."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgesmith.execution.dtypes import torch_type
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator, scalar


def _wrapped(index: Tensor, length: int) -> Tensor:
    """Return `index` with negative entries counted from the end."""
    return torch.where(index < 0, index + length, index)


@operator("Gather", since=1)
def gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    # While torch traces the graph to export it, the content of a tensor is not known.
    if index.ndim == 0 and index.device.type == "cpu" and not torch.compiler.is_exporting():
        return x.select(axis, int(index))
    flat = torch.index_select(x, axis, _wrapped(index.reshape(-1), x.shape[axis]))
    return flat if index.ndim == 1 else flat.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@operator("GatherElements", since=11)
def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _wrapped(index.to(torch.int64), x.shape[axis]))


@operator("GatherND", since=11)
def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    return x[_coordinates(x, index.to(torch.int64), batch_dims)]


def _coordinates(x: Tensor, index: Tensor, batch_dims: int = 0) -> tuple[Tensor, ...]:
    """Return one index tensor per axis that the last axis of `index` addresses, batch axes first."""
    rank = index.ndim - 1
    batch = tuple(
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if other == axis else 1 for other in range(rank)])
        for axis in range(batch_dims)
    )
    return (*batch, *(_wrapped(part, x.shape[batch_dims + i]) for i, part in enumerate(index.unbind(-1))))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Scatter", since=9)
@operator("ScatterElements", since=11)
def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    index = _wrapped(index.to(torch.int64), x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


@operator("ScatterND", since=11)
def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    places = _coordinates(x, index.to(torch.int64))
    if reduction == "none":
        return x.index_put(places, updates)
    if reduction == "add":
        return x.index_put(places, updates, accumulate=True)
    addressed = x.shape[: len(places)]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for place, length in zip(places, addressed, strict=True):
        flat = flat * length + place
    rest = x.shape[len(places) :]
    rows = x.reshape(addressed.numel(), rest.numel())
    picked = flat.reshape(-1, 1).expand(-1, rest.numel())
    return rows.scatter_reduce(0, picked, updates.reshape(picked.shape), _REDUCTIONS[reduction]).reshape(x.shape)


@operator("TensorScatter", since=24)
def tensor_scatter(
    cache: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    axis = axis % cache.ndim
    length, batch = update.shape[axis], cache.shape[0]
    if write_indices is None:
        write_indices = torch.zeros(batch, dtype=torch.int64, device=cache.device)
    positions = write_indices.reshape(-1, 1) + torch.arange(length, device=cache.device)
    if mode == "circular":
        positions = positions % cache.shape[axis]
    shape = [1] * cache.ndim
    shape[0], shape[axis] = batch, length
    return cache.scatter(axis, positions.reshape(shape).expand(update.shape), update)


@operator("OneHot", since=9, host=("depth", "values"))
def one_hot(index: Tensor, depth: Any, values: list[Any], *, axis: int = -1, site: Site) -> Tensor:
    count = int(scalar(depth))
    index = index.to(torch.int64)
    hot = _wrapped(index, count).unsqueeze(-1) == torch.arange(count, device=index.device)
    dtype = site.input_types[2]
    kind = torch.float32 if dtype is None else torch_type(dtype)
    result = torch.where(hot, values[1], values[0]).to(kind)
    return result.movedim(-1, axis) if axis not in (-1, result.ndim - 1) else result


@operator("NonZero", since=9)
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("Compress", since=9)
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    kept = torch.nonzero(condition).reshape(-1)
    return torch.index_select(x.reshape(-1) if axis is None else x, axis or 0, kept)


@operator("TopK", since=1)
def top_by_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return top(x, k, axis=axis)


@operator("TopK", since=10, host="k")
def top(x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    count = int(scalar(k))
    # Of equal values ONNX takes the first; torch.topk promises no order, a stable sort does.
    values, index = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


@operator("Unique", since=11)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """Return values, first occurrences, inverse and counts; without `sorted`, in order of first occurrence."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    position = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse.reshape(-1), position, "amin")
    if not sorted:
        order = torch.argsort(first)
        rank = torch.argsort(order)
        values = values.index_select(axis or 0, order)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return values, first, inverse.reshape(-1), counts


def _arg(compute: Callable[..., Tensor], x: Tensor, axis: int, keepdims: int, select_last_index: int) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - compute(x.flip(axis), axis, keepdim=bool(keepdims))
    return compute(x, axis, keepdim=bool(keepdims))


@operator("ArgMax", since=1)
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(torch.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin", since=1)
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(torch.argmin, x, axis, keepdims, select_last_index)


@operator("MaxUnpool", since=9, host="output_shape")
def max_unpool(
    x: Tensor,
    index: Tensor,
    output_shape: list[int] | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Put each value back where it came from; `index` counts through the whole unpadded tensor."""
    rank = len(kernel_shape)
    stride, padding = strides or (1,) * rank, pads or (0,) * (2 * rank)
    spatial = [(x.shape[2 + i] - 1) * stride[i] - padding[i] - padding[rank + i] + kernel_shape[i] for i in range(rank)]
    inferred = [*x.shape[:2], *spatial]
    if output_shape is not None and len(output_shape) != len(inferred):
        raise UnsupportedFormError("an output shape without batch and channels")
    flat = torch.zeros(torch.Size(inferred).numel(), dtype=x.dtype, device=x.device)
    unpooled = flat.scatter(0, index.reshape(-1), x.reshape(-1)).reshape(inferred)
    if output_shape is None:
        return unpooled
    result = torch.zeros(output_shape, dtype=x.dtype, device=x.device)
    result[tuple(slice(0, length) for length in inferred)] = unpooled
    return result
