"""Attention (one sequence, 8 heads), and a layer of LSTM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.suite.case import Case

HEADS = 8


def full(q: Any, k: Any, v: Any) -> Any:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q, k, v)


def causal(q: Any, k: Any, v: Any) -> Any:
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def lstm(x: Any, w: Any, u: Any, bias_x: Any, bias_h: Any, h0: Any, c0: Any) -> tuple[Any, Any]:
    import torch

    weights = [w.flatten(0, 1), u.flatten(0, 1), bias_x.flatten(), bias_h.flatten()]
    state = (h0[None], c0[None])
    h, _, c = torch._VF.lstm(x, state, weights, True, 1, 0.0, False, False, False)
    return h, c[0]


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """As PyTorch initialises them: within 1 / sqrt(of the last extent)."""
    return rng.uniform(-1.0, 1.0, shape) / shape[-1] ** 0.5


def _cases() -> Iterator[Case]:
    for dtype in ("f32", "bf16"):
        tail = "" if dtype == "f32" else "_bf16"
        for size in (64, 128):
            for tokens in (128, 512, 2048):
                flops = 4.0 * HEADS * tokens * tokens * size
                dims = {"B": 1, "H": HEADS, "T": tokens, "D": size}
                label = f"{dtype} {tokens} tokens, head {size}"
                yield Case(f"attention {label}", "attention", f"attention{tail}", dims, full,
                           flops, "attention")  # fmt: skip
                yield Case(f"causal attention {label}", "attention", f"attention{tail}", dims,
                           causal, flops / 2, "attention_causal")  # fmt: skip
    for dtype in ("f32", "bf16"):
        tail = "" if dtype == "f32" else "_bf16"
        for t, b, h in ((64, 16, 256), (128, 1, 512)):
            yield Case(f"lstm {dtype} {t}x{b}x{h}", "lstm", f"lstm{tail}",
                       {"T": t, "B": b, "I": h, "H": h}, lstm, 16.0 * t * b * h * h,
                       fills={"w": _weight, "u": _weight})  # fmt: skip


CASES = tuple(_cases())
