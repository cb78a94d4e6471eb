"""Control flow. A subgraph arrives as a function from its inputs to the tuple of its outputs."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgesmith.execution.operators.registry import operator, scalar

Body = Callable[..., tuple[Any, ...]]


@operator("If", since=1, host="condition")
def branch(condition: Any, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    return then_branch() if bool(scalar(condition)) else else_branch()


@operator("Loop", since=1, host=("trips", "condition"))
def loop(trips: Any, condition: Any, *state: Any, body: Body) -> tuple[Any, ...]:
    limit = None if trips is None else int(scalar(trips))
    going = True if condition is None else bool(scalar(condition))
    values, index = tuple(state), 0
    columns: list[list[Tensor]] | None = None
    while going and (limit is None or index < limit):
        # The body sees whether it goes on as a tensor, as it would in any runtime.
        go_on, *results = body(torch.tensor(index), torch.tensor(going), *values)
        going = bool(go_on)
        values, scanned = tuple(results[: len(state)]), results[len(state) :]
        columns = columns if columns is not None else [[] for _ in scanned]
        for column, value in zip(columns, scanned, strict=True):
            column.append(value)
        index += 1
    return (*values, *(torch.stack(column) for column in columns or ()))


@operator("Scan", since=9)
def scan(
    *inputs: Tensor,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    states = len(inputs) - num_scan_inputs
    values: tuple[Any, ...] = inputs[:states]
    scanned = []
    for position, sequence in enumerate(inputs[states:]):
        steps = list(sequence.unbind(scan_input_axes[position] if scan_input_axes else 0))
        backwards = scan_input_directions is not None and scan_input_directions[position]
        scanned.append(steps[::-1] if backwards else steps)
    rows = []
    for slices in zip(*scanned, strict=True):
        results = body(*values, *slices)
        values = tuple(results[:states])
        rows.append(results[states:])
    outputs = []
    for position, column in enumerate(zip(*rows, strict=True)):
        backwards = scan_output_directions is not None and scan_output_directions[position]
        axis = scan_output_axes[position] if scan_output_axes else 0
        outputs.append(torch.stack(column[::-1] if backwards else column, axis))
    return (*values, *outputs)
