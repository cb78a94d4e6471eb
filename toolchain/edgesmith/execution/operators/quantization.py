"""Quantization. A QuantizeLinear followed by its DequantizeLinear has a straight-through gradient.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (2013), section 4: rounding counts
as the identity, and values that saturate receive no gradient. As the rounding error is held constant, scales
get the gradient of Esser et al., "Learned Step Size Quantization" (2020), equation 3, without its damping factor.
"""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.dtypes import INTEGER_RANGES, onnx_type, torch_type
from edgesmith.execution.operators.casting import convert, to_float4
from edgesmith.execution.operators.convolution import conv_integer
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator


def _spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts against `x`."""
    if parameter.numel() == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = axis % x.ndim
    if parameter.ndim == 1 and (x.ndim != 1 or not block_size):
        return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    size = block_size or -(-x.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: ir.DataType, saturate: bool) -> Tensor:
    """Return the quantized values as floats, with a straight-through gradient where one is recorded."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scaled = x.to(wide) / scale.to(wide)
    if dtype not in INTEGER_RANGES:
        kept = scaled.detach()
        rounded = to_float4(kept) if dtype == ir.DataType.FLOAT4E2M1 else convert(kept, dtype, saturate=saturate)
        if not scaled.requires_grad:
            return rounded.to(wide)
        limit = 6.0 if dtype == ir.DataType.FLOAT4E2M1 else torch.finfo(rounded.dtype).max
        return _straight_through(scaled.clamp(-limit, limit), rounded.to(wide))
    low, high = INTEGER_RANGES[dtype]
    rounded = _straight_through(scaled, torch.round(scaled.detach())) if scaled.requires_grad else torch.round(scaled)
    if zero_point is not None:
        rounded = rounded + zero_point.to(wide)
    return rounded.clamp(low, high)


def _straight_through(x: Tensor, replacement: Tensor) -> Tensor:
    return x + (replacement - x.detach())


def _quantized_type(zero_point: ir.DataType | None, output_dtype: int, given: Tensor | None) -> ir.DataType:
    if output_dtype:
        return ir.DataType(output_dtype)
    if zero_point is not None:
        return zero_point
    if given is not None:
        return onnx_type(given.dtype)
    return ir.DataType.UINT8


@operator("QuantizeLinear", since=10)
@operator("QuantizeLinear", since=1, domain="com.microsoft")
def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    site: Site,
) -> Tensor:
    declared = site.input_types[2] if len(site.input_types) > 2 else None
    dtype = _quantized_type(declared, output_dtype, zero_point)
    spread_scale = _spread(scale, x, axis, block_size)
    spread_zero = None if zero_point is None else _spread(zero_point, x, axis, block_size)
    codes = _codes(x, spread_scale, spread_zero, dtype, bool(saturate))
    return codes.detach().to(torch_type(dtype))


@operator("DequantizeLinear", since=10)
@operator("DequantizeLinear", since=1, domain="com.microsoft")
def dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    dtype = torch_type(ir.DataType(output_dtype)) if output_dtype else scale.dtype
    wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
    values = x.to(wide)
    if zero_point is not None and zero_point.dtype not in _FLOAT_CODES:
        values = values - _spread(zero_point, x, axis, block_size).to(wide)
    return (values * _spread(scale, x, axis, block_size).to(wide)).to(dtype)


# Float formats are symmetric: their zero point is 0 and only says the type.
_FLOAT_CODES = {
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float32,
}


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    back_scale: Tensor,
    back_zero_point: Tensor | None,
    *,
    quantize_attributes: dict[str, Any],
    dequantize_attributes: dict[str, Any],
    site: Site,
) -> Tensor:
    """Return what QuantizeLinear and then DequantizeLinear make of `x`, with a straight-through gradient."""
    axis, block = quantize_attributes.get("axis", 1), quantize_attributes.get("block_size", 0)
    declared = site.input_types[2] if len(site.input_types) > 2 else None
    dtype = _quantized_type(declared, quantize_attributes.get("output_dtype", 0), zero_point)
    zero = None if zero_point is None else _spread(zero_point, x, axis, block)
    saturate = bool(quantize_attributes.get("saturate", 1))
    codes = _codes(x, _spread(scale, x, axis, block), zero, dtype, saturate)
    return dequantize(codes, back_scale, back_zero_point, **dequantize_attributes)


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.aminmax(x)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((-low / safe).clamp(0, 255))
    codes = (torch.round(x / safe) + zero_point).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero_point.to(torch.uint8)


def _shift(x: Tensor, zero_point: Tensor | None, column: bool) -> Tensor:
    """Return integers minus their zero point in double precision, where their products and sums are exact."""
    if zero_point is None:
        return x.double()
    zero = zero_point.double()
    if zero.ndim == 1 and zero.numel() > 1 and column:
        zero = zero.unsqueeze(-1)
    return x.double() - zero


@operator("MatMulInteger", since=10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    product = torch.matmul(_shift(a, a_zero_point, True), _shift(b, b_zero_point, False))
    return product.round().to(torch.int32)


@operator("QLinearMatMul", since=10)
def quantized_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    site: Site,
) -> Tensor:
    product = torch.matmul(_shift(a, a_zero_point, True), _shift(b, b_zero_point, False))
    row_scale = a_scale.unsqueeze(-1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    return _requantize(product, row_scale.double() * b_scale.double(), y_scale, y_zero_point)


def _requantize(product: Tensor, scale: Tensor, y_scale: Tensor, y_zero_point: Tensor) -> Tensor:
    limits = torch.iinfo(y_zero_point.dtype)
    codes = torch.round(product * (scale / y_scale.double())) + y_zero_point.double()
    return codes.clamp(limits.min, limits.max).to(y_zero_point.dtype)


@operator("QLinearConv", since=10)
def quantized_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    total = conv_integer(
        x,
        weight,
        x_zero_point,
        weight_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    ).double()
    shape = (-1, *([1] * (x.ndim - 2)))
    if bias is not None:
        total = total + bias.double().reshape(shape)
    scale = x_scale.double() * weight_scale.double()
    return _requantize(total, scale.reshape(shape) if scale.numel() > 1 else scale, y_scale, y_zero_point)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Return the codes held in bytes, lowest bits first, as uint8 along the last axis."""
    if bits == 8:
        return packed
    if bits not in (2, 4):
        raise UnsupportedFormError(f"{bits} bits")
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)
