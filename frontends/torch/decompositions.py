"""How operators are taken apart that PyTorch itself runs whole: its fast paths of inference."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

aten = torch.ops.aten


def native_multi_head_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int, heads: int,
    weight: torch.Tensor, bias: torch.Tensor, out_weight: torch.Tensor, out_bias: torch.Tensor,
    mask: torch.Tensor | None = None, need_weights: bool = True, average: bool = True,
    mask_type: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """`mask_type` 0: `mask` is [T, T], of queries and keys; 1: [B, T], of keys; 2: of heads too.
    True is left out."""
    b, t, _ = query.shape
    parts = zip((query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
    q, k, v = (F.linear(x, w, c).view(b, -1, heads, width // heads).transpose(1, 2)
               for x, w, c in parts)  # fmt: skip
    scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        shape = {0: (1, 1, t, t), 1: (b, 1, 1, -1)}.get(2 if mask_type is None else mask_type)
        wide = mask if shape is None else mask.view(shape)
        scores = scores.masked_fill(wide, float("-inf")) if wide.dtype == torch.bool else (
            scores + wide)  # fmt: skip
    shares = scores.softmax(-1)
    y = F.linear((shares @ v).transpose(1, 2).reshape(b, t, width), out_weight, out_bias)
    if not need_weights:
        return y, None
    return y, shares.mean(1) if average else shares


def transformer_encoder_layer(
    x: torch.Tensor, width: int, heads: int, weight: torch.Tensor, bias: torch.Tensor,
    out_weight: torch.Tensor, out_bias: torch.Tensor, gelu: bool, norm_first: bool, eps: float,
    scale_1: torch.Tensor, shift_1: torch.Tensor, scale_2: torch.Tensor, shift_2: torch.Tensor,
    up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor,
    mask: torch.Tensor | None = None, mask_type: int | None = None,
) -> torch.Tensor:  # fmt: skip
    def attended(y: torch.Tensor) -> torch.Tensor:
        return native_multi_head_attention(
            y, y, y, width, heads, weight, bias, out_weight, out_bias, mask, False, True, mask_type
        )[0]

    def fed(y: torch.Tensor) -> torch.Tensor:
        inner = F.linear(y, up, up_bias)
        return F.linear(F.gelu(inner) if gelu else inner.relu(), down, down_bias)

    def first(y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, (width,), scale_1, shift_1, eps)

    def second(y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, (width,), scale_2, shift_2, eps)

    if norm_first:
        x = x + attended(first(x))
        return x + fed(second(x))
    x = first(x + attended(x))
    return second(x + fed(x))


DECOMPOSITIONS: dict[Any, Any] = {
    aten._native_multi_head_attention.default: native_multi_head_attention,
    aten._transformer_encoder_layer_fwd.default: transformer_encoder_layer,
}
