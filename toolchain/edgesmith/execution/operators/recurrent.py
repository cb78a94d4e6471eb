"""Recurrent layers: RNN, GRU and LSTM, written out step by step."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.registry import UnsupportedFormError, operator
from edgesmith.execution.operators.shapes import reverse_sequence

Activation = Callable[[Tensor], Tensor]


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    def default(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    table: dict[str, Activation] = {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Affine": lambda x: default(alpha, 1.0) * x + default(beta, 0.0),
        "LeakyRelu": lambda x: F.leaky_relu(x, default(alpha, 0.01)),
        "ThresholdedRelu": lambda x: torch.where(x >= default(alpha, 1.0), x, torch.zeros_like(x)),
        "ScaledTanh": lambda x: default(alpha, 1.0) * torch.tanh(default(beta, 1.0) * x),
        "HardSigmoid": lambda x: torch.clamp(default(alpha, 0.2) * x + default(beta, 0.5), 0, 1),
        "Elu": lambda x: F.elu(x, default(alpha, 1.0)),
        "Softsign": F.softsign,
        "Softplus": F.softplus,
    }
    matching = {key.lower(): value for key, value in table.items()}
    if name.lower() not in matching:
        raise UnsupportedFormError(f"activation {name!r}")
    return matching[name.lower()]


@dataclass(frozen=True, slots=True)
class _Form:
    """The attributes that all recurrent operators have in common."""

    direction: str
    layout: int
    clip: float | None
    activations: list[Activation]

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def reversed(self, index: int) -> bool:
        return self.direction == "reverse" or index == 1

    def limit(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def _form(
    defaults: Sequence[str],
    direction: str,
    layout: int,
    clip: float | None,
    *,
    names: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> _Form:
    count = 2 if direction == "bidirectional" else 1
    chosen = list(names) if names else list(defaults) * count

    def nth(values: Sequence[float] | None, index: int) -> float | None:
        return values[index] if values is not None and index < len(values) else None

    activations = [_activation(name, nth(alphas, i), nth(betas, i)) for i, name in enumerate(chosen)]
    return _Form(direction, layout, clip, activations)


Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Takes the projected input of one time step and the state; returns the new state, whose first part is the output."""


def _unroll(
    projected: Tensor, state: tuple[Tensor, ...], step: Step, lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the outputs of all time steps, shape (time, batch, hidden), and the last state."""
    time, batch = projected.shape[:2]
    full = torch.full((batch,), time, device=projected.device)
    if backwards:
        projected = projected.flip(0) if lengths is None else reverse_sequence(projected, lengths)
    outputs = []
    for index in range(time):
        new = step(projected[index], state)
        if lengths is not None:
            alive = (index < lengths).reshape(-1, 1)
            outputs.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
            state = tuple(torch.where(alive, fresh, old) for fresh, old in zip(new, state, strict=True))
        else:
            outputs.append(new[0])
            state = new
    y = torch.stack(outputs)
    if backwards:
        y = reverse_sequence(y, full if lengths is None else lengths)
    return y, state


def _run(
    form: _Form,
    x: Tensor,
    initial: Sequence[Tensor | None],
    lengths: Tensor | None,
    hidden: int,
    direction: Callable[[int], tuple[Tensor, Tensor, Step]],
) -> tuple[Tensor, ...]:
    """Return Y and the last states in the node's layout; `direction` gives weight, bias and step of each direction."""
    x = x.transpose(0, 1) if form.layout else x
    ys, lasts = [], []
    for index in range(form.directions):
        weight, bias, step = direction(index)
        state = tuple(
            x.new_zeros(x.shape[1], hidden)
            if value is None
            else (value.transpose(0, 1) if form.layout else value)[index]
            for value in initial
        )
        projected = torch.matmul(x, weight.t()) + bias
        y, last = _unroll(projected, state, step, lengths, form.reversed(index))
        ys.append(y)
        lasts.append(last)
    y = torch.stack(ys, 1)
    states = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    if form.layout:
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))
    return (y, *states)


def _bias(bias: Tensor | None, index: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input's and the state's bias of one direction."""
    if bias is None:
        zero = weight.new_zeros(weight.shape[1])
        return zero, zero
    first, second = bias[index].chunk(2)
    return first, second


@operator("RNN", since=7)
def rnn(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    form = _form(["Tanh"], direction, layout, clip, names=activations, alphas=activation_alpha, betas=activation_beta)

    def one(index: int) -> tuple[Tensor, Tensor, Step]:
        activate = form.activations[index]
        first, second = _bias(bias, index, weight)

        def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (activate(form.limit(projected + torch.matmul(state[0], recurrence[index].t()))),)

        return weight[index], first + second, step

    return _run(form, x, [initial_h], lengths, recurrence.shape[-1], one)


@operator("GRU", since=7)
def gru(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    form = _form(
        ["Sigmoid", "Tanh"], direction, layout, clip, names=activations, alphas=activation_alpha, betas=activation_beta
    )
    hidden = recurrence.shape[-1]

    def one(index: int) -> tuple[Tensor, Tensor, Step]:
        gate, candidate = form.activations[2 * index : 2 * index + 2]
        first, second = _bias(bias, index, weight)
        gates, inner = recurrence[index, : 2 * hidden], recurrence[index, 2 * hidden :]

        def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (h,) = state
            both = torch.matmul(h, gates.t()) + second[: 2 * hidden]
            update, reset = gate(form.limit(projected[:, : 2 * hidden] + both)).chunk(2, -1)
            if linear_before_reset:
                recurrent = reset * (torch.matmul(h, inner.t()) + second[2 * hidden :])
            else:
                recurrent = torch.matmul(reset * h, inner.t()) + second[2 * hidden :]
            new = candidate(form.limit(projected[:, 2 * hidden :] + recurrent))
            return ((1 - update) * new + update * h,)

        return weight[index], first, step

    return _run(form, x, [initial_h], lengths, hidden, one)


@operator("LSTM", since=7)
def lstm(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    form = _form(
        ["Sigmoid", "Tanh", "Tanh"],
        direction,
        layout,
        clip,
        names=activations,
        alphas=activation_alpha,
        betas=activation_beta,
    )

    def one(index: int) -> tuple[Tensor, Tensor, Step]:
        gate, cell, out = form.activations[3 * index : 3 * index + 3]
        first, second = _bias(bias, index, weight)
        peep = peepholes[index].chunk(3) if peepholes is not None else None

        def step(projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = state
            i, o, f, g = (projected + torch.matmul(h, recurrence[index].t())).chunk(4, -1)
            if peep is not None:
                i, f = i + peep[0] * c, f + peep[2] * c
            i = gate(form.limit(i))
            f = 1 - i if input_forget else gate(form.limit(f))
            c = f * c + i * cell(form.limit(g))
            if peep is not None:
                o = o + peep[1] * c
            return gate(form.limit(o)) * out(c), c

        return weight[index], first + second, step

    return _run(form, x, [initial_h, initial_c], lengths, recurrence.shape[-1], one)
