"""Normalizations."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.dtypes import torch_type
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator


@operator("BatchNormalization", since=7)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> tuple[Tensor, ...]:
    """Normalize by the running statistics, also while training, unless the node itself asks for those of the batch."""
    if not spatial:
        raise UnsupportedFormError("statistics per element (spatial = 0)")
    if training_mode:
        axes = [0, *range(2, x.ndim)]
        batch_variance, batch_mean = torch.var_mean(x, axes, correction=0)
        running_mean = momentum * mean + (1 - momentum) * batch_mean
        running_variance = momentum * variance + (1 - momentum) * batch_variance
        y = F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
        return y, running_mean, running_variance
    if x.dtype != mean.dtype or x.dtype != scale.dtype:
        mean, variance, scale, bias = (value.to(x.dtype) for value in (mean, variance, scale, bias))
    if torch.is_grad_enabled() and (mean.requires_grad or variance.requires_grad):
        # Torch's kernel has no gradient for the statistics.
        shape = (-1, *([1] * (x.ndim - 2)))
        factor = scale * torch.rsqrt(variance + epsilon)
        return (x * factor.reshape(shape) + (bias - mean * factor).reshape(shape),)
    return (F.batch_norm(x, mean, variance, scale, bias, eps=epsilon),)


@operator("InstanceNormalization", since=6)
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization", since=1)  # Before opset 17 it is ONNX Runtime's own, of the same meaning.
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    site: Site,
) -> tuple[Tensor, ...]:
    shape = x.shape[axis:] if axis >= 0 else x.shape[x.ndim + axis :]
    fits = scale.shape == shape and (bias is None or bias.shape == shape)
    if fits and site.outputs == 1:
        return (F.layer_norm(x, shape, scale, bias, epsilon),)
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.to(torch_type(ir.DataType(stash_type)))
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


@operator("RMSNormalization", since=23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@operator("GroupNormalization", since=18)
def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Normalize with one scale per group, which opset 21 replaced by one per channel."""
    repeats = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN", since=1)
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    squares = x.square().unsqueeze(1).flatten(3)
    squares = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    sums = F.avg_pool2d(squares, (size, 1), stride=1, divisor_override=1).reshape(x.shape)
    return x / (bias + alpha / size * sums) ** beta


@operator("LpNormalization", since=1)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    length = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / torch.where(length == 0, torch.ones_like(length), length))


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


@operator("Dropout", since=7)
def dropout_by_attribute(
    x: Tensor, *, ratio: float = 0.5, seed: int | None = None, site: Site
) -> tuple[Tensor, Tensor]:
    return dropout(x, ratio, seed=seed, site=site)


@operator("Dropout", since=12, host=("ratio", "training_mode"))
def dropout(
    x: Tensor,
    ratio: float | None = None,
    training_mode: bool | None = None,
    *,
    seed: int | None = None,
    site: Site,
) -> tuple[Tensor, Tensor]:
    """Drop values if the node says so, or, where it leaves that open, while the TorchGraph is in training mode.

    A node with a seed drops the same values every time, those that the reference implementation of ONNX drops.
    """
    rate = 0.5 if ratio is None else float(ratio)
    training = site.mode.training if training_mode is None else bool(training_mode)
    if not training or rate == 0:
        return x, torch.ones_like(x, dtype=torch.bool) if site.outputs > 1 else x
    if seed is None:
        kept = torch.rand_like(x, dtype=torch.float32) >= rate
    else:
        drawn = np.random.RandomState(int(seed)).uniform(0, 1, x.shape)
        kept = torch.from_numpy(np.asarray(drawn >= rate)).to(x.device)
    return x * kept / (1 - rate), kept
