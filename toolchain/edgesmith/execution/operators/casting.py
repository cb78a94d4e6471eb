"""Conversions between number formats."""

# ruff: noqa: D103 - what each operator means is defined by ONNX

import onnx_ir as ir
import torch
from torch import Tensor

from edgesmith.execution.dtypes import FLOAT4_VALUES, INTEGER_RANGES, torch_type
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
_NARROW_INTEGERS = {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2}


def convert(x: Tensor, dtype: ir.DataType, *, saturate: bool = True) -> Tensor:
    """Return `x` in the torch type that holds `dtype`, rounded or wrapped as ONNX does.

    Args:
        x: Any tensor.
        dtype: The ONNX type to convert to.
        saturate: Whether values beyond the range of a float8 become its largest value (else NaN or infinity).
    """
    target = torch_type(dtype)
    if dtype in _FLOAT8:
        return _to_float8(x, target, saturate)
    if dtype in _NARROW_INTEGERS:
        return _wrap(x, dtype).to(target)
    if dtype == ir.DataType.FLOAT4E2M1:
        return to_float4(x)
    if dtype == ir.DataType.FLOAT8E8M0:
        raise UnsupportedFormError("conversion to float8e8m0")
    if x.dtype == target:
        return x
    if x.is_floating_point() and target in (torch.uint16, torch.uint32, torch.uint64):
        return x.to(torch.int64).to(target)
    return x.to(target)


def _to_float8(x: Tensor, target: torch.dtype, saturate: bool) -> Tensor:
    limit = torch.finfo(target).max
    x = x.float()
    if saturate:
        return x.clamp(-limit, limit).to(target)
    rounded = x.to(target)
    if target is not torch.float8_e5m2:
        # torch's conversion may saturate; without saturation what does not fit is not a number.
        step = {torch.float8_e4m3fn: 16.0, torch.float8_e4m3fnuz: 8.0}.get(target, 4096.0)
        overflow = x.abs() > limit + step
        rounded = torch.where(overflow, torch.full_like(x, torch.nan), rounded.float()).to(target)
    return rounded


def _wrap(x: Tensor, dtype: ir.DataType) -> Tensor:
    low, high = INTEGER_RANGES[dtype]
    size = high - low + 1
    return torch.remainder(x.to(torch.int64) - low, size) + low


def to_float4(x: Tensor) -> Tensor:
    """Return the nearest float4 (E2M1) values as float32; ties go to the even code, and large values saturate."""
    values = torch.tensor(FLOAT4_VALUES, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    magnitude = x.float().abs().contiguous()
    low, high = torch.bucketize(magnitude, middles, right=False), torch.bucketize(magnitude, middles, right=True)
    index = torch.where(low % 2 == 0, low, high)
    rounded = torch.copysign(values[index], x.float())
    # There is no code for NaN; the suite of ONNX has it become negative zero.
    return torch.where(magnitude.isnan(), torch.full_like(rounded, -0.0), rounded)


@operator("Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return convert(x, ir.DataType(to), saturate=bool(saturate))


@operator("CastLike", since=15)
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up", site: Site) -> Tensor:
    dtype = site.input_types[1]
    if dtype is None:
        return x.to(target.dtype)
    return convert(x, dtype, saturate=bool(saturate))


@operator("BitCast", since=26)
def bit_cast(x: Tensor, *, to: int, site: Site) -> Tensor:
    dtype = ir.DataType(to)
    if dtype.bitwidth < 8 or (site.input_types[0] or dtype).bitwidth < 8:
        raise UnsupportedFormError("types below eight bits")
    return x.view(torch_type(dtype))
