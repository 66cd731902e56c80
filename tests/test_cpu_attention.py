"""The default schedules of attention and scans on the cpu, against NumPy in float64."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.check import check_kernel
from kir.ir import Kernel, Step
from kir.pipeline import schedule
from kir.plan.cpu import Chip, plan
from kir.specialise import specialise
from kir.syntax import load, parse, parse_kernel
from kir.testing import Array

SUITE = Path(__file__).parent.parent / "benchmarks" / "suite"


def planned(kernel: Kernel, dims: dict[str, int]) -> tuple[tuple[Step, ...], Kernel]:
    special = specialise(kernel, dims)
    steps = plan(special, Chip())
    scheduled = schedule(special, steps)
    check_kernel(scheduled)
    return steps, scheduled


def attention(q: Array, k: Array, v: Array, causal: bool) -> Array:
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True) @ v)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize(("length", "size"), [(1, 8), (37, 16), (128, 64), (300, 32), (513, 64)])
def test_attention_of_any_length(length: int, size: int, causal: bool) -> None:
    kernel = parse(load(SUITE / "attention.kir")).kernels()[
        "attention_causal" if causal else "attention"
    ]
    rng = np.random.default_rng(length)
    shape = (1, 2, length, size)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    v[0, 0, 0] += 40.0  # so that a lost rescale shows
    q[0, 1] *= 30.0
    dims = dict(zip("BHTD", shape, strict=True))
    steps, scheduled = planned(kernel, dims)
    got = BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))({"q": q, "k": k, "v": v})["o"]
    np.testing.assert_allclose(got, attention(q, k, v, causal), rtol=2e-4, atol=2e-5)
    if length >= 300:
        assert "online" in {s.rewrite for s in steps}


def test_attention_of_bf16() -> None:
    kernel = parse(load(SUITE / "attention_bf16.kir")).kernels()["attention_causal"]
    rng = np.random.default_rng(0)
    shape = (1, 1, 160, 64)
    q, k, v = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for _ in range(3))
    _, scheduled = planned(kernel, dict(zip("BHTD", shape, strict=True)))
    got = BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))({"q": q, "k": k, "v": v})["o"]
    want = attention(q, k, v, True)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0.05, atol=0.02)


SUMS = """kernel sums[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  for j: N { y[i: M, j] = (y[i, j - 1] else 0.0) + x[i, j] }
}"""
DOWN = """kernel down[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  for i: M { y[i, j: N] = (y[i - 1, j] else 1.0) * 0.5 + x[i, j] }
}"""


@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (64, 64), (70, 130), (33, 1), (40, 0), (0, 9)])
def test_scans_along_and_across(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    dims = dict(zip("MN", shape, strict=True))
    for text in (SUMS, DOWN):
        for known in ({}, dims):
            _, scheduled = planned(parse_kernel(text), known)
            got = BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))({"x": x})["y"]
            if text is SUMS:
                want = np.cumsum(x.astype(np.float64), axis=1)
            else:
                want, last = np.zeros(shape), np.ones(shape[1])
                for i in range(shape[0]):
                    want[i] = last = last * 0.5 + x[i]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_running_sum_is_turned_in_blocks() -> None:
    steps, _ = planned(parse_kernel(SUMS), {"M": 512, "N": 512})
    assert {"shadow", "carry", "stage", "stage_out"} <= {s.rewrite for s in steps}
