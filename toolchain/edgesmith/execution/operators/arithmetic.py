"""Arithmetic: element by element, and matrix products."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from edgesmith.execution.operators.registry import UnsupportedFormError, operator, scalar

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def signed(x: Tensor) -> Tensor:
    """Return unsigned integers as int64: torch has almost no arithmetic for unsigned types above eight bits."""
    if x.dtype == torch.uint64 and bool((x.view(torch.int64) < 0).any()):
        raise UnsupportedFormError("values of uint64 beyond 2**63")
    return x.to(torch.int64)


def _binary(compute: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in _UNSIGNED:
        return compute(signed(a), signed(b)).to(a.dtype)
    return compute(a, b)


@operator("Add", since=7)
def add(a: Tensor, b: Tensor) -> Tensor:
    return _binary(torch.add, a, b)


@operator("Sub", since=7)
def sub(a: Tensor, b: Tensor) -> Tensor:
    return _binary(torch.sub, a, b)


@operator("Mul", since=7)
def mul(a: Tensor, b: Tensor) -> Tensor:
    return _binary(torch.mul, a, b)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # ONNX integers divide towards zero.
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Div", since=7)
def div(a: Tensor, b: Tensor) -> Tensor:
    return _binary(_divide, a, b)


@operator("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    if not base.is_floating_point() and exponent.is_floating_point():
        return torch.pow(base.double(), exponent.double()).to(base.dtype)
    if (
        exponent.numel() == 1
        and exponent.device.type == "cpu"
        and not exponent.requires_grad
        and base.is_floating_point()
    ):
        # A known exponent has far faster kernels.
        return torch.pow(base, exponent.item()).expand(torch.broadcast_shapes(base.shape, exponent.shape))  # type: ignore[no-untyped-call]
    return _binary(torch.pow, base, exponent.to(base.dtype) if exponent.dtype != base.dtype else exponent)


@operator("Mod", since=10)
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    if fmod:
        return _binary(torch.fmod, a, b)
    rest = _binary(torch.remainder, a, b)
    # A zero takes the sign of the divisor, as every other remainder does.
    return torch.where(rest == 0, torch.copysign(rest, b), rest) if a.is_floating_point() else rest


def _fold(compute: Callable[[Tensor, Tensor], Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    if tensors[0].dtype in _UNSIGNED:
        return reduce(compute, map(signed, tensors)).to(tensors[0].dtype)
    return reduce(compute, tensors)


@operator("Max", since=8)
def maximum(*tensors: Tensor) -> Tensor:
    return _fold(torch.maximum, tensors)


@operator("Min", since=8)
def minimum(*tensors: Tensor) -> Tensor:
    return _fold(torch.minimum, tensors)


@operator("Sum", since=8)
def total(*tensors: Tensor) -> Tensor:
    return _fold(torch.add, tensors)


@operator("Mean", since=8)
def mean(*tensors: Tensor) -> Tensor:
    return _fold(torch.add, tensors) / len(tensors)


for _name, _function in {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}.items():

    def _unary(x: Tensor, _compute: Callable[[Tensor], Tensor] = _function) -> Tensor:
        if x.dtype in _UNSIGNED:
            return _compute(signed(x)).to(x.dtype)
        return _compute(x)

    operator(_name, since=6)(_unary)


@operator("Clip", since=6)
def clip_by_attributes(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


@operator("Clip", since=11, host=("low", "high"))
def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if x.dtype in _UNSIGNED:
        return clip(signed(x), low, high).to(x.dtype)
    low, high = scalar(low), scalar(high)
    if low is None and high is None:
        return x
    if low is not None and high is not None and low > high:
        return torch.full_like(x, high)
    return torch.clamp(x, low, high)


@operator("CumSum", since=11, host="axis")
def cumulative_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulate(torch.cumsum, 0, x, axis, exclusive=exclusive, reverse=reverse)


@operator("CumProd", since=26, host="axis")
def cumulative_product(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulate(torch.cumprod, 1, x, axis, exclusive=exclusive, reverse=reverse)


def _cumulate(
    compute: Callable[..., Tensor], neutral: int, x: Tensor, axis: Any, *, exclusive: int, reverse: int
) -> Tensor:
    dimension = scalar(axis)
    x = x.flip(dimension) if reverse else x
    if exclusive:
        first = torch.full_like(x.narrow(dimension, 0, 1), neutral)
        x = torch.cat([first, x.narrow(dimension, 0, x.shape[dimension] - 1)], dimension)
    y = compute(x, dimension, dtype=x.dtype)
    return y.flip(dimension) if reverse else y


@operator("MatMul", since=1)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - the attribute's name
    transB: int = 0,  # noqa: N803 - the attribute's name
) -> Tensor:
    a = a.t() if transA else a
    b = b.t() if transB else b
    if not a.is_floating_point():
        product = torch.matmul(a, b) * int(alpha)
        return product if c is None else product + int(beta) * c
    if c is None:
        product = torch.mm(a, b)
        return product if alpha == 1.0 else alpha * product
    return torch.addmm(c, a, b, alpha=alpha, beta=beta)


@operator("Einsum", since=12)
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


@operator("Det", since=11)
def determinant(x: Tensor) -> Tensor:
    return torch.det(x)
