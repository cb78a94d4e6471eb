"""Fourier transforms. A complex value is a last axis of length two: real and imaginary part."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

from typing import Any

import torch
from torch import Tensor

from edgesmith.execution.operators.registry import operator, scalar


@operator("DFT", since=17, host="length")
def dft_by_attribute(x: Tensor, length: Any = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    return dft(x, length, axis, inverse=inverse, onesided=onesided)


@operator("DFT", since=20, host=("length", "axis"))
def dft(x: Tensor, length: Any = None, axis: Any = -2, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    dimension = (-2 if axis is None else int(scalar(axis))) % x.ndim
    # In single precision the parts that should be zero would only nearly be.
    wide = x.double().contiguous()
    if inverse and onesided:
        values: Tensor = torch.fft.irfft(torch.view_as_complex(wide), scalar(length), dimension)
        return values.unsqueeze(-1).to(x.dtype)
    signal = wide.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(wide)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(signal.real, scalar(length), dimension)).to(x.dtype)
    transform = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(transform(signal, scalar(length), dimension)).to(x.dtype)


@operator("STFT", since=17, host=("step", "length"))
def stft(x: Tensor, step: Any, window: Tensor | None = None, length: Any = None, *, onesided: int = 1) -> Tensor:
    """Return the transforms of overlapping frames, shape (batch, frames, bins, 2)."""
    size = int(scalar(length)) if length is not None else window.shape[0] if window is not None else x.shape[1]
    complex_input = x.ndim == 3 and x.shape[-1] == 2
    signal = torch.view_as_complex(x.contiguous()) if complex_input else x.reshape(x.shape[:2])
    frames = signal.unfold(1, size, int(scalar(step)))
    if window is not None:
        frames = frames * window
    if onesided and not complex_input:
        return torch.view_as_real(torch.fft.rfft(frames))
    bins = torch.fft.fft(frames)
    return torch.view_as_real(bins[..., : size // 2 + 1] if onesided else bins)
