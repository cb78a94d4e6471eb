"""Sequences and optional values. A sequence is a Python list of tensors; an absent optional is None."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.dtypes import torch_type
from edgesmith.execution.operators.registry import operator, scalar


@operator("SequenceConstruct", since=11)
def sequence_construct(*tensors: Tensor) -> list[Tensor]:
    return list(tensors)


@operator("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    torch_type(ir.DataType(dtype))
    return []


@operator("SequenceInsert", since=11, host="position")
def sequence_insert(sequence: list[Tensor], tensor: Tensor, position: Any = None) -> list[Tensor]:
    at = len(sequence) if position is None else scalar(position)
    return [*sequence[:at], tensor, *sequence[at:]]


@operator("SequenceErase", since=11, host="position")
def sequence_erase(sequence: list[Tensor], position: Any = -1) -> list[Tensor]:
    at = range(len(sequence))[-1 if position is None else scalar(position)]
    return [*sequence[:at], *sequence[at + 1 :]]


@operator("SequenceAt", since=11, host="position")
def sequence_at(sequence: list[Tensor], position: Any) -> Tensor:
    item: Tensor = sequence[scalar(position)]
    return item


@operator("SequenceLength", since=11)
def sequence_length(sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence))


@operator("SplitToSequence", since=11, host="split")
def split_to_sequence(x: Tensor, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if split is None:
        return [part if keepdims else part.squeeze(axis) for part in torch.split(x, 1, axis)]
    return list(torch.split(x, split, axis))


@operator("ConcatFromSequence", since=11)
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator("SequenceMap", since=17)
def sequence_map(first: list[Tensor], *others: Any, body: Callable[..., tuple[Any, ...]]) -> tuple[Any, ...]:
    results = [
        body(item, *(other[index] if isinstance(other, list) else other for other in others))
        for index, item in enumerate(first)
    ]
    return tuple(list(column) for column in zip(*results, strict=True))


@operator("Optional", since=15)
def optional(value: Any = None, *, type: Any = None) -> Any:
    return value


@operator("OptionalHasElement", since=15)
def optional_has_element(value: Any = None) -> Tensor:
    return torch.tensor(value is not None)


@operator("OptionalGetElement", since=15)
def optional_get_element(value: Any) -> Any:
    return value
