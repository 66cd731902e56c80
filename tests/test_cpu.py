"""The cpu backend on whole kernels: every statement form, masks, tails, spaces, against the
interpreter; and the road around it: arguments, threads, the cache, artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.backends.cpu.archs import host_features
from kir.backends.cpu.native import SPINS
from kir.backends.llvm.compile import compile_text
from kir.errors import (
    ConstraintError,
    EvaluationError,
    InputDataError,
    MissingHardwareError,
    UnsupportedError,
    UsageError,
)
from kir.interpret import run as interpret
from kir.ir import Kernel, walk
from kir.pipeline import Target, schedule
from kir.plan.cpu import plan
from kir.syntax import parse_kernel

ROOT = Path(__file__).resolve().parent.parent
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


def run(
    kernel: Kernel, arrays: Arrays, dims: dict[str, int] | None = None, threads: int = 0
) -> Arrays:
    artifact = BACKEND.lower(kernel, "cpu", "native")
    return BACKEND.with_threads(artifact, threads)(arrays, dims)


def same(text: str, arrays: Arrays, dims: dict[str, int] | None = None, rtol: float = 0) -> None:
    """The kernel gives what the interpreter gives, with one thread and with two."""
    kernel = parse_kernel(text)
    before = {n: a.copy() for n, a in arrays.items()}
    want = interpret(kernel, arrays, dims)
    for threads in (1, -2):
        got = run(kernel, arrays, dims, threads)
        for name, array in want.items():
            np.testing.assert_allclose(
                got[name].astype(np.float64) if array.dtype.kind == "f" else got[name],
                array.astype(np.float64) if array.dtype.kind == "f" else array,
                rtol=rtol, atol=rtol, err_msg=f"{name}, {threads} threads",
            )  # fmt: skip
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array)


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 31, 32, 33, 97])
def test_tile_with_a_mask(n: int) -> None:
    same("""kernel k[N](x: f32[N]) -> (y: f32[N]) {
      grid o: cdiv(N, 32) { tile j: 32 where o*32 + j < N { y[o*32 + j] = x[o*32 + j] * 2.0 } }
    }""", {"x": floats(n)})  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 3, 8, 24, 64, 65, 100, 1024])
def test_tiles_of_any_extent(lanes: int) -> None:
    same(f"""kernel k[M](x: f32[M, {lanes}]) -> (y: f32[M, {lanes}], s: f32[M]) {{
      grid i: M {{
        buffer a: f32 in reg = 0
        tile j: {lanes} {{ y[i, j] = max(x[i, j], 0.5) }}
        tile j2: {lanes} {{ a += x[i, j2] }}
        s[i] = a
      }}
    }}""", {"x": floats(5, lanes)}, rtol=1e-5)  # fmt: skip


def test_register_block_with_partial_tiles() -> None:
    text = """kernel k[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
      grid io: cdiv(M, 6), jo: cdiv(N, 16) {
        buffer acc: f32[6, 16] in reg = 0
        for k: K {
          tile i: 6, j: 16 where io*6 + i < M, jo*16 + j < N {
            acc[i, j] = fma(a[io*6 + i, k], b[k, jo*16 + j], acc[i, j])
          }
        }
        tile i2: 6, j2: 16 where io*6 + i2 < M, jo*16 + j2 < N {
          c[io*6 + i2, jo*16 + j2] = acc[i2, j2]
        }
      }
    }"""
    for m, n, k in ((6, 16, 3), (13, 35, 9), (1, 1, 0), (12, 48, 5)):
        same(text, {"a": floats(m, k), "b": floats(k, n)}, rtol=1e-6)


def test_gpu_style_block_of_a_matrix_product() -> None:
    same("""kernel k[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
      grid io: cdiv(M, 32), jo: cdiv(N, 32) {
        buffer acc: f32[32, 32] in reg = 0
        for ko: cdiv(K, 16) {
          tile i: 32, j: 32, k: 16 where io*32+i < M, jo*32+j < N, ko*16+k < K {
            acc[i, j] += a[io*32+i, ko*16+k] * b[ko*16+k, jo*32+j]
          }
        }
        tile i2: 32, j2: 32 where io*32+i2 < M, jo*32+j2 < N { c[io*32+i2, jo*32+j2] = acc[i2, j2] }
      }
    }""", {"a": floats(37, 21), "b": floats(21, 45)}, rtol=1e-5)  # fmt: skip


def test_padded_reads_touch_nothing_outside() -> None:
    text = """kernel k[N](x: f32[N]) -> (y: f32[N], z: f32[N]) {
      for o: cdiv(N, 8) {
        tile j: 8 where o*8 + j < N {
          y[o*8 + j] = (x[o*8 + j - 3] else -1.0) + (x[o*8 + j + 100000000] else 2.0)
        }
      }
      for i: N { z[i] = x[2*i - 1] else 7.0 }
    }"""
    for n in (1, 5, 8, 29):
        same(text, {"x": floats(n)})


def test_uniform_padded_read_under_lanes() -> None:
    same("""kernel k[N](x: f32[N]) -> (y: f32[9, 8]) {
      for i: 9 { tile j: 8 { y[i, j] = (x[i - 2] else 3.0) * f32(j) } }
    }""", {"x": floats(4)})  # fmt: skip


def test_strided_reversed_and_transposed_accesses() -> None:
    same("""kernel k[N](x: f32[N, 16], t: f32[16, N])
        -> (y: f32[N, 16], z: f32[16, N], r: f32[N, 16]) {
      for i: N {
        tile j: 16 { y[i, j] = t[j, i] }
        tile j2: 16 { z[j2, i] = x[i, 15 - j2] }
        tile j3: 16 { r[i, 15 - j3] = x[i, (j3*3) % 16] }
      }
    }""", {"x": floats(9, 16), "t": floats(16, 9)})  # fmt: skip


def test_guards_inside_and_outside_of_lanes() -> None:
    same("""kernel k[N](x: f32[N, 16]) -> (y: f32[N, 16]) {
      for i: N {
        tile j: 16 { y[i, j] = 1.0 }
        if i % 2 == 0 {
          tile j2: 16 where j2 % 3 != 0 {
            if x[i, j2] > 0.0 { y[i, j2] = x[i, j2]
                                if j2 > 5 { y[i, j2] += 2.0 } }
          }
        }
      }
    }""", {"x": floats(6, 16)})  # fmt: skip


def test_conditions_are_met_in_order() -> None:
    """The second condition reads what only the first keeps in bounds."""
    same("""kernel k[N](x: f32[N]) -> (y: f32[40]) {
      tile j: 40 { y[j] = 0.0 }
      tile j2: 40 where j2 < N, x[min(j2, N - 1)] > 0.0 { y[j2] = x[min(j2, N - 1)] }
      for i: 40 { if i < N and x[min(i, N - 1)] < 0.0 { y[i] = -1.0 } }
    }""", {"x": floats(23)})  # fmt: skip


@pytest.mark.parametrize("op", ["+=", "*=", "max=", "min="])
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "i32", "u8", "i64"])
def test_every_update_as_a_reduction_over_lanes(op: str, dtype: str) -> None:
    init = {"+=": "0", "*=": "1", "max=": "0", "min=": "100"}[op]
    text = f"""kernel k[N](x: {dtype}[N]) -> (y: {dtype}[1], z: {dtype}[N]) {{
      buffer a: {dtype} in reg = {init}
      for o: cdiv(N, 16) {{ tile j: 16 where o*16 + j < N {{ a {op} x[o*16 + j] }} }}
      y[0] = a
      for i: N {{ z[i] = {init} }}
      for o2: cdiv(N, 16) {{ tile k: 16 where o2*16 + k < N {{ z[o2*16 + k] {op} x[o2*16 + k] }} }}
    }}"""
    kernel = parse_kernel(text)
    x = (np.random.default_rng(1).integers(1, 3, 37)).astype(kernel.inputs[0].type.numpy)
    if op == "*=":
        x[5:] = 1
    same(text, {"x": x}, rtol=1e-2 if dtype == "bf16" else 1e-6)


def test_logical_updates() -> None:
    same("""kernel k[N](x: bool[N]) -> (y: bool[2]) {
      buffer a: bool in reg = true
      buffer o: bool in reg = false
      for i: cdiv(N, 8) {
        tile j: 8 where i*8 + j < N { a and= x[i*8 + j]
                                      o or= x[i*8 + j] } }
      y[0] = a
      y[1] = o
    }""", {"x": np.array([True] * 12 + [False])})  # fmt: skip


def test_max_over_lanes_propagates_nan() -> None:
    text = """kernel k[N](x: f32[N]) -> (y: f32[2]) {
      buffer a: f32 in reg = -inf
      buffer b: f32 in reg = inf
      for o: cdiv(N, 24) { tile j: 24 where o*24 + j < N { a max= x[o*24 + j]
                                                           b min= x[o*24 + j] } }
      y[0] = a
      y[1] = b
    }"""
    for place in (None, 0, 17, 60):
        x = floats(61)
        if place is not None:
            x[place] = np.nan
        same(text, {"x": x})


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "i32", "u8", "i64"])
def test_scatter_updates_are_atomic_across_a_grid(dtype: str) -> None:
    text = f"""kernel k[N, V](index: i64[N], x: {dtype}[N]) -> (y: {dtype}[V], m: {dtype}[V]) {{
      for v: V {{ y[v] = 0 }}
      for v2: V {{ m[v2] = 0 }}
      grid i: N {{ y[index[i]] += x[i] }}
      grid o: cdiv(N, 8) {{ tile j: 8 where o*8 + j < N {{
        m[index[min(o*8 + j, N - 1)]] max= x[o*8 + j] }} }}
    }}"""
    kernel = parse_kernel(text)
    rng = np.random.default_rng(2)
    index = rng.integers(0, 5, 3001)
    x = rng.integers(0, 2, 3001).astype(kernel.inputs[1].type.numpy)
    want = np.zeros(5)
    np.add.at(want, index, x.astype(float))
    for threads in (1, -2):
        got = run(kernel, {"index": index, "x": x}, {"V": 5}, threads)
        wrapped = want.astype(np.int64).astype(got["y"].dtype) if dtype == "u8" else want
        np.testing.assert_array_equal(got["y"].astype(float), wrapped.astype(float))
        np.testing.assert_array_equal(got["m"].astype(float), np.ones(5))


def test_a_grid_that_sums_into_one_element() -> None:
    kernel = parse_kernel("""kernel k[N](x: f32[N, 32]) -> (y: f32[]) {
      y = 0.0
      grid i: N { tile j: 32 { y += x[i, j] } }
    }""")
    x = np.ones((5000, 32), np.float32)
    for threads in (1, -2):
        assert run(kernel, {"x": x}, threads=threads)["y"] == 160000


def test_buffers_in_every_space() -> None:
    same("""kernel k[M, N](x: f32[M, N]) -> (y: f32[M, N], s: f32[M]) {
      buffer g: f32[M, N] in global
      grid i: M { for j: N { g[i, j] = x[i, j] + 1.0 } }
      grid i2: M {
        buffer row: f32[N] in local
        buffer seven: f32[3, 5] in local = 7.0
        buffer t: f32[4] in reg = 0.5
        for j2: N { row[j2] = g[i2, j2] * seven[j2 % 3, j2 % 5] + t[j2 % 4] }
        buffer a: f32 in reg = 0
        for j3: N { a += row[j3] }
        s[i2] = a
        for j4: N { y[i2, j4] = row[j4] / a }
      }
    }""", {"x": floats(4, 77)}, rtol=1e-5)  # fmt: skip


def test_a_large_local_buffer_is_on_the_heap_and_initialised() -> None:
    same("""kernel k[M](x: f32[M]) -> (y: f32[M]) {
      grid i: M {
        buffer big: f32[100, 1000] in local = 3.0
        for r: 100 { big[r, i] += x[i] }
        buffer a: f32 in reg = 0
        for r2: 100, c: 1000 { a += big[r2, c] }
        y[i] = a
      }
    }""", {"x": np.ones(3, np.float32)}, rtol=1e-4)  # fmt: skip


def test_buffers_private_to_each_lane() -> None:
    same("""kernel k[N](x: f32[N, 16, 5]) -> (y: f32[N, 16], z: f32[N, 16]) {
      grid i: N {
        tile j: 16 {
          buffer a: f32 in reg = 0
          buffer h: f32[5] in local
          for k: 5 { a += x[i, j, k]
                     h[k] = a }
          y[i, j] = a
          z[i, j] = h[2] + h[j % 5]
        }
      }
    }""", {"x": floats(3, 16, 5)}, rtol=1e-5)  # fmt: skip


def test_unrolled_loops_and_nested_tiles() -> None:
    same("""kernel k[N](x: f32[N, 4, 8]) -> (y: f32[N, 4, 8]) {
      for n: N {
        unroll u: 4 where u != 2 { tile j: 8 { y[n, u, j] = x[n, u, j] * f32(u) } }
        tile i: 4 {
          buffer m: f32 in reg = -inf
          tile j2: 8 { m max= x[n, i, j2] }
          if i == 2 { tile j3: 8 { y[n, i, j3] = m } }
        }
      }
    }""", {"x": floats(3, 4, 8)})  # fmt: skip


def test_a_recurrence_around_grids() -> None:
    same("""kernel k[T, N](x: f32[T, N]) -> (h: f32[T, N]) {
      buffer c: f32[N] in global
      for i: N { c[i] = 0.0 }
      for t: T {
        grid j: cdiv(N, 8) { tile l: 8 where j*8 + l < N {
          c[j*8 + l] = c[j*8 + l] * 0.5 + x[t, j*8 + l]
          h[t, j*8 + l] = c[j*8 + l] } }
      }
    }""", {"x": floats(6, 21)}, rtol=1e-6)  # fmt: skip


def test_triangular_loops() -> None:
    same("""kernel k[N](x: f32[N]) -> (y: f32[N]) {
      grid i: N {
        buffer a: f32 in reg = 0
        for j: i + 1 { a += x[j] }
        y[i] = a
      }
    }""", {"x": floats(33)}, rtol=1e-5)  # fmt: skip


def test_the_last_lane_wins_an_assignment_by_all() -> None:
    same("""kernel k[N](x: f32[N]) -> (y: f32[2]) {
      tile j: 8 where j < N { y[0] = x[min(j, N - 1)] }
      tile i: 8 { y[1] = f32(i) }
    }""", {"x": floats(5)})  # fmt: skip


def test_narrow_floats_in_a_kernel() -> None:
    import ml_dtypes

    x = floats(3, 40).astype(ml_dtypes.bfloat16)
    same("""kernel k[M, N](x: bf16[M, N]) -> (y: f16[M, N], s: bf16[M]) {
      grid i: M {
        buffer a: f32 in reg = 0
        for o: cdiv(N, 16) { tile j: 16 where o*16 + j < N {
          y[i, o*16 + j] = f16(x[i, o*16 + j])
          a += f32(x[i, o*16 + j]) } }
        s[i] = bf16(a)
      }
    }""", {"x": x}, rtol=1e-2)  # fmt: skip


def test_random_numbers_are_the_interpreters() -> None:
    same("""kernel k[N](seed: u64[]) -> (y: f32[N], z: u32[N]) {
      for o: cdiv(N, 16) { tile j: 16 where o*16 + j < N {
        y[o*16 + j] = rand(seed, o*16 + j)
        z[o*16 + j] = philox(seed, o*16 + j) } }
    }""", {"seed": np.array(1234567890123, np.uint64)}, {"N": 75})  # fmt: skip


def test_names_that_are_keywords_elsewhere() -> None:
    same("""kernel define[store](lambda: f32[store], ret: i32[store]) -> (load: f32[store]) {
      buffer entry: f32 in reg = 1.0
      for i32_: store { load[i32_] = lambda[i32_] + entry + f32(ret[i32_]) }
    }""", {"lambda": floats(4), "ret": np.arange(4, dtype=np.int32)})  # fmt: skip


CHECKED = {
    "gather": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[T, D]) {
      grid t: T { for d: D { y[t, d] = table[ids[t], d] } }
    }""",
    "gather of lanes": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[T, D]) {
      for d: D { grid o: cdiv(T, 8) {
        tile l: 8 where o*8 + l < T { y[o*8 + l, d] = table[ids[o*8 + l], d] }
      } }
    }""",
    "row of lanes": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[T, D]) {
      grid t: T, o: cdiv(D, 8) {
        tile l: 8 where o*8 + l < D { y[t, o*8 + l] = table[ids[t], o*8 + l] }
      }
    }""",
    "scatter update": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[V]) {
      for v: V { y[v] = 0.0 }
      grid t: T { y[ids[t]] += 1.0 }
    }""",
    "scatter update of lanes": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[V]) {
      for v: V { y[v] = 0.0 }
      grid o: cdiv(T, 8) { tile l: 8 where o*8 + l < T { y[ids[o*8 + l]] += 1.0 } }
    }""",
    "scatter": """kernel k[T, V, D](table: f32[V, D], ids: i64[T]) -> (y: f32[V]) {
      for v: V { y[v] = 0.0 }
      for o: cdiv(T, 8) { for l: 8 where o*8 + l < T { y[ids[o*8 + l]] = 2.0 } }
    }""",
}  # fmt: skip


