"""Pooling over windows."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

from collections.abc import Sequence
from math import ceil, floor, prod

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.convolution import resolve_pads
from edgesmith.execution.operators.registry import Site, operator

_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _Windows:
    """Where the windows of one pooling lie."""

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        ceil_mode: int,
    ) -> None:
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(strides or (1,) * rank)
        self.dilations = tuple(dilations or (1,) * rank)
        pads = resolve_pads(x, kernel, self.strides, self.dilations, pads=pads, auto_pad=auto_pad)
        self.before, self.after = tuple(pads[:rank]), tuple(pads[rank:])
        rounding = ceil if ceil_mode else floor
        self.outputs: list[int] = []
        self.overhang: list[int] = []
        for axis, length in enumerate(x.shape[2:]):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            padded = length + self.before[axis] + self.after[axis]
            count = rounding((padded - extent) / self.strides[axis]) + 1
            if ceil_mode and (count - 1) * self.strides[axis] >= length + self.before[axis]:
                count -= 1  # A window must start inside the input or its leading padding.
            self.outputs.append(count)
            self.overhang.append(max((count - 1) * self.strides[axis] + extent - padded, 0))

    @property
    def plain(self) -> bool:
        """Whether torch's own pooling kernels mean the same."""
        return (
            self.before == self.after
            and not any(self.overhang)
            and all(2 * pad <= size for pad, size in zip(self.before, self.kernel, strict=True))
        )

    def view(self, x: Tensor, fill: float, beyond: float | None = None) -> Tensor:
        """Return all windows, shape (batch, channels, *outputs, *kernel).

        The padding holds `fill`; what a last window reads beyond it, in ceil mode, holds `beyond`.
        """
        rank = len(self.kernel)
        axes = tuple(reversed(range(rank)))
        x = F.pad(x, [n for axis in axes for n in (self.before[axis], self.after[axis])], value=fill)
        if any(self.overhang):
            x = F.pad(
                x, [n for axis in axes for n in (0, self.overhang[axis])], value=fill if beyond is None else beyond
            )
        for axis in range(rank):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            x = x.unfold(2 + axis, extent, self.strides[axis])[..., :: self.dilations[axis]]
        return x[(slice(None), slice(None), *(slice(0, count) for count in self.outputs))]


def _last(rank: int) -> list[int]:
    return list(range(-rank, 0))


@operator("AveragePool", since=1)
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    windows = _Windows(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    rank = len(kernel_shape)
    if windows.plain and set(windows.dilations) == {1} and rank in _AVERAGE:
        return _AVERAGE[rank](
            x, windows.kernel, windows.strides, windows.before, count_include_pad=bool(count_include_pad)
        )
    # What lies beyond the padding never counts.
    counted = windows.view(torch.ones_like(x[:1, :1]), float(count_include_pad), beyond=0.0)
    return windows.view(x, 0.0).sum(_last(rank)) / counted.sum(_last(rank))


@operator("LpPool", since=2)
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    windows = _Windows(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    return windows.view(x, 0.0).abs().pow(p).sum(_last(len(kernel_shape))).pow(1.0 / p)


@operator("MaxPool", since=1)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    site: Site,
) -> tuple[Tensor, ...]:
    windows = _Windows(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    rank = len(kernel_shape)
    if site.outputs == 1 and windows.plain and rank in _MAXIMUM and x.is_floating_point():
        return (_MAXIMUM[rank](x, windows.kernel, windows.strides, windows.before, windows.dilations),)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    values, winner = windows.view(x, lowest).flatten(-rank).max(-1)
    return values, _positions(x, windows, winner, storage_order)


def _positions(x: Tensor, windows: _Windows, winner: Tensor, storage_order: int) -> Tensor:
    """Return where in the whole tensor each maximum stood, as ONNX numbers it."""
    rank = len(windows.kernel)
    spatial = x.shape[2:]
    order = list(range(rank)) if storage_order == 0 else list(reversed(range(rank)))
    offsets: list[Tensor] = []
    rest = winner
    for axis in reversed(range(rank)):
        step = rest % windows.kernel[axis]
        rest = rest // windows.kernel[axis]
        shape = [1] * winner.ndim
        shape[2 + axis] = -1
        start = torch.arange(winner.shape[2 + axis], device=x.device) * windows.strides[axis] - windows.before[axis]
        offsets.insert(0, start.reshape(shape) + step * windows.dilations[axis])
    flat = torch.zeros_like(winner)
    for axis in order:
        flat = flat * spatial[axis] + offsets[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * prod(spatial)
    return flat + planes.reshape(x.shape[0], x.shape[1], *([1] * rank))


@operator("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return x.abs().pow(p).sum(list(range(2, x.ndim)), keepdim=True).pow(1.0 / p)
