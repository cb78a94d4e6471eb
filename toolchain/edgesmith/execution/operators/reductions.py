"""Reductions over axes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.execution.operators.registry import operator

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    # Without a dtype torch widens integers.
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    return torch.mean(x.double(), axes, keepdim=keep).to(x.dtype)


def _extreme(compute: Callable[..., Tensor], neutral: Callable[[torch.dtype], float | bool]) -> Reduce:
    def reduce_extreme(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.numel():
            return compute(x, axes, keepdim=keep)
        shape = list(_sum(x.to(torch.int64), axes, keep).shape)
        return torch.full(shape, neutral(x.dtype), dtype=x.dtype, device=x.device)

    return reduce_extreme


def _lowest(dtype: torch.dtype) -> float | bool:
    return -torch.inf if dtype.is_floating_point else False if dtype == torch.bool else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float | bool:
    return torch.inf if dtype.is_floating_point else True if dtype == torch.bool else torch.iinfo(dtype).max


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.logsumexp(x.double(), axes, keepdim=keep).to(x.dtype)
    return torch.logsumexp(x, axes, keepdim=keep)


def _in_float(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return compute(x) if x.is_floating_point() else compute(x.double()).to(x.dtype)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extreme(torch.amax, _lowest),
    "ReduceMin": _extreme(torch.amin, _highest),
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _in_float(torch.sqrt, _sum(x * x, axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _in_float(torch.log, _sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


# What each operator does to a value when there is no axis to reduce over.
_PASS_THROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": lambda x: x * x,
    "ReduceLogSum": torch.log,
}


def _enter(name: str, reduce: Reduce, axes_as_input: int) -> None:
    def apply(x: Tensor, axes: Sequence[int] | None, keepdims: int, noop: int) -> Tensor:
        if not axes and noop:
            return _PASS_THROUGH[name](x) if name in _PASS_THROUGH else x
        chosen = list(axes) if axes else list(range(x.ndim))
        return reduce(x, chosen, bool(keepdims)) if x.ndim else reduce(x.reshape(1), [0], False)

    def by_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        return apply(x, axes, keepdims, 0)

    def by_input(
        x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        return apply(x, axes, keepdims, noop_with_empty_axes)

    operator(name, since=1)(by_attribute)
    operator(name, since=axes_as_input, host="axes")(by_input)


for _name, _reduce in _REDUCTIONS.items():
    _enter(_name, _reduce, 13 if _name == "ReduceSum" else 18)
