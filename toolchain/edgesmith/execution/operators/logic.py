"""Comparison, boolean and bitwise operators."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Callable

import torch
from torch import Tensor

from edgesmith.execution.operators.arithmetic import _UNSIGNED, signed
from edgesmith.execution.operators.registry import operator

for _name, _since, _function in (
    ("Equal", 7, torch.eq),
    ("Greater", 7, torch.gt),
    ("GreaterOrEqual", 12, torch.ge),
    ("Less", 7, torch.lt),
    ("LessOrEqual", 12, torch.le),
):

    def _compare(a: Tensor, b: Tensor, _compute: Callable[[Tensor, Tensor], Tensor] = _function) -> Tensor:
        if a.dtype in _UNSIGNED:
            return _compute(signed(a), signed(b))
        return _compute(a, b)

    operator(_name, since=_since)(_compare)

operator("And", since=7)(lambda a, b: torch.logical_and(a, b))
operator("Or", since=7)(lambda a, b: torch.logical_or(a, b))
operator("Xor", since=7)(lambda a, b: torch.logical_xor(a, b))
operator("Not", since=1)(lambda x: torch.logical_not(x))
operator("IsNaN", since=9)(lambda x: torch.isnan(x))
operator("BitwiseAnd", since=18)(lambda a, b: torch.bitwise_and(a, b))
operator("BitwiseOr", since=18)(lambda a, b: torch.bitwise_or(a, b))
operator("BitwiseXor", since=18)(lambda a, b: torch.bitwise_xor(a, b))
operator("BitwiseNot", since=18)(lambda x: (~x.to(torch.int64)).to(x.dtype) if x.dtype in _UNSIGNED else ~x)


@operator("IsInf", since=10)
def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found |= torch.isneginf(x)
    if detect_positive:
        found |= torch.isposinf(x)
    return found


@operator("BitShift", since=11)
def bit_shift(x: Tensor, amount: Tensor, *, direction: str) -> Tensor:
    if direction == "LEFT":
        # Bits that leave a wide word are lost; those that leave a narrow one are cut by the conversion back.
        return torch.bitwise_left_shift(x.to(torch.int64), amount.to(torch.int64)).to(x.dtype)
    return torch.bitwise_right_shift(signed(x), signed(amount)).to(x.dtype)


@operator("Where", since=9)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)