@pytest.mark.parametrize("text", CHECKED.values(), ids=CHECKED)
def test_debug_builds_refuse_bad_indices(text: str) -> None:
    kernel = parse_kernel(text)
    debug = BACKEND.debug()
    arrays = {"table": floats(5, 13), "ids": np.arange(21, dtype=np.int64) % 5}
    artifact = debug.lower(kernel, "cpu", "native")
    for threads in (1, -2):
        run_checked = BACKEND.with_threads(artifact, threads)
        got = run_checked(arrays)["y"]
        np.testing.assert_array_equal(got, interpret(kernel, arrays)["y"])
        for place, bad in ((0, -1), (10, 5), (20, 1 << 62), (0, 5), (20, -(1 << 62))):
            wrong = arrays["ids"].copy()
            wrong[place] = bad
            name = "table" if "table[" in text.split("{", 1)[1] else "y"
            message = (
                rf"of `{name}\[ids.* is {bad}, out of range: axis 0 of `{name}` has 5 elements"
            )
            with pytest.raises(EvaluationError, match=message) as caught:
                run_checked({**arrays, "ids": wrong})
            assert caught.value.node in list(walk(kernel))


def test_debug_builds_check_planned_schedules_and_nested_indices() -> None:
    spec = parse_kernel("""kernel k[N, V](x: f32[V], a: i64[N], b: i64[V]) -> (y: f32[N]) {
      y[n: N] = x[b[a[n]]] + (x[a[n] + 1] else 0)
    }""")
    kernel = schedule(spec, plan(spec))
    fast = BACKEND.debug().load(BACKEND.debug().lower(kernel, "cpu", "native"))
    good = {"x": floats(4), "a": np.arange(50) % 4, "b": np.arange(4)}
    want = interpret(spec, good)["y"]
    np.testing.assert_array_equal(fast(good)["y"], want)
    for name, tensor in (("a", "b"), ("b", "x")):
        wrong = good[name].copy()
        wrong[3] = 4
        with pytest.raises(EvaluationError, match=f"is 4, out of range: axis 0 of `{tensor}`"):
            fast({**good, name: wrong})


