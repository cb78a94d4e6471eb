"""Convolutions of one to three spatial dimensions."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.registry import UnsupportedFormError, operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def resolve_pads(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[int]:
    """Return the padding before each spatial axis, then after each, as `auto_pad` or `pads` ask for."""
    rank = len(kernel)
    if auto_pad == "VALID":
        return [0] * (2 * rank)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for length, size, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            extent = (size - 1) * dilation + 1
            total = max((-(-length // stride) - 1) * stride + extent - length, 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto_pad == "SAME_UPPER" else large)
            after.append(large if auto_pad == "SAME_UPPER" else small)
        return before + after
    return list(pads) if pads else [0] * (2 * rank)


def _spatial_rank(x: Tensor) -> int:
    rank = x.ndim - 2
    if rank not in _CONV:
        raise UnsupportedFormError(f"{rank} spatial dimensions")
    return rank


@operator("Conv", since=1)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = _spatial_rank(x)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    resolved = resolve_pads(x, weight.shape[2:], strides, dilations, pads=pads, auto_pad=auto_pad)
    before, after = resolved[:rank], resolved[rank:]
    if before != after:
        flat = [amount for axis in reversed(range(rank)) for amount in (before[axis], after[axis])]
        x, before = F.pad(x, flat), [0] * rank
    return _CONV[rank](x, weight, bias, tuple(strides), tuple(before), tuple(dilations), group)


@operator("ConvTranspose", since=1)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = _spatial_rank(x)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extra = list(output_padding or (0,) * rank)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    full = [(n - 1) * s + e + o for n, s, e, o in zip(x.shape[2:], strides, extents, extra, strict=True)]
    before, after = (list(pads[:rank]), list(pads[rank:])) if pads else ([0] * rank, [0] * rank)
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = (
            list(output_shape)[-rank:] if output_shape else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        )
        cut = [have - want for have, want in zip(full, wanted, strict=True)]
        small, large = [total // 2 for total in cut], [total - total // 2 for total in cut]
        # With an explicit output shape the odd element is cut at the end only for SAME_UPPER.
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    # What the extra padding adds must exist before it is cut: torch refuses more padding than stride.
    y = _TRANSPOSED[rank](x, weight, bias, tuple(strides), 0, 0, group, tuple(dilations))
    grow = [total - have for total, have in zip(full, y.shape[2:], strict=True)]
    flat = [amount for axis in reversed(range(rank)) for amount in (-before[axis], grow[axis] - after[axis])]
    if not any(flat):
        return y
    if bias is None or not any(amount > 0 for amount in flat):
        return F.pad(y, flat)
    return F.pad(y - _channels(bias, rank), flat) + _channels(bias, rank)


def _channels(bias: Tensor, rank: int) -> Tensor:
    return bias.reshape(1, -1, *([1] * rank))


@operator("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    # Products and sums of eight-bit integers are exact in double precision.
    shifted = x.double() - (0 if x_zero_point is None else x_zero_point.double())
    kernel = weight.double()
    if weight_zero_point is not None:
        kernel = kernel - weight_zero_point.double().reshape(-1, *([1] * (weight.ndim - 1)))
    y = conv(shifted, kernel, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return y.round().to(torch.int32)


@operator("Col2Im", since=18, host=("image_shape", "block_shape"))
def column_to_image(
    x: Tensor,
    image_shape: list[int],
    block_shape: list[int],
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = len(image_shape)
    padding = list(pads) if pads else [0] * (2 * rank)
    if rank != 2:
        raise UnsupportedFormError(f"{rank} spatial dimensions")
    padded = [length + padding[i] + padding[rank + i] for i, length in enumerate(image_shape)]
    image = F.fold(
        x, tuple(padded), tuple(block_shape), dilation=tuple(dilations or (1, 1)), stride=tuple(strides or (1, 1))
    )
    return image[..., padding[0] : padding[0] + image_shape[0], padding[1] : padding[1] + image_shape[1]]


_CAUSAL_ACTIVATIONS = {"none": lambda y: y, "silu": F.silu, "swish": F.silu}


@operator("CausalConvWithState", since=27)
def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time that continues from the last inputs of the call before."""
    kept = weight.shape[-1] - 1
    if past is None:
        past = x.new_zeros(*x.shape[:2], kept)
    joined = torch.cat([past, x], -1)
    y = F.conv1d(joined, weight, bias, groups=x.shape[1])
    return _CAUSAL_ACTIVATIONS[activation](y), joined[..., joined.shape[-1] - kept :]
