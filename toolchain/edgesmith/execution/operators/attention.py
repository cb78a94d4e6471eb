"""Attention and rotary position embeddings."""

# ruff: noqa: D103, PLR0913 - ONNX defines what each operator means and which inputs and attributes it has

import math

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.dtypes import torch_type
from edgesmith.execution.operators.registry import Site, operator


def _split_heads(x: Tensor, heads: int | None) -> Tensor:
    if x.ndim == 4 or heads is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _allowed(
    q: Tensor, k: Tensor, offset: Tensor | int, *, causal: bool, left: int, right: int, lengths: Tensor | None
) -> Tensor | None:
    """Return which key each query may see, as a boolean mask of four axes, or None if every key."""
    allowed: Tensor | None = None
    keys = torch.arange(k.shape[2], device=q.device)
    if causal or left >= 0 or right >= 0:
        shift = offset.reshape(-1, 1, 1, 1) if isinstance(offset, Tensor) else offset
        distance = torch.arange(q.shape[2], device=q.device).reshape(1, 1, -1, 1) + shift - keys
        ahead = 0 if causal else right if right >= 0 else k.shape[2]
        allowed = distance >= -ahead
        if left >= 0:
            allowed = allowed & (distance <= left)
    if lengths is not None:
        present = keys < lengths.reshape(-1, 1, 1, 1)
        allowed = present if allowed is None else allowed & present
    return allowed


def _merge(mask: Tensor | None, allowed: Tensor | None, length: int) -> Tensor | None:
    """Return one mask, boolean or additive, from the given one and the allowed keys."""
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        missing = length - mask.shape[-1]
        if missing > 0 and mask.shape[-1] > 1:
            mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -torch.inf)
    if mask is None or allowed is None:
        return allowed if mask is None else mask
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)


@operator("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    site: Site,
) -> tuple[Tensor, ...]:
    flat = q.ndim == 3
    q, k, v = _split_heads(q, q_num_heads), _split_heads(k, kv_num_heads), _split_heads(v, kv_num_heads)
    offset: Tensor | int = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - q.shape[2]
    plain_causal = bool(is_causal) and mask is None and isinstance(offset, int) and offset == 0
    plain = softcap == 0 and site.outputs < 4 and (softmax_precision is None or q.dtype == torch.float32)
    shortcut = plain and plain_causal and left_window_size < 0 and right_window_size < 0 and nonpad_kv_seqlen is None
    if not shortcut:
        allowed = _allowed(
            q,
            k,
            offset,
            causal=bool(is_causal),
            left=left_window_size,
            right=right_window_size,
            lengths=nonpad_kv_seqlen,
        )
        mask = _merge(mask, allowed, k.shape[2])
    if plain:
        y = scaled_dot_product(q, k, v, mask, causal=shortcut, scale=scale)
        scores = y
    else:
        y, scores = _explicit(q, k, v, mask, scale, softcap, qk_matmul_output_mode, softmax_precision)
    return y.transpose(1, 2).flatten(2) if flat else y, k, v, scores


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Return softmax(q k^T scale + mask) v by torch's fused kernel; rows that see nothing give zeros."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float,
    mode: int,
    precision: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the scores at the stage that `mode` names, in separate steps."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    stages = [torch.matmul(q * root, (k * root).transpose(-1, -2))]
    stages.append(softcap * torch.tanh(stages[-1] / softcap) if softcap else stages[-1])
    if mask is None:
        stages.append(stages[-1])
    elif mask.dtype == torch.bool:
        stages.append(stages[-1].masked_fill(~mask, -torch.inf))
    else:
        stages.append(stages[-1] + mask)
    wide = stages[-1] if precision is None else stages[-1].to(torch_type(ir.DataType(precision)))
    weights = torch.softmax(wide, -1).masked_fill(torch.isneginf(wide).all(-1, keepdim=True), 0).to(q.dtype)
    stages.append(weights)
    return torch.matmul(weights, v), stages[mode]


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    flat = x.ndim == 3
    # From here on the axes are batch, position, head, channel.
    heads = x.reshape(x.shape[0], x.shape[1], num_heads, -1) if flat else x.transpose(1, 2)
    width = rotary_embedding_dim or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if position_ids is not None:
        cosine, sine = cosine[position_ids], sine[position_ids]
    cosine, sine = cosine[..., : width // 2].unsqueeze(2), sine[..., : width // 2].unsqueeze(2)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = first * cosine - second * sine, first * sine + second * cosine
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1) if rest.shape[-1] else turned
    return y.flatten(2) if flat else y.transpose(1, 2)
