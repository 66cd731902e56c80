"""Cases that memory limits: rows, single elements, reductions, gathers, scans, pools,
transpositions. Those on 2**23 elements come from memory, the smaller ones from cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.suite.case import Case

ELEMENTS = 1 << 23
SMALL = 1 << 16
LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
EPS = 1e-5


def softmax(x: Any) -> Any:
    return x.softmax(-1)


def log_softmax(x: Any) -> Any:
    return x.log_softmax(-1)


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    from torch.nn import functional

    return functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def rms_norm(x: Any, weight: Any) -> Any:
    from torch.nn import functional

    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def group_norm(x: Any, weight: Any, bias: Any) -> Any:
    from torch.nn import functional

    n, g, k, length = x.shape
    flat = x.view(n, g * k, length)
    return functional.group_norm(flat, g, weight.view(-1), bias.view(-1), EPS).view(x.shape)


def batch_norm_relu(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
    from torch.nn import functional

    return functional.relu(functional.batch_norm(x, mean, var, weight, bias, False, 0.1, EPS))


def gelu(x: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(x)


def silu(x: Any) -> Any:
    from torch.nn import functional

    return functional.silu(x)


def mish(x: Any) -> Any:
    from torch.nn import functional

    return functional.mish(x)


def chain(x: Any, z: Any) -> Any:
    import torch

    return torch.abs(torch.relu(x * 0.5 + z) * z - x)


def embedding(table: Any, ids: Any) -> Any:
    from torch.nn import functional

    return functional.embedding(ids, table)


def cross_entropy(x: Any, label: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(x, label)


def cumsum(x: Any) -> Any:
    return x.cumsum(-1)


def max_pool(x: Any) -> Any:
    from torch.nn import functional

    return functional.max_pool2d(x, 3, 2, 1)


def avg_pool(x: Any) -> Any:
    from torch.nn import functional

    return functional.avg_pool2d(x, 2, 2)


def rotary(x: Any, cosine: Any, sine: Any) -> Any:
    import torch

    one, two = x.unbind(2)
    c, s = cosine[:, None], sine[:, None]
    return torch.stack((one * c - two * s, two * c + one * s), 2)


def transposed(x: Any) -> Any:
    return x.mT.contiguous()


def heads(x: Any) -> Any:
    return x.transpose(1, 2).contiguous()


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0.5, 2.0, shape)


def _below(n: int) -> Callable[[np.random.Generator, tuple[int, ...]], Any]:
    return lambda rng, shape: rng.integers(0, n, shape)


def _rows(dtype: str, tail: str, lengths: tuple[int, ...]) -> Iterator[Case]:
    kinds: dict[str, Callable[..., Any]] = {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "layer_norm": layer_norm,
        "rms_norm": rms_norm,
    }
    for kind, function in kinds.items():
        for n in lengths:
            yield Case(f"{kind} {dtype} {ELEMENTS // n}x{n}", "rows", f"{kind}{tail}",
                       {"M": ELEMENTS // n, "N": n}, function)  # fmt: skip
        yield Case(f"{kind} {dtype} {SMALL // 512}x512 in cache", "rows", f"{kind}{tail}",
                   {"M": SMALL // 512, "N": 512}, function)  # fmt: skip
    for n in (64, 1024, 65536) if dtype == "f32" else (1024,):
        k = 8
        outer = ELEMENTS // n // 4
        yield Case(f"group_norm {dtype} rows of {n}", "rows", f"group_norm{tail}",
                   {"N": outer, "G": 4, "K": k, "L": n // k}, group_norm)  # fmt: skip
        channels = 64
        yield Case(f"batch_norm_relu {dtype} rows of {n}", "rows", f"batch_norm_relu{tail}",
                   {"N": ELEMENTS // n // channels, "C": channels, "L": n}, batch_norm_relu,
                   fills={"var": _positive})  # fmt: skip


def _pointwise(dtype: str, tail: str) -> Iterator[Case]:
    for label, m in (("8M", ELEMENTS // 1024), ("64K in cache", SMALL // 1024)):
        dims = {"M": m, "N": 1024}
        yield Case(f"gelu {dtype} {label}", "pointwise", f"gelu{tail}", dims, gelu)
        others: dict[str, Callable[..., Any]] = {"silu": silu, "mish": mish, "chain": chain}
        for kind, function in others.items():
            yield Case(f"{kind} {dtype} {label}", "pointwise", f"pointwise{tail}", dims, function,
                       kernel_name=kind)  # fmt: skip
    t, h, d = 2048, 32, 64
    yield Case(f"rotary {dtype} {t}x{h}x128", "pointwise", f"rotary{tail}",
               {"T": t, "H": h, "D": d}, rotary)  # fmt: skip


def _reduce(op: str, axis: int | None) -> Callable[[Any], Any]:
    names = {"max": "amax"}

    def reduce(x: Any) -> Any:
        function = getattr(x, names.get(op, op))
        return function() if axis is None else function(axis)

    return reduce


def _reductions(dtype: str, tail: str, which: tuple[str, ...]) -> Iterator[Case]:
    dims = {"M": 256, "N": 256, "K": 128}
    for name in which:
        op, _, axis = name.partition("_")
        function = _reduce(op, None if axis == "all" else int(axis))
        where = "all axes" if axis == "all" else f"axis {axis}"
        yield Case(f"{op} {dtype} {where} of 256x256x128", "reduction", f"reductions{tail}", dims,
                   function, kernel_name=name)  # fmt: skip


def _others(dtype: str, tail: str) -> Iterator[Case]:
    size = 4 if dtype == "f32" else 2
    for t, v, d in ((8192, 32000, 1024), (512, 1000, 64)):
        yield Case(f"embedding {dtype} {t} of {v}x{d}", "gather", f"embedding{tail}",
                   {"T": t, "V": v, "D": d}, embedding, moved=2 * size * t * d + 8 * t,
                   fills={"ids": _below(v)})  # fmt: skip
    for n, c in ((256, 32768), (1024, 1000)):
        yield Case(f"cross_entropy {dtype} {n}x{c}", "gather", f"cross_entropy{tail}",
                   {"N": n, "C": c}, cross_entropy, fills={"label": _below(c)})  # fmt: skip
    for m, n in ((8192, 1024), (128, 65536)):
        yield Case(f"cumsum {dtype} {m}x{n}", "scan", f"cumsum{tail}", {"M": m, "N": n}, cumsum)
    for c, side in ((64, 112), (32, 512)):
        image = {"N": 1, "C": c, "H": side, "W": side}
        yield Case(f"max_pool {dtype} {c}x{side}x{side}", "pool", f"max_pool{tail}", image,
                   max_pool)  # fmt: skip
        yield Case(f"avg_pool {dtype} {c}x{side}x{side}", "pool", f"avg_pool{tail}", image,
                   avg_pool)  # fmt: skip
    for n in (4096, 1000, 128):
        yield Case(f"transpose {dtype} {n}", "transpose", f"transpose{tail}", {"M": n, "N": n},
                   transposed, kernel_name="transpose")  # fmt: skip
    yield Case(f"transpose {dtype} 64x512x384", "transpose", f"transpose{tail}",
               {"B": 64, "M": 512, "N": 384}, transposed, kernel_name="swap_last")  # fmt: skip
    yield Case(f"heads {dtype} 8x1024x16x64", "transpose", f"transpose{tail}",
               {"B": 8, "T": 1024, "H": 16, "D": 64}, heads, kernel_name="heads")  # fmt: skip


ALL = tuple(f"{op}_{axis}" for op in ("sum", "mean", "max", "argmax") for axis in (0, 1, 2))
CASES = (
    *_rows("f32", "", LENGTHS),
    *_rows("bf16", "_bf16", (1024, 65536)),
    *_pointwise("f32", ""),
    *_pointwise("bf16", "_bf16"),
    *_reductions("f32", "", (*ALL, "sum_all")),
    *_reductions("bf16", "_bf16", ("sum_0", "sum_2", "mean_1", "max_2", "argmax_2")),
    *_others("f32", ""),
    *_others("bf16", "_bf16"),
)
assert math.prod((256, 256, 128)) == ELEMENTS
