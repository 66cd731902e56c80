"""Matrix products: f32 and bf16 (operands and result; sums in f32), and one of i8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.suite.case import Case


def matmul(a: Any, b: Any) -> Any:
    return a @ b


def matmul_tn(a: Any, b: Any) -> Any:
    return a.mT @ b


def matmul_nt(a: Any, b: Any) -> Any:
    return a @ b.mT


def linear_gelu(x: Any, w: Any, bias: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(functional.linear(x, w, bias))


def matmul_i8(a: Any, b: Any) -> Any:
    import torch

    if a.dtype == torch.float64:
        return a @ b
    return torch._int_mm(a, b)


SQUARES = (64, 128, 256, 512, 1024, 2048)
SHAPES = {
    "tall 8192x64x256": (8192, 64, 256),
    "tall 65536x32x64": (65536, 32, 64),
    "deep 64x64x65536": (64, 64, 65536),
    "deep 256x256x8192": (256, 256, 8192),
    "odd 1000": (1000, 1000, 1000),
    "odd 127x129x131": (127, 129, 131),
}
"""M, N, K."""


def _cases(dtype: str) -> Iterator[Case]:
    group = f"matmul {dtype}"
    tail = "" if dtype == "f32" else "_bf16"
    for name, (m, n, k) in {**{str(n): (n, n, n) for n in SQUARES}, **SHAPES}.items():
        yield Case(f"matmul {dtype} {name}", group, f"matmul{tail}", {"M": m, "N": n, "K": k},
                   matmul, 2.0 * m * n * k)  # fmt: skip
    for n in (1024, 4096):
        yield Case(f"matvec {dtype} {n}", group, f"matvec{tail}", {"M": n, "K": n}, matmul,
                   2.0 * n * n)  # fmt: skip
    yield Case(f"vecmat {dtype} 4096", group, f"vecmat{tail}", {"K": 4096, "N": 4096}, matmul,
               2.0 * 4096**2)  # fmt: skip
    yield Case(f"batched {dtype} 64x64x64x64", group, f"batched_matmul{tail}",
               {"B": 64, "M": 64, "N": 64, "K": 64}, matmul, 2.0 * 64**4)  # fmt: skip
    for kind, function in (("tn", matmul_tn), ("nt", matmul_nt)):
        for n in (128, 1024):
            yield Case(f"matmul_{kind} {dtype} {n}", group, f"matmul_{kind}{tail}",
                       {"M": n, "N": n, "K": n}, function, 2.0 * n**3)  # fmt: skip
    for m, n, k in ((64, 512, 512), (512, 3072, 768)):
        yield Case(f"linear_gelu {dtype} {m}x{n}x{k}", group, f"linear_gelu{tail}",
                   {"M": m, "N": n, "K": k}, linear_gelu, 2.0 * m * n * k)  # fmt: skip


CASES = (
    *_cases("f32"),
    *_cases("bf16"),
    Case("matmul i8 1024", "matmul i8", "matmul_i8", {"M": 1024, "N": 1024, "K": 1024},
         matmul_i8, 2.0 * 1024**3),
)  # fmt: skip
