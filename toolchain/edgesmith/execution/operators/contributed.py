"""Operators of ONNX Runtime's own domain that its tools write into models."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.quantization import unpack_bits
from edgesmith.execution.operators.registry import Site, UnsupportedFormError, operator

_DOMAIN = "com.microsoft"


@operator("MatMulNBits", since=1, domain=_DOMAIN)
def matmul_n_bits(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    group_index: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803 - the attribute's name
    N: int,  # noqa: N803 - the attribute's name
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """Multiply by a weight of 2, 4 or 8 bits, packed in rows of N; activations always stay in float."""
    if group_index is not None or weight_prepacked:
        raise UnsupportedFormError("reordered or prepacked weights")
    blocks = -(-K // block_size)
    codes = unpack_bits(packed.reshape(N, blocks, -1), bits).to(scales.dtype)
    if zero_points is None:
        zero: Tensor | float = float(2 ** (bits - 1))
    elif zero_points.dtype == torch.uint8:
        zero = unpack_bits(zero_points.reshape(N, -1), bits)[:, :blocks].to(scales.dtype).unsqueeze(-1)
    else:
        zero = zero_points.reshape(N, blocks, 1)
    weight = ((codes - zero) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    return F.linear(x, weight.to(x.dtype), bias)


@operator("Gelu", since=1, domain=_DOMAIN)
def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


@operator("FastGelu", since=1, domain=_DOMAIN)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("BiasGelu", since=1, domain=_DOMAIN)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@operator("QuickGelu", since=1, domain=_DOMAIN)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("FusedMatMul", since=1, domain=_DOMAIN)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - the attribute's name
    transB: int = 0,  # noqa: N803 - the attribute's name
) -> Tensor:
    product = torch.matmul(a.mT if transA else a, b.mT if transB else b)
    return product if alpha == 1.0 else product * alpha


@operator("SkipLayerNormalization", since=1, domain=_DOMAIN)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    site: Site,
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if site.outputs in (2, 3):
        raise UnsupportedFormError("mean and inverse deviation as outputs")
    return y, y, y, total


@operator("SimplifiedLayerNormalization", since=1)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.rms_norm(x, x.shape[axis:], scale, epsilon)
