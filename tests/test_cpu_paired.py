"""Tiles of bf16 whose lanes stand in pairs (`kir.backends.llvm.paired`): right results, and order
where it matters."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.backends.llvm.paired import paired_tiles
from kir.check import check_kernel
from kir.syntax import parse_kernel

WIDTHS = (16, 32, 48, 64)

HEAD = "kernel k(x: bf16[8, {n}]) -> (y: {out}[8, {n}]) {{ grid i: 8 {{ {body} }} }}"
SCALED = "for o: 4 { tile j: {w} { y[i, o*{w} + j] = bf16(f32(x[i, o*{w} + j]) * 3.0) } }"
FILLED = (
    "buffer e: f32[{m}] in local"
    " for o: 4 { tile j: {w} { e[o*{w} + j] = f32(x[i, o*{w} + j]) * 3.0 } } "
)
COPIED = "for o2: 4 { tile j2: {w} { y[i, o2*{w} + j2] = bf16(e[o2*{w} + j2]) } }"


def kernel_of(body: str, width: int, out: str = "bf16") -> str:
    body = body.replace("{w}", str(width)).replace("{m}", str(4 * width + 16))
    return HEAD.format(n=4 * width, out=out, body=body)


def inputs(width: int) -> np.ndarray[tuple[int, int], np.dtype[ml_dtypes.bfloat16]]:
    x = np.random.default_rng(width).standard_normal((8, 4 * width)).astype(np.float32) * 100
    x[0, ::7], x[1, 1::5], x[2, 3], x[3, 2] = np.nan, np.inf, -np.inf, -0.0
    return x.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("body", "pairs", "what"),
    [
        (SCALED, 1, "scaled"),
        (FILLED + COPIED, 2, "scaled"),
        # a buffer that is walked element by element, or from elsewhere, keeps its order
        (FILLED + COPIED.replace("tile", "for"), 0, "scaled"),
        ("for o: 4 { tile j: {w} { y[i, o*{w} + j] = bf16(f32(j)) } }", 0, "numbers"),
        (
            "buffer s: f32 in reg = 0.0 buffer a: f32[{w}] in reg = 0.0"
            " for o: 4 { tile j: {w} { a[j] += f32(x[i, o*{w} + j] > bf16(0.0)) } }"
            " tile j1: {w} { s += a[j1] }"
            " for o2: 4 { tile j2: {w} { y[i, o2*{w} + j2] = bf16(s) } }",
            3,
            "count",
        ),
    ],
)
def test_paired_lanes_give_the_same(width: int, body: str, pairs: int, what: str) -> None:
    kernel, x = parse_kernel(kernel_of(body, width)), inputs(width)
    check_kernel(kernel)
    assert len(paired_tiles(kernel)) == pairs
    got = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))({"x": x})["y"]
    wide = x.astype(np.float32)
    want = {
        "scaled": wide * np.float32(3),
        "numbers": np.broadcast_to(np.tile(np.arange(width), 4), x.shape),
        "count": np.broadcast_to((wide > 0).sum(1, keepdims=True), x.shape),
    }[what]
    want = np.asarray(want, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got.astype(np.float32), want)


def test_a_buffer_that_is_shifted_between_tiles_keeps_its_order() -> None:
    shifted = FILLED + "e[{m} - 1] = 0.0 " + COPIED.replace("+ j2])", "+ j2 + 1])")
    shifted = shifted.replace("] in local", "] in local = 0.0")
    kernel = parse_kernel(kernel_of(shifted, 32))
    assert not paired_tiles(kernel)
    x = inputs(32)
    got = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))({"x": x})["y"].astype(np.float32)
    want = (x.astype(np.float32) * 3).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got[:, :-1], want[:, 1:])
    np.testing.assert_array_equal(got[:, -1], 0.0)


def test_tiles_of_two_widths_or_of_another_type_keep_their_order() -> None:
    two = FILLED + COPIED.replace("o2: 4", "o2: 8").replace("{w}", "16")
    kernel = parse_kernel(kernel_of(two, 32))
    assert not paired_tiles(kernel)
    x = inputs(32)
    got = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))({"x": x})["y"].astype(np.float32)
    want = (x.astype(np.float32) * 3).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    wide = parse_kernel(kernel_of(SCALED.replace("bf16(", "(", 1), 32, "f32"))
    assert not paired_tiles(wide)
    got = BACKEND.load(BACKEND.lower(wide, "cpu", "native"))({"x": x})["y"]
    np.testing.assert_array_equal(got, x.astype(np.float32) * 3)
