"""The cpu's schedules of matrix products: against NumPy in f64 within the bound of a sum of rounded
products, |error| <= (K + 2) u |a| |b| (Higham, Accuracy and Stability, 2nd ed., section 3.1); and
the model that blocks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kir.backends.cpu import BACKEND
from kir.check import check_kernel
from kir.ir import Kernel
from kir.pipeline import compile as compile_kernel
from kir.pipeline import schedule
from kir.plan.cpu import Chip, plan
from kir.plan.cpu.model import Product, blocking, share
from kir.specialise import specialise
from kir.syntax import format_kernel, load, parse_kernel

ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


def text_of(layout: str = "nn", dtype: str = "f32", epilogue: str = "{}") -> str:
    """A product: `layout` says of each operand whether it is stored transposed."""
    a, b = ("k, i" if layout[0] == "t" else "i, k"), ("j, k" if layout[1] == "t" else "k, j")
    left, right = ("K, M" if layout[0] == "t" else "M, K"), ("N, K" if layout[1] == "t" else "K, N")
    wide = {"f32": "{}", "f64": "{}", "bf16": "f32({})", "i8": "i32({})"}[dtype]
    result = {"bf16": "bf16", "i8": "i32"}.get(dtype, dtype)
    total = f"(sum(k: K) {wide.format(f'a[{a}]')} * {wide.format(f'b[{b}]')})"
    value = epilogue.format(total)
    value = f"bf16({value})" if dtype == "bf16" else value
    return f"""kernel product[M, N, K](a: {dtype}[{left}], b: {dtype}[{right}])
      -> (c: {result}[M, N]) {{ c[i: M, j: N] = {value} }}"""


def operand(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> Array:
    if dtype == "i8":
        return rng.integers(-128, 128, shape, np.int8)
    values = rng.standard_normal(shape)
    return values.astype({"f32": np.float32, "f64": np.float64, "bf16": BF16}[dtype])


def check_product(
    m: int, n: int, k: int, layout: str = "nn", dtype: str = "f32", fixed: bool = True,
    threads: int = 1, seed: int = 0,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    a = operand(rng, (k, m) if layout[0] == "t" else (m, k), dtype)
    b = operand(rng, (n, k) if layout[1] == "t" else (k, n), dtype)
    kernel = parse_kernel(text_of(layout, dtype))
    dims = {"M": m, "N": n, "K": k}
    if fixed:
        kernel = specialise(kernel, dims)
    scheduled = schedule(kernel, plan(kernel, Chip()))
    check_kernel(scheduled)
    run = BACKEND.with_threads(BACKEND.lower(scheduled, "cpu", "native"), threads)
    got = run({"a": a, "b": b}, None if fixed else dims)["c"]
    left = (a.T if layout[0] == "t" else a).astype(np.float64)
    right = (b.T if layout[1] == "t" else b).astype(np.float64)
    want = left @ right
    if dtype == "i8":
        np.testing.assert_array_equal(got, want.astype(np.int32))
        return
    unit = 2.0**-53 if dtype == "f64" else 2.0**-24
    bound = (k + 2) * unit * (np.abs(left) @ np.abs(right))
    if dtype == "bf16":
        bound += 2.0**-8 * (np.abs(want) + bound)
    error = np.abs(got.astype(np.float64) - want)
    assert (error <= bound).all(), f"{(error - bound).max()} beyond the bound"


SHAPES = [
    (1, 1, 1), (6, 16, 4), (7, 17, 5), (64, 64, 64), (66, 48, 32), (127, 129, 131), (3, 512, 40),
    (512, 3, 40), (5, 7, 4096), (64, 64, 5000), (130, 40, 700), (200, 96, 260), (1, 300, 64),
    (300, 1, 64), (2, 33, 65), (260, 272, 300), (400, 32, 20), (401, 32, 20), (14, 640, 96),
]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("layout", ["nn", "tt"])
def test_shapes(m: int, n: int, k: int, layout: str) -> None:
    check_product(m, n, k, layout)


@pytest.mark.parametrize("dims", [(0, 5, 6), (5, 0, 6), (5, 6, 0), (0, 0, 0)])
@pytest.mark.parametrize("fixed", [True, False])
def test_empty(dims: tuple[int, int, int], fixed: bool) -> None:
    check_product(*dims, fixed=fixed)


@pytest.mark.parametrize("dtype", ["bf16", "i8", "f64"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(7, 17, 5), (64, 64, 64), (127, 129, 131), (64, 64, 5000), (300, 40, 24)]
)
@pytest.mark.parametrize("layout", ["nn", "nt"])
def test_dtypes(m: int, n: int, k: int, layout: str, dtype: str) -> None:
    check_product(m, n, k, layout, dtype)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_symbolic(layout: str, dtype: str) -> None:
    for m, n, k in ((1, 1, 1), (50, 33, 70), (97, 64, 300)):
        check_product(m, n, k, layout, dtype, fixed=False)


@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 5000), (130, 40, 700), (260, 272, 300)])
def test_two_threads(m: int, n: int, k: int) -> None:
    check_product(m, n, k, threads=-2)


EXTENT = st.one_of(st.integers(1, 40), st.integers(1, 300))


@given(EXTENT, EXTENT, EXTENT, st.sampled_from(["nn", "nt", "tn", "tt"]),
       st.sampled_from(["f32", "bf16"]), st.integers(0, 99))  # fmt: skip
def test_any_shape(m: int, n: int, k: int, layout: str, dtype: str, seed: int) -> None:
    check_product(m, n, k, layout, dtype, seed=seed)


@pytest.mark.parametrize(("p", "m", "n", "k"), [(3, 5, 7, 9), (4, 64, 64, 64), (2, 100, 80, 300),
                                                (1, 33, 20, 10), (0, 3, 4, 5)])  # fmt: skip
@pytest.mark.parametrize("fixed", [True, False])
def test_batches(p: int, m: int, n: int, k: int, fixed: bool) -> None:
    kernel = parse_kernel(load(ROOT / "examples/batched_matmul.kir").text)
    rng = np.random.default_rng(1)
    a = rng.standard_normal((p, m, k)).astype(np.float32)
    b = rng.standard_normal((p, k, n)).astype(np.float32)
    dims = {"B": p, "M": m, "N": n, "K": k}
    run = compile_kernel(kernel, "cpu", dims if fixed else {})
    got = run({"a": a, "b": b}, dims)["c"]
    left, right = a.astype(np.float64), b.astype(np.float64)
    bound = (k + 2) * 2.0**-24 * (np.abs(left) @ np.abs(right))
    assert (np.abs(got - left @ right) <= bound).all()


@pytest.mark.parametrize(("m", "k"), [(1, 1), (7, 33), (64, 64), (129, 500), (1000, 70), (5, 3000),
                                      (300, 4099)])  # fmt: skip
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("across", [True, False])
def test_a_matrix_and_a_vector(m: int, k: int, fixed: bool, across: bool) -> None:
    shape, at = ("K, M", "k, i") if across else ("M, K", "i, k")
    kernel = parse_kernel(f"""kernel vector[M, K](a: f32[{shape}], x: f32[K]) -> (y: f32[M]) {{
      y[i: M] = sum(k: K) a[{at}] * x[k] }}""")
    rng = np.random.default_rng(2)
    a = rng.standard_normal((k, m) if across else (m, k)).astype(np.float32)
    x = rng.standard_normal(k).astype(np.float32)
    dims = {"M": m, "K": k}
    got = compile_kernel(kernel, "cpu", dims if fixed else {})({"a": a, "x": x}, dims)["y"]
    left = (a.T if across else a).astype(np.float64)
    bound = (k + 2) * 2.0**-24 * (np.abs(left) @ np.abs(x.astype(np.float64)))
    assert (np.abs(got - left @ x.astype(np.float64)) <= bound).all()


def test_an_epilogue_stays_in_the_product() -> None:
    dims = {"M": 96, "N": 512, "K": 64}
    kernel = specialise(parse_kernel(text_of(epilogue="max({}, 0.0)")), dims)
    text = format_kernel(schedule(kernel, plan(kernel, Chip())))
    assert text.count(" c[") == 1 and "= max(c_acc" in text


# --- the model -------------------------------------------------------------------------------


def planned(m: int, n: int, k: int, chip: Chip = Chip()) -> str:  # noqa: B008
    kernel: Kernel = specialise(parse_kernel(text_of()), {"M": m, "N": n, "K": k})
    return format_kernel(schedule(kernel, plan(kernel, chip)))


def test_registers_hold_the_block() -> None:
    for chip in (Chip(), Chip(vector_bits=512, registers=32), Chip(vector_bits=128, registers=32)):
        b = blocking(Product(1024, 1024, 1024), chip)
        vectors = b.nr // chip.lanes
        assert b.mr * vectors + vectors + 1 <= chip.registers


def test_caches_hold_the_panels() -> None:
    chip = Chip()
    for n in (300, 1000, 1024, 2048, 5000):
        b = blocking(Product(n, n, n), chip)
        strip, depth = b.strip or n, b.slab or n
        assert strip * b.nr * 4 <= 0.75 * chip.l1
        assert b.left == "block" and b.row_blocks is not None
        assert b.row_blocks * b.mr * depth * 4 <= 0.75 * chip.l2


def test_small_products_are_read_in_place() -> None:
    text = planned(64, 64, 64)
    assert "_local" not in text and "_global" not in text and "where" not in text.split("grid")[0]


def test_large_products_share_the_right_operand() -> None:
    text = planned(1024, 1024, 1024)
    assert "b_global" in text and "a_local" in text and text.count("grid") == 2


def test_deep_products_are_summed_in_parts() -> None:
    assert "_part" in planned(64, 64, 65536)


@given(st.integers(1, 5000), st.integers(1, 500), st.integers(1, 64))
def test_shares(pieces: int, most: int, cores: int) -> None:
    size = share(pieces, most, cores)
    assert 1 <= size <= max(1, min(most, -(-pieces // cores)))
