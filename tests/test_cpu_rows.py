"""The default schedules of rows, reductions, single elements and transpositions on the cpu, against
NumPy in float64: odd extents, extents of 1 and 0, constant and symbolic dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.check import check_kernel
from kir.pipeline import schedule
from kir.plan.cpu import Chip, plan
from kir.specialise import specialise
from kir.syntax import parse_kernel

Array = np.ndarray[Any, Any]
FLOATS = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}


def run(
    text: str, inputs: Mapping[str, Array], dims: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """What the default schedule computes; `dims` are made constant first."""
    kernel = specialise(parse_kernel(text), dims or {})
    scheduled = schedule(kernel, plan(kernel, Chip()))
    check_kernel(scheduled)
    return BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))(inputs)


def both(text: str, inputs: Mapping[str, Array], dims: Mapping[str, int]) -> list[dict[str, Array]]:
    """With symbolic dims, and with constant ones."""
    return [run(text, inputs), run(text, inputs, dims)]


def random(shape: tuple[int, ...], dtype: str = "f32", seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(FLOATS[dtype])


TRANSPOSE = """kernel transpose[B, M, N](x: {t}[B, M, N]) -> (y: {t}[B, N, M]) {{
  y[b: B, j: N, i: M] = x[b, i, j]
}}"""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 17), (1, 64, 96), (1, 300, 270), (0, 8, 8)])
def test_transpositions_move_every_element(dtype: str, shape: tuple[int, int, int]) -> None:
    x = random(shape, dtype)
    dims = dict(zip("BMN", shape, strict=True))
    for made in both(TRANSPOSE.format(t=dtype), {"x": x}, dims):
        np.testing.assert_array_equal(made["y"], x.transpose(0, 2, 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [0, 4, 16, 32])
def test_large_transpositions_bypass_the_cache_however_outputs_are_aligned(
    dtype: str, offset: int
) -> None:
    """Rows of 4112 bytes are aligned to 16, not to whole vectors."""
    size = FLOATS[dtype].itemsize
    for rows, columns in ((4112 // size, 1 << 12), (1 << 12, 1 << 11)):
        x = random((1, rows, columns), dtype)
        dims = {"B": 1, "M": rows, "N": columns}
        kernel = specialise(parse_kernel(TRANSPOSE.format(t=dtype)), dims)
        scheduled = schedule(kernel, plan(kernel, Chip()))
        raw = np.zeros(x.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        y = raw[start : start + x.nbytes].view(x.dtype).reshape(1, columns, rows)
        BACKEND.load(BACKEND.lower(scheduled, "cpu", "native"))({"x": x}, None, {"y": y})
        np.testing.assert_array_equal(y, x.transpose(0, 2, 1))
        assert not raw[:start].any() and not raw[start + x.nbytes :].any()


def test_transposed_operands_meet_straight_ones() -> None:
    text = """kernel f[M, N](x: f32[M, N], z: f32[N, M]) -> (y: f32[N, M]) {
  y[j: N, i: M] = exp(x[i, j]) * z[j, i] + z[j, i]
}"""
    x, z = random((41, 50)), random((50, 41), seed=1)
    for made in both(text, {"x": x, "z": z}, {"M": 41, "N": 50}):
        want = np.exp(x.T.astype(np.float64)) * z + z
        np.testing.assert_allclose(made["y"], want, rtol=1e-5, atol=1e-6)


def test_middle_axes_swap() -> None:
    text = """kernel heads[B, T, H, D](x: f32[B, T, H, D]) -> (y: f32[B, H, T, D]) {
  y[b: B, h: H, t: T, d: D] = x[b, t, h, d]
}"""
    x = random((2, 37, 3, 40))
    for made in both(text, {"x": x}, dict(zip("BTHD", x.shape, strict=True))):
        np.testing.assert_array_equal(made["y"], x.transpose(0, 2, 1, 3))


REDUCTIONS: dict[str, tuple[str, Callable[..., Array]]] = {
    "sum": ("f32", lambda x, axis: x.sum(axis)),
    "max": ("f32", lambda x, axis: x.max(axis)),
    "argmax": ("i64", lambda x, axis: x.argmax(axis)),
}
AXES = (
    ("i: M", "j: N, k: K", "N, K"),
    ("j: N", "i: M, k: K", "M, K"),
    ("k: K", "i: M, j: N", "M, N"),
)


@pytest.mark.parametrize("shape", [(5, 37, 130), (300, 3, 64), (40, 1, 8), (1, 1, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_each_axis(name: str, axis: int, shape: tuple[int, int, int]) -> None:
    (dtype, function), (over, kept, extents) = REDUCTIONS[name], AXES[axis]
    text = f"""kernel f[M, N, K](x: f32[M, N, K]) -> (y: {dtype}[{extents}])
  where M >= 1, N >= 1, K >= 1 {{
  y[{kept}] = {name}({over}) x[i, j, k]
}}"""
    x = np.round(random(shape) * 4)  # equals among them, and sums that are exact
    x[0, 0, -1] = np.nan if name != "sum" else 1
    for made in both(text, {"x": x}, dict(zip("MNK", shape, strict=True))):
        np.testing.assert_array_equal(made["y"], function(x, axis))


@pytest.mark.parametrize("n", [0, 1, 1000, 100_000])
def test_sums_to_one_value_are_split_among_cores(n: int) -> None:
    flat = "kernel f[N](x: f32[N]) -> (y: f32) { y = sum(i: N) x[i] }"
    x = np.round(random((n,)) * 4)
    for made in both(flat, {"x": x}, {"N": n}):
        assert made["y"] == x.sum()
    deep = """kernel f[M, N](x: f32[M, N]) -> (y: f32) {
  y = max(i: M, j: N) x[i, j] * x[i, j]
}"""
    rows = x.reshape(-1, 10) if n >= 10 else x.reshape(1, n)
    for made in both(deep, {"x": rows}, dict(zip("MN", rows.shape, strict=True))):
        assert made["y"] == (rows * rows).max(initial=-np.inf)


def test_long_sums_become_parts_in_parallel() -> None:
    kernel = parse_kernel("kernel f(x: f32[100000]) -> (y: f32) { y = sum(i: 100000) x[i] }")
    assert "split_k" in [s.rewrite for s in plan(kernel, Chip())]


def test_a_mean_over_rows_leaves_the_rows_parallel() -> None:
    text = """kernel loss[N, C](x: f32[N, C], label: i64[N]) -> (y: f32) where N >= 1, C >= 1 {
  m[i: N] = max(c: C) x[i, c]
  s[i: N] = sum(c: C) exp(x[i, c] - m[i])
  nll[i: N] = log(s[i]) + m[i] - x[i, label[i]]
  y = (sum(i: N) nll[i]) / f32(N)
}"""
    x, label = random((37, 75)), np.random.default_rng(1).integers(0, 75, 37)
    wide = x.astype(np.float64)
    want = (np.log(np.exp(wide).sum(1)) - wide[np.arange(37), label]).mean()
    for made in both(text, {"x": x, "label": label}, {"N": 37, "C": 75}):
        np.testing.assert_allclose(made["y"], want, rtol=1e-5)


def test_mish_takes_one_function_and_a_division() -> None:
    text = """kernel mish[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  y[i: M, j: N] = x[i, j] * tanh(log1p(exp(x[i, j])))
}"""
    assert "tanh_of_log1p" in [a for s in plan(parse_kernel(text)) for a in s.args]
    x = np.linspace(-100, 100, 3000, dtype=np.float32).reshape(30, 100)
    x[0, :3] = np.inf, np.nan, 1e30
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        want = wide * np.tanh(np.log1p(np.exp(wide)))
    for made in both(text, {"x": x}, {"M": 30, "N": 100}):
        np.testing.assert_allclose(made["y"], want, rtol=1e-6, atol=1e-37)


SOFTMAX = """kernel softmax[M, N](x: {t}[M, N]) -> (y: {t}[M, N]) {{
  m[i: M] = max(j: N) f32(x[i, j])
  e[i: M, j: N] = exp(f32(x[i, j]) - m[i])
  s[i: M] = sum(j: N) e[i, j]
  y[i: M, j: N] = {t}(e[i, j] / s[i])
}}"""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 64), (2, 1), (13, 7), (19, 40), (9, 64), (5, 100), (3, 257)])
def test_short_rows_go_in_blocks(dtype: str, shape: tuple[int, int]) -> None:
    """All rows, those of the last block included; a NaN stays in its row."""
    x = random(shape, dtype)
    x[-1, -1] = np.nan
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(1, keepdims=True))
    want = e / e.sum(1, keepdims=True)
    tolerance = 1e-5 if dtype == "f32" else 1e-2
    for made in both(SOFTMAX.format(t=dtype), {"x": x}, dict(zip("MN", shape, strict=True))):
        np.testing.assert_allclose(made["y"].astype(np.float64), want, rtol=tolerance)


def test_rows_in_blocks_are_parted_after_their_sums() -> None:
    text = SOFTMAX.format(t="f32")
    short = specialise(parse_kernel(text), {"M": 100, "N": 64})
    long = specialise(parse_kernel(text), {"M": 100, "N": 4096})
    assert sum(s.rewrite == "fission" for s in plan(short)) == 2
    assert not any(s.rewrite == "fission" for s in plan(long))


GROUPS = """kernel group[N, G, K, L](x: f32[N, G, K, L]) -> (y: f32[N, G, K, L]) {
  mean[n: N, g: G] = sum(k: K, l: L) x[n, g, k, l] / f32(K * L)
  y[n: N, g: G, k: K, l: L] = x[n, g, k, l] - mean[n, g]
}"""


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (2, 11, 3, 8), (1, 1, 1, 1), (2, 0, 3, 4)])
def test_rows_of_two_axes_go_in_blocks(shape: tuple[int, ...]) -> None:
    x = random(shape)
    want = x - x.astype(np.float64).mean((2, 3), keepdims=True)
    for made in both(GROUPS, {"x": x}, dict(zip("NGKL", shape, strict=True))):
        np.testing.assert_allclose(made["y"], want, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_of_equal_extrema_is_found(dtype: str, axis: int) -> None:
    """Few values, so that many are equal; then with NaN, infinities, and zeros of both signs."""
    names = (("j: N", "i: M"), ("i: M", "j: N"))[axis]
    text = f"""kernel at[M, N](x: {dtype}[M, N]) -> (y: i64[{names[0][-1]}]) {{
  y[{names[0]}] = argmax({names[1]}) x[i, j]
}}"""
    rng, shape = np.random.default_rng(axis), (40, 100)
    some = rng.integers(-3, 4, shape).astype(np.float32)
    lost = np.where(rng.random(shape) < 0.02, np.nan, some)
    far = np.where(rng.random(shape) < 0.1, np.inf, -np.inf)
    zeros = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
    for x in (some, lost, far, zeros):
        for made in both(text, {"x": x.astype(FLOATS[dtype])}, {"M": 40, "N": 100}):
            np.testing.assert_array_equal(made["y"], x.argmax(axis))
