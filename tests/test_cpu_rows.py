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
