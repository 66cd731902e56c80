"""The interpreter: every construct against NumPy, at every stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kir.dtypes import DTYPES, FLOATS, INTEGERS, DType, bf16, f8e4m3, f16, f32
from kir.errors import (
    ConstraintError,
    EvaluationError,
    InputDataError,
)
from kir.interpret import run, run_graph
from kir.interpret.domain import Domain, cast_array
from kir.syntax import parse, parse_kernel

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)


def floats(*shape: int, dtype: DType = f32) -> Array:
    return np.asarray(RNG.standard_normal(shape)).astype(dtype.numpy)


def one(text: str, dims: dict[str, int] | None = None, **inputs: Array) -> Array:
    """The only output of a kernel."""
    (found,) = run(parse_kernel(text), inputs, dims).values()
    return found


# --- specs -------------------------------------------------------------------------------------

SOFTMAX = """
kernel softmax[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  m[i: M]       = max(j: N) x[i, j]
  e[i: M, j: N] = exp(x[i, j] - m[i])
  s[i: M]       = sum(j: N) e[i, j]
  y[i: M, j: N] = e[i, j] / s[i]
}"""


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (4, 0), (7, 33)])
def test_softmax(shape: tuple[int, int]) -> None:
    x = floats(*shape)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True, initial=-np.inf))
    np.testing.assert_allclose(one(SOFTMAX, x=x), e / e.sum(1, keepdims=True), rtol=1e-5)


def test_inputs_are_not_changed_and_outputs_are_fresh() -> None:
    x = floats(3, 4)
    before = x.copy()
    kernel = parse_kernel(
        "kernel id[N, M](x: f32[N, M]) -> (y: f32[N, M]) { y[i: N, j: M] = x[i, j] }"
    )
    y = run(kernel, {"x": x})["y"]
    y[:] = 0
    np.testing.assert_array_equal(x, before)


def test_strided_input() -> None:
    x = floats(6, 8)[::2, ::-2]
    text = "kernel t[N, M](x: f32[N, M]) -> (y: f32[M, N]) { y[j: M, i: N] = x[i, j] * 2 }"
    np.testing.assert_array_equal(one(text, x=x), 2 * x.T)


def test_reductions() -> None:
    x = floats(4, 6)
    text = """kernel r[M, N](x: f32[M, N])
      -> (a: f32[], b: f32[M], c: f32[N], d: bool[], e: bool[M]) {
      a = sum(i: M, j: N) x[i, j]
      b[i: M] = min(j: N where j != 2) x[i, j]
      c[j: N] = prod(i: M) x[i, j]
      d = all(i: M, j: N) x[i, j] < 10.0
      e[i: M] = any(j: N where j > i) x[i, j] > 1.0
    }"""
    got = run(parse_kernel(text), {"x": x})
    np.testing.assert_allclose(got["a"], x.sum(), rtol=1e-5)
    np.testing.assert_array_equal(got["b"], np.delete(x, 2, 1).min(1))
    np.testing.assert_allclose(got["c"], x.prod(0), rtol=1e-5)
    assert got["d"]
    want = [(x[i, i + 1 :] > 1).any() for i in range(4)]
    np.testing.assert_array_equal(got["e"], want)


def test_empty_reductions_give_the_identity() -> None:
    text = """kernel r[N](x: f32[N], k: i8[N])
      -> (a: f32[], b: f32[], c: f32[], d: i64[], e: i8[], f: bool[]) {
      a = sum(i: N) x[i]   b = max(i: N) x[i]   c = prod(i: N) x[i]
      d = argmax(i: N) x[i]   e = min(i: N) k[i]   f = all(i: N) x[i] > 0
    }"""
    got = run(parse_kernel(text), {"x": floats(0), "k": np.zeros(0, np.int8)})
    assert [v.item() for v in got.values()] == [0.0, -np.inf, 1.0, -1, 127, True]
    assert not np.signbit(got["a"])


def test_arg_reductions_take_the_first_and_nan() -> None:
    x = np.array([[1, 3, 3, 0], [1, np.nan, 9, np.nan], [2, 2, 2, 2]], np.float32)
    text = """kernel r[M, N](x: f32[M, N]) -> (a: i64[M], b: i64[M], c: i64[M]) {
      a[i: M] = argmax(j: N) x[i, j]
      b[i: M] = argmin(j: N) x[i, j]
      c[i: M] = argmax(j: N where j > 4) x[i, j]
    }"""
    got = run(parse_kernel(text), {"x": x})
    assert got["a"].tolist() == [1, 1, 0]
    assert got["b"].tolist() == [3, 1, 0]
    assert got["c"].tolist() == [-1, -1, -1]


def test_argmax_of_one_element() -> None:
    text = "kernel r[M, N](x: f32[M, N]) -> (a: i64[M]) { a[i: M] = argmax(j: N) x[i, j] }"
    assert one(text, x=floats(3, 1)).tolist() == [0, 0, 0]


def test_max_propagates_nan() -> None:
    x = np.array([1, np.nan, 3], np.float32)
    text = """kernel r[N](x: f32[N]) -> (a: f32[], b: f32[N]) {
      a = max(i: N) x[i]
      b[i: N] = min(x[i], 0.0)
    }"""
    got = run(parse_kernel(text), {"x": x})
    assert np.isnan(got["a"])
    np.testing.assert_array_equal(got["b"], [0, np.nan, 0])


def test_triangular_reduction() -> None:
    x = floats(5, 5)
    text = "kernel t[N](x: f32[N, N]) -> (y: f32[N]) { y[i: N] = sum(j: i + 1) x[i, j] }"
    np.testing.assert_allclose(one(text, x=x), np.tril(x).sum(1), rtol=1e-5)


@pytest.mark.parametrize("fill", ["0.0", "0.0 - 1.0 / 0.0", "x[0]"])
def test_padded_read(fill: str) -> None:
    x = floats(6)
    text = (
        f"kernel p[N](x: f32[N]) -> (y: f32[N, 5]) {{ y[i: N, r: 5] = x[i + r - 2] else ({fill}) }}"
    )
    value = {"0.0": 0.0, "x[0]": x[0]}.get(fill, -np.inf)
    wide = np.pad(x, 2, constant_values=value)
    np.testing.assert_array_equal(one(text, x=x), np.lib.stride_tricks.sliding_window_view(wide, 5))


def test_padded_read_through_division() -> None:
    x = floats(3)
    text = "kernel p[N](x: f32[N]) -> (y: f32[2*N + 4]) { y[i: 2*N + 4] = x[i // 2 - 1] else 7.0 }"
    want = [7, 7, *np.repeat(x, 2), 7, 7]
    np.testing.assert_array_equal(one(text, x=x), np.array(want, np.float32))


def test_gather_and_its_range_check() -> None:
    x = floats(4, 3)
    text = """kernel g[V, D, T](x: f32[V, D], k: i32[T]) -> (y: f32[T, D]) {
      y[t: T, d: D] = x[k[t], d]
    }"""
    k = np.array([3, 0, 0], np.int32)
    np.testing.assert_array_equal(one(text, x=x, k=k), x[k])
    with pytest.raises(
        EvaluationError, match=r"`x\[4, 0\]` is out of range: axis 0 has 4 elements"
    ):
        one(text, x=x, k=np.array([1, 4, 0], np.int32))


def test_out_of_range_in_a_masked_place_is_no_access() -> None:
    text = """kernel g[N](x: f32[N], k: i64[N]) -> (y: f32[]) {
      y = sum(i: N where k[i] >= 0, k[i] < N) x[k[i]]
    }"""
    x = floats(3)
    assert one(text, x=x, k=np.array([-5, 2, 99])) == x[2]


def test_recurrence_reads_earlier_slices() -> None:
    x = floats(6, 3)
    text = """kernel scan[T, H](x: f32[T, H]) -> (h: f32[T, H]) {
      for t: T {
        g[j: H] = 2.0 * x[t, j]
        h[t, j: H] = (h[t - 1, j] else 0.0) * 0.5 + g[j]
      }
    }"""
    state, want = np.zeros(3, np.float32), []
    for row in x:
        state = state * np.float32(0.5) + np.float32(2) * row
        want.append(state)
    np.testing.assert_array_equal(one(text, x=x), np.stack(want))


def test_temporary_recurrence_outlives_its_loop() -> None:
    x = floats(6)
    text = """kernel scan[T](x: f32[T]) -> (y: f32[]) {
      for t: T { h[t] = (h[t - 1] else f32(0.0)) + x[t] }
      y = h[T - 1] * 2.0
    }"""
    assert one(text, x=x) == np.add.accumulate(x)[-1] * 2


def test_random_numbers_are_philox() -> None:
    text = """kernel r[N](seed: u64[]) -> (y: u32[N], z: f32[N]) {
      y[i: N] = philox(seed, i)
      z[i: N] = rand(seed, i)
    }"""
    got = run(parse_kernel(text), {"seed": np.array(0, np.uint64)}, {"N": 4})
    assert got["y"][0] == 0x6627E8D5  # the known answer of Random123 for key 0, counter 0
    np.testing.assert_array_equal(got["z"], (got["y"] >> 8).astype(np.float32) / 2**24)


# --- scheduled kernels -------------------------------------------------------------------------

MATMULS = {
    "spec": "y[i: M, j: N] = sum(k: K) x[i, k] * w[k, j]",
    "for": """for i: M { for j: N {
        buffer acc: f32[] in reg = 0.0
        for k: K { acc += x[i, k] * w[k, j] }
        y[i, j] = acc
      } }""",
    "global": """for i: M { for j: N { y[i, j] = 0.0 } }
      for k: K { for i: M { for j: N { y[i, j] += x[i, k] * w[k, j] } } }""",
    "tile": """grid io: cdiv(M, 8), jo: cdiv(N, 8) hint(num_warps = 4) {
        buffer acc: f32[8, 8] in reg = 0.0
        for ko: cdiv(K, 4) {
          tile i: 8, j: 8, k: 4 where io*8 + i < M, jo*8 + j < N, ko*4 + k < K {
            acc[i, j] += x[io*8 + i, ko*4 + k] * w[ko*4 + k, jo*8 + j]
          }
        }
        tile i: 8, j: 8 where io*8 + i < M, jo*8 + j < N { y[io*8 + i, jo*8 + j] = acc[i, j] }
      }""",
    "staged": """grid io: cdiv(M, 8) {
        buffer panel: f32[8, K] in local
        tile i: 8 { for k: K { panel[i, k] = x[io*8 + i, k] else 0.0 } }
        for j: N { tile i: 8 {
          buffer acc: f32[] in reg = 0.0
          for k: K { acc += panel[i, k] * w[k, j] }
          if io*8 + i < M { y[io*8 + i, j] = acc }
        } }
      }""",
    "fused": """for f: M * N {
        buffer acc: f32[] in reg = 0.0
        for k: K { acc += x[f // N, k] * w[k, f % N] }
        y[f // N, f % N] = acc
      }""",
}


def matmul(body: str) -> str:
    return f"kernel mm[M, N, K](x: f32[M, K], w: f32[K, N]) -> (y: f32[M, N]) {{ {body} }}"


@pytest.mark.parametrize("stage", MATMULS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (9, 17, 4), (1, 1, 0), (0, 3, 2), (8, 8, 8)])
def test_matmul_at_every_stage(stage: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, w = floats(m, k), floats(k, n)
    got = one(matmul(MATMULS[stage]), x=x, w=w)
    np.testing.assert_allclose(got, x.astype(np.float64) @ w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("stage", [s for s in MATMULS if s != "spec"])
def test_loops_add_in_their_order_whatever_the_chunks(
    stage: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = floats(5, 40), floats(40, 3)
    want = np.zeros((5, 3), np.float32)
    for k in range(40):
        want += x[:, k, None] * w[k]
    monkeypatch.setattr(Domain, "budget", budget)
    np.testing.assert_array_equal(one(matmul(MATMULS[stage]), x=x, w=w), want)


def test_chunked_reductions_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.integers(-9, 9, (6, 50)).astype(np.int32)
    text = """kernel r[M, N](x: i32[M, N]) -> (a: i32[M], b: i32[], c: i32[M, N]) {
      a[i: M] = sum(j: N) x[i, j]   b = max(i: M, j: N) x[i, j]   c[i: M, j: N] = x[i, j] + 1
    }"""
    for budget in (1, 3, 17, 1000):
        monkeypatch.setattr(Domain, "budget", budget)
        got = run(parse_kernel(text), {"x": x})
        np.testing.assert_array_equal(got["a"], x.sum(1))
        np.testing.assert_array_equal(got["b"], x.max())
        np.testing.assert_array_equal(got["c"], x + 1)


def test_narrow_accumulation_rounds_at_every_step() -> None:
    x = np.ones(4096, np.float16)
    spec = "kernel s[N](x: f16[N]) -> (y: f16[]) { y = sum[f16](i: N) x[i] }"
    wide = "kernel s[N](x: f16[N]) -> (y: f32[]) { y = sum(i: N) x[i] }"
    assert one(spec, x=x) == 2048
    assert one(LOOP_F16, x=x) == 2048
    assert one(wide, x=x) == 4096


LOOP_F16 = """kernel s[N](x: f16[N]) -> (y: f16[]) {
  buffer acc: f16[] in reg = 0.0
  for i: N { acc += x[i] }
  y = acc
}"""


def test_carried_dependences_run_in_order() -> None:
    x = floats(9)
    text = """kernel c[N](x: f32[N]) -> (y: f32[N]) {
      buffer last: f32[] in reg = 0.0
      for i: N { y[i] = x[i] + last  last = x[i] }
    }"""
    want = x + np.concatenate([[0], x[:-1]]).astype(np.float32)
    np.testing.assert_array_equal(one(text, x=x), want)
    text = """kernel c[N](x: f32[N]) -> (y: f32[N]) {
      for i: N { y[i] = x[i] }
      for i: N - 1 { y[i + 1] += y[i] }
    }"""
    np.testing.assert_array_equal(one(text, x=x), np.add.accumulate(x))


def test_last_store_wins() -> None:
    x = floats(4, 5)
    text = """kernel c[M, N](x: f32[M, N]) -> (y: f32[N]) {
      for i: M { for j: N { y[j] = x[i, j] } }
    }"""
    np.testing.assert_array_equal(one(text, x=x), x[-1])


def test_masked_loops_and_guards_leave_the_rest_alone() -> None:
    x = floats(10)
    text = """kernel c[N](x: f32[N]) -> (y: f32[N]) {
      for i: N { y[i] = 0.0 }
      tile i: 16 where i < N { if x[i] > 0.0 { y[i] = x[i]  y[i] *= 2.0 } }
    }"""
    np.testing.assert_array_equal(one(text, x=x), np.where(x > 0, 2 * x, 0))


def test_a_guard_is_decided_before_its_body() -> None:
    text = """kernel c[N](x: f32[N]) -> (y: f32[N]) {
      for i: N { y[i] = x[i] }
      for i: N { if y[i] > 0.0 { y[i] = -1.0  y[i] += y[i] } }
    }"""
    assert one(text, x=np.array([1, -3], np.float32)).tolist() == [-2, -3]


def test_private_buffers_are_fresh_in_each_iteration() -> None:
    x = floats(4, 6)
    text = """kernel c[M, N](x: f32[M, N]) -> (y: f32[M]) {
      grid i: M {
        buffer part: f32[2] in local = 0.0
        for j: N { part[j % 2] += x[i, j] }
        y[i] = part[0] * part[1]
      }
    }"""
    want = [np.add.accumulate(r[::2])[-1] * np.add.accumulate(r[1::2])[-1] for r in x]
    np.testing.assert_array_equal(one(text, x=x), np.array(want, np.float32))


@pytest.mark.parametrize("op", ["+=", "*=", "max=", "min="])
def test_scatter_updates_happen_in_order(op: str) -> None:
    k = np.array([2, 0, 2, 2, 1], np.int64)
    x = floats(5, 3)
    text = f"""kernel c[V, T, D](k: i64[T], x: f32[T, D]) -> (y: f32[V, D]) {{
      for v: V {{ for d: D {{ y[v, d] = 0.5 }} }}
      for t: T {{ for d: D {{ y[k[t], d] {op} x[t, d] }} }}
    }}"""
    f = {"+=": np.add, "*=": np.multiply, "max=": np.maximum, "min=": np.minimum}[op]
    want = np.full((4, 3), 0.5, np.float32)
    for t in range(5):
        want[k[t]] = f(want[k[t]], x[t])
    np.testing.assert_array_equal(one(text, {"V": 4}, k=k, x=x), want)


def test_scatter_outside_is_refused() -> None:
    text = """kernel c[V, T](k: i64[T]) -> (y: i32[V]) {
      for v: V { y[v] = 0 }
      for t: T { y[k[t]] += 1 }
    }"""
    assert one(text, {"V": 3}, k=np.array([1, 1, 2])).tolist() == [0, 2, 1]
    with pytest.raises(EvaluationError, match=r"`y\[-1\]` is out of range"):
        one(text, {"V": 3}, k=np.array([1, -1, 2]))


def test_logical_updates() -> None:
    x = floats(6)
    text = """kernel c[N](x: f32[N]) -> (a: bool[], b: bool[]) {
      buffer p: bool[] in reg = false
      buffer q: bool[] in reg = true
      for i: N { p or= x[i] > 0.5 }
      for i: N { q and= x[i] < 0.5 }
      a = p   b = q
    }"""
    got = run(parse_kernel(text), {"x": x})
    assert got["a"] == (x > 0.5).any() and got["b"] == (x < 0.5).all()


def test_what_is_not_written_shows() -> None:
    text = "kernel c[N](x: f32[N]) -> (y: f32[N]) { for i: N { if i > 0 { y[i] = x[i] } } }"
    got = one(text, x=np.ones(3, np.float32))
    assert np.isnan(got[0]) and got[1:].tolist() == [1, 1]


# --- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_arithmetic_rounds_to_its_dtype(dtype: DType) -> None:
    a, b = floats(50, dtype=dtype), floats(50, dtype=dtype)
    text = f"""kernel c[N](a: {dtype}[N], b: {dtype}[N]) -> (y: {dtype}[N]) {{
      y[i: N] = a[i] * b[i] + a[i]
    }}"""
    wide = np.float32 if dtype.bits < 32 else dtype.numpy
    product = (a.astype(wide) * b.astype(wide)).astype(dtype.numpy)
    want = (product.astype(wide) + a.astype(wide)).astype(dtype.numpy)
    np.testing.assert_array_equal(one(text, a=a, b=b), want)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_wrap_and_divide_as_stated(dtype: DType) -> None:
    low, high = dtype.limits()
    values = [v for v in (low, low + 1, -7, -1, 0, 1, 2, 7, high - 1, high) if dtype.holds(v)]
    a = np.array([x for x in values for _ in values], dtype.numpy)
    b = np.array([y for _ in values for y in values], dtype.numpy)
    names = ["s", "p", "f", "m", "t", "r", "c"]
    exprs = ["a[i] + b[i]", "a[i] * b[i]", "a[i] // b[i]", "a[i] % b[i]", "tdiv(a[i], b[i])",
             "trem(a[i], b[i])", "cdiv(a[i], b[i])"]  # fmt: skip
    outs = ", ".join(f"{n}: {dtype}[N]" for n in names)
    body = "\n".join(f"{n}[i: N] = {e}" for n, e in zip(names, exprs, strict=True))
    text = f"kernel c[N](a: {dtype}[N], b: {dtype}[N]) -> ({outs}) {{ {body} }}"
    got = run(parse_kernel(text), {"a": a, "b": b})

    def wrap(v: int) -> int:
        v &= (1 << dtype.bits) - 1
        return v - (1 << dtype.bits) if dtype.kind == "int" and v > high else v

    for n, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        sign = -1 if (x < 0) != (y < 0) else 1
        tdiv = sign * (abs(x) // abs(y)) if y else 0
        want = [x + y, x * y, x // y if y else 0, x % y if y else 0, tdiv,
                x - tdiv * y if y else 0, -(-x // y) if y else 0]  # fmt: skip
        assert [got[k][n].item() for k in names] == [wrap(w) for w in want], (x, y)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_casts_to_integers_saturate(dtype: DType) -> None:
    low, high = dtype.limits()
    x = np.array([0.0, -0.9, 1.9, -1.9, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
    text = f"kernel c[N](x: f32[N]) -> (y: {dtype}[N]) {{ y[i: N] = {dtype}(x[i]) }}"
    want = [0, 0, 1, max(-1, low), high, low, high, low, 0]
    assert one(text, x=x).tolist() == want


def test_casts_to_narrow_floats_round_once() -> None:
    tie_and_more = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 2**-8, 1 + 3 * 2**-8])
    assert cast_array(tie_and_more, DTYPES["f64"], bf16).astype(float).tolist() == [
        1 + 2**-7, 1.0, 1.0, 1 + 2**-6]  # fmt: skip
    big = np.array([(1 << 40) + (1 << 32) + 1, (1 << 40) + (1 << 32), -(1 << 62)], np.int64)
    assert cast_array(big, DTYPES["i64"], bf16).astype(float).tolist() == [
        float((1 << 40) + (1 << 33)), float(1 << 40), -float(1 << 62)]  # fmt: skip
    over = np.array([1e9, -1e9, 460.0, np.inf], np.float32)
    assert np.isnan(cast_array(over, f32, f8e4m3).astype(float)).tolist() == [
        True,
        True,
        False,
        True,
    ]
    assert np.isinf(cast_array(over[:2], f32, f16)).all()


def test_bitcast_and_shifts_and_bool() -> None:
    x = floats(8)
    text = """kernel c[N](x: f32[N]) -> (a: i32[N], b: u32[N], c: bool[N], d: i32[N]) {
      a[i: N] = bitcast[i32](x[i])
      b[i: N] = bitcast[u32](x[i]) >> 23
      c[i: N] = bool(x[i])
      d[i: N] = (a[i] >> 40) ^ (a[i] << 32)
    }"""
    got = run(parse_kernel(text), {"x": x})
    np.testing.assert_array_equal(got["a"], x.view(np.int32))
    np.testing.assert_array_equal(got["b"], x.view(np.uint32) >> 23)
    assert got["c"].all()
    np.testing.assert_array_equal(got["d"], np.where(x.view(np.int32) < 0, -1, 0))


# --- what bad input gets -----------------------------------------------------------------------


def test_bad_inputs() -> None:
    with pytest.raises(InputDataError, match="holds float64, but f32 is declared"):
        one(SOFTMAX, x=np.zeros((2, 2)))
    with pytest.raises(InputDataError, match="has no input `z`"):
        one(SOFTMAX, x=floats(2, 2), z=floats(1))
    with pytest.raises(InputDataError, match="no array for the input `x`"):
        run(parse_kernel(SOFTMAX), {})
    with pytest.raises(InputDataError, match="`N` is 4 in `x` but 5 in `w`"):
        one("kernel a[N](x: f32[N], w: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] + w[i] }",
            x=floats(4), w=floats(5))  # fmt: skip
    with pytest.raises(ConstraintError, match="no value for the dim `N`"):
        run(parse_kernel("kernel z[N]() -> (y: f32[N]) { y[i: N] = 0.0 }"), {})


# --- graphs ------------------------------------------------------------------------------------

NETWORK = """
kernel scale[M, N, by = 2](x: f32[M, N]) -> (y: f32[M, N]) { y[i: M, j: N] = x[i, j] * f32(by) }
kernel dot[M, N, K](x: f32[M, K], w: f32[K, N]) -> (y: f32[M, N]) {
  y[i: M, j: N] = sum(k: K) x[i, k] * w[k, j]
}
graph net[B, I, O](x: f32[B, I], w: f32[I, O]) -> (out: f32[B, O], h: f32[B, O]) {
  h = dot(x, w)
  out = scale[by = 3](h)
}"""


def test_graph() -> None:
    module = parse(NETWORK)
    x, w = floats(3, 4), floats(4, 5)
    got = run_graph(module, module.graphs()["net"], {"x": x, "w": w})
    np.testing.assert_allclose(got["h"], x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["out"], got["h"] * 3)


def test_graph_shape_clash_is_found() -> None:
    module = parse(NETWORK)
    with pytest.raises(InputDataError):
        run_graph(module, module.graphs()["net"], {"x": floats(3, 4), "w": floats(3, 5)})


def test_loops_that_mostly_lie_idle() -> None:
    x = floats(9, 70)
    text = """kernel c[M, N](x: f32[M, N]) -> (y: f32[M]) {
      grid i: M {
        buffer acc: f32[] in reg = 0.0
        for o: 512 where o * 4 < N - i {
          tile j: 4 where o * 4 + j < N - i { acc += x[i, o * 4 + j] }
        }
        y[i] = acc
      }
    }"""
    want = [np.add.accumulate(np.append(np.float32(0), r[: 70 - n]))[-1] for n, r in enumerate(x)]
    np.testing.assert_array_equal(one(text, x=x), np.array(want, np.float32))
    assert one(text, x=floats(1, 0)).tolist() == [0]
