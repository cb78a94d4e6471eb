"""Number formats: how ONNX data types are held in torch.

Types below eight bits have no torch arithmetic. Integers of 2 and 4 bits are held in eight, with the value unchanged;
float4 is held as float32. The ONNX type of such a value is known to the graph only.
"""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgesmith.errors import UnsupportedOperatorError

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float32,
}

INTEGER_RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}

_ONNX_TYPES = {value: key for key, value in reversed(TORCH_TYPES.items())}

# NumPy has no such types of its own, and torch does not read those of ml_dtypes.
_BITS: dict[torch.dtype, type[np.generic]] = {
    torch.bfloat16: np.int16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
    torch.float8_e8m0fnu: np.uint8,
}


# Below this a mapping costs more than it saves.
_MAPPED_BYTES = 2**16


def torch_type(dtype: ir.DataType) -> torch.dtype:
    """Return the torch type that holds values of `dtype`.

    Raises:
        UnsupportedOperatorError: torch has none (strings, float6).
    """
    if dtype not in TORCH_TYPES:
        raise UnsupportedOperatorError(
            f"values of ONNX type {dtype.name} cannot be held in torch",
            expected=f"one of {', '.join(kind.name for kind in TORCH_TYPES)}",
            why="TorchGraph computes with torch tensors",
            fix="run this graph with ReferenceSession, or remove the part that makes such values",
        )
    return TORCH_TYPES[dtype]


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """Return the ONNX type that a torch type stands for; eight bits stand for themselves."""
    return _ONNX_TYPES[dtype]


def from_array(array: NDArray[Any]) -> torch.Tensor:
    """Return a torch copy of a NumPy array, including the types of ml_dtypes."""
    dtype = ir.DataType.from_numpy(array.dtype)
    target = torch_type(dtype)
    if dtype.bitwidth < 8 and dtype != ir.DataType.BOOL:
        holder = {torch.int8: np.int8, torch.uint8: np.uint8, torch.float32: np.float32}[target]
        return torch.from_numpy(array.astype(holder))
    if target in _BITS:
        return torch.from_numpy(array.view(_BITS[target]).copy()).view(target)
    return torch.from_numpy(np.array(array, order="C", ndmin=array.ndim))


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy array with the values of a tensor, sharing memory where possible."""
    tensor = tensor.detach().cpu()
    if tensor.dtype not in _BITS:
        return tensor.numpy()
    bits = tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.uint8).numpy()
    return bits.view(_ONNX_TYPES[tensor.dtype].numpy())


def from_tensor(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Return the values of an ONNX tensor in torch, free to be changed.

    They are a copy, except for a large tensor in an external file: that is mapped privately, so that only what is
    read takes memory, and what is changed stays in this process.
    """
    torch_type(tensor.dtype)
    array = tensor.numpy()
    mappable = isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8 and tensor.nbytes >= _MAPPED_BYTES
    if not isinstance(tensor, ir.ExternalTensor) or not mappable or array.dtype.byteorder == ">":
        return from_array(array)
    held = _BITS.get(TORCH_TYPES[tensor.dtype], array.dtype)
    mapped = np.memmap(tensor.path, dtype=held, mode="c", offset=tensor.offset or 0, shape=array.shape)
    return torch.from_numpy(mapped).view(TORCH_TYPES[tensor.dtype])


def to_tensor(tensor: torch.Tensor, dtype: ir.DataType, name: str | None) -> ir.Tensor[Any]:
    """Return a copy of a torch tensor as an ONNX tensor of type `dtype`."""
    copy = tensor.detach().to(device="cpu", dtype=torch_type(dtype), copy=True)
    return ir.Tensor[Any](to_array(copy).astype(dtype.numpy(), copy=False), dtype=dtype, name=name)


FLOAT4_VALUES = tuple(float(code) for code in np.arange(8, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn))
"""The non-negative values of float4 (E2M1)."""