def test_debug_builds_make_no_library_and_are_the_cpus() -> None:
    kernel = parse_kernel(CHECKED["gather"])
    with pytest.raises(UsageError, match="debug build has no stage `so`"):
        BACKEND.debug().lower(kernel, "cpu", "native", "so")
    with pytest.raises(UsageError, match="has no debug builds"):
        Target("accel", debug=True).backend.lower(kernel, "accel", "any")


def test_kir_run_debug_reports_a_bad_index(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", floats(5, 3))
    np.save(tmp_path / "ids.npy", np.array([0, 9, 1]))
    command = [sys.executable, "-m", "kir", "run", "examples/embedding.kir", "--debug"]
    command += [f"--input={name}={tmp_path / name}.npy" for name in ("table", "ids")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "index 0 of `table[ids[t], d" in done.stderr
    assert "is 9, out of range: axis 0 of `table` has 5 elements" in done.stderr


SCALE = """kernel scale[M, N](x: f32[M, N]) -> (y: f32[M, N]) where N % 2 == 0 {
  grid i: M { for o: cdiv(N, 8) { tile j: 8 where o*8 + j < N {
    y[i, o*8 + j] = x[i, o*8 + j] * 3.0 } } }
}"""


def scale() -> Any:
    return BACKEND.load(BACKEND.lower(parse_kernel(SCALE), "cpu", "native"))


def test_outputs_are_written_in_place() -> None:
    x, y = floats(3, 10), np.full((3, 10), np.nan, np.float32)
    made = scale()({"x": x}, None, {"y": y})
    assert made["y"] is y
    np.testing.assert_array_equal(y, x * np.float32(3))


def test_large_outputs_may_bypass_the_cache() -> None:
    text = SCALE.replace("grid i: M {", "grid i: M hint(stream = 1) {")
    executable = BACKEND.load(BACKEND.lower(parse_kernel(text), "cpu", "native"))
    for shape in ((2050, 4100), (2050, 4102)):  # rows aligned to 16 bytes, and not
        x = floats(*shape)
        np.testing.assert_array_equal(executable({"x": x})["y"], x * np.float32(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (floats(3, 10).astype(np.float64), "float64, not f32"),
        (floats(10, 3).T, "not contiguous"),
        ([[1.0, 2.0]], "not a NumPy array"),
        (floats(4), "1 axes"),
    ],
)
def test_wrong_inputs_are_refused(x: Any, message: str) -> None:
    with pytest.raises(InputDataError) as caught:
        scale()({"x": x})
    assert message in caught.value.message


def test_wrong_outputs_and_dims_are_refused() -> None:
    run_scale, x = scale(), floats(3, 10)
    for y, message in ((np.empty((3, 8), np.float32), "has shape"), (x, "shares memory")):
        with pytest.raises(InputDataError) as caught:
            run_scale({"x": x}, None, {"y": y})
        assert message in caught.value.message
    with pytest.raises(InputDataError):
        run_scale({}, None)
    with pytest.raises(ConstraintError):
        run_scale({"x": floats(3, 9)})


def test_a_specification_is_refused() -> None:
    spec = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    with pytest.raises(UnsupportedError):
        BACKEND.lower(spec, "cpu", "native")


def test_unknown_archs_and_stages_are_refused() -> None:
    kernel = parse_kernel(SCALE)
    with pytest.raises(UnsupportedError):
        BACKEND.lower(kernel, "cpu", "z80")
    with pytest.raises(UsageError):
        BACKEND.lower(kernel, "cpu", "native", "ptx")


def test_other_archs_compile_and_run_only_where_they_can() -> None:
    artifact = BACKEND.lower(parse_kernel(SCALE), "cpu", "sapphirerapids", "asm")
    asm = artifact.stages["asm"]
    assert isinstance(asm, str) and "vmulps" in asm
    if "amx-tile" not in host_features():
        with pytest.raises(MissingHardwareError):
            BACKEND.load(artifact)


def test_the_shared_library_runs_through_its_header(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    kernel = parse_kernel(SCALE)
    for stage in ("so", "header"):
        data = BACKEND.lower(kernel, "cpu", "native", stage).stages[stage]
        raw = data if isinstance(data, bytes) else data.encode()
        (tmp_path / ("scale.so" if stage == "so" else "scale.h")).write_bytes(raw)
    (tmp_path / "main.c").write_text("""#include <stdio.h>
        #include "scale.h"
        int main(void) { float x[4] = {1, 2, 3, 4}, y[4];
          if (kir_scale(x, y, 2, 2, 1)) return 1;
          printf("%g %g %g %g", y[0], y[1], y[2], y[3]); return 0; }""")
    program = str(tmp_path / "main")
    subprocess.run(["cc", "-o", program, str(tmp_path / "main.c"), str(tmp_path / "scale.so")],
                   check=True)  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == "3 6 9 12"


def test_the_cache_keeps_finds_and_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", str(tmp_path))
    kernel, x = parse_kernel(SCALE), floats(2, 6)
    first = BACKEND.lower(kernel, "cpu", "native")
    (entry,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    compiled: list[str] = []
    monkeypatch.setattr("kir.backends.cpu.backend.compile_text", _spy(compiled, compile_text))
    again = BACKEND.lower(kernel, "cpu", "native")
    assert not compiled and again.stages == first.stages
    entry.write_bytes(entry.read_bytes()[:-7])
    mended = BACKEND.lower(kernel, "cpu", "native")
    assert len(compiled) == 1
    np.testing.assert_array_equal(BACKEND.load(mended)({"x": x})["y"], x * np.float32(3))
    BACKEND.lower(kernel, "cpu", "x86-64-v3")
    BACKEND.lower(parse_kernel(SCALE.replace("3.0", "4.0")), "cpu", "native")
    assert len(compiled) == 3


def _spy(calls: list[str], function: Any) -> Any:
    def spied(text: str, *rest: Any) -> Any:
        calls.append(text)
        return function(text, *rest)

    return spied


def test_many_processes_share_a_cold_cache(tmp_path: Path) -> None:
    code = f"""import numpy as np
from kir.syntax import parse_kernel
from kir.backends.cpu import BACKEND
k = parse_kernel('''{SCALE}''')
y = BACKEND.load(BACKEND.lower(k, 'cpu', 'native'))({{'x': np.ones((2, 4), np.float32)}})['y']
assert (y == 3).all()"""
    env = {**os.environ, "KIR_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=env, cwd=ROOT) for _ in range(3)]
    assert [r.wait(timeout=120) for r in runs] == [0, 0, 0]
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert len(left) == 1 and not left[0].startswith(".new-")


@pytest.mark.parametrize(
    ("setting", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["none", "spins", "policy"],
)
def test_openmp_threads_wait_briefly_unless_the_user_says_how(
    setting: dict[str, str], spins: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = (
        "import os; before = dict(os.environ)\n"
        "from kir.backends.cpu.native import has_openmp\n"
        "assert has_openmp() and dict(os.environ) == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**kept, **setting, "OMP_DISPLAY_ENV": "verbose"},
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_a_register_block_stays_in_registers() -> None:
    """Twelve accumulators of the 6 x 16 block: no spill in the loop over k."""
    artifact = BACKEND.lower(parse_kernel("""kernel k[K](a: f32[K, 6], b: f32[K, 16])
      -> (c: f32[6, 16]) {
      buffer acc: f32[6, 16] in reg = 0
      for k: K { tile i: 6, j: 16 { acc[i, j] = fma(a[k, i], b[k, j], acc[i, j]) } }
      tile i2: 6, j2: 16 { c[i2, j2] = acc[i2, j2] }
    }"""), "cpu", "x86-64-v3", "asm")  # fmt: skip
    asm = artifact.stages["asm"]
    assert isinstance(asm, str)
    blocks = asm.split("\n.LBB")
    hot = max(blocks, key=lambda b: b.count("vfmadd"))
    assert hot.count("vfmadd") % 12 == 0 and hot.count("vfmadd") >= 12
    assert "(%rsp)" not in hot
