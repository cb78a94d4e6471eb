"""Activation functions."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.registry import operator

operator("Relu", since=6)(lambda x: torch.relu(x))
operator("Sigmoid", since=6)(lambda x: torch.sigmoid(x))
operator("Tanh", since=6)(lambda x: torch.tanh(x))
operator("Softplus", since=1)(lambda x: F.softplus(x, threshold=1e9))
operator("Softsign", since=1)(lambda x: F.softsign(x))
operator("Mish", since=18)(lambda x: F.mish(x))
operator("HardSwish", since=14)(lambda x: F.hardswish(x))


@operator("LeakyRelu", since=6)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("PRelu", since=7)
def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu", since=6)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@operator("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * F.elu(x, alpha)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros((), dtype=x.dtype, device=x.device))


@operator("HardSigmoid", since=6)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def _rows(x: Tensor, axis: int) -> Tensor:
    """Return `x` as the matrix that these operators worked on before opset 13."""
    return x.reshape(x.shape[:axis].numel(), -1)


@operator("Softmax", since=1)
def softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    # Over the last axis alone both meanings agree, and nothing is copied.
    if axis in (-1, x.ndim - 1):
        return torch.softmax(x, -1)
    return torch.softmax(_rows(x, axis % x.ndim), 1).reshape(x.shape)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=1)
def log_softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.log_softmax(_rows(x, axis % x.ndim), 1).reshape(x.shape)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=1)
def hardmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    return hardmax(_rows(x, axis % x.ndim), axis=1).reshape(x.shape)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter_(axis, first, 1)
