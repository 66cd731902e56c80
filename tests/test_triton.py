"""The Triton backend: constructs of scheduled IR, under Triton's interpreter, and compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kir.backends.triton import BACKEND
from kir.backends.triton.compile import SHARED_BYTES
from kir.backends.triton.execute import evaluate
from kir.backends.triton.names import Names
from kir.errors import (
    EvaluationError,
    InputDataError,
    MissingHardwareError,
    UnsupportedError,
    UsageError,
)
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Kernel
from kir.specialise import infer_dims
from kir.syntax import parse_kernel

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="the extra `triton` is not installed")
pytest.importorskip("torch", reason="torch is not installed")

Array = np.ndarray[Any, Any]


def triton(
    kernel: Kernel, inputs: Mapping[str, Array], dims: Mapping[str, int]
) -> dict[str, Array]:
    artifact = BACKEND.lower(kernel, "nvidia", "sm_90", "source")
    return BACKEND.load(artifact, interpret=True)(inputs, dims)


def assert_same(text: str, tolerance: float = 0.0, seed: int = 0, **dims: int) -> None:
    """Triton's interpreter and KIR's agree on random inputs; nothing but outputs is written."""
    kernel = parse_kernel(text)
    inputs = random_inputs(kernel, dims, seed)
    before = {n: a.copy() for n, a in inputs.items()}
    got, want = triton(kernel, inputs, dims), run(kernel, inputs, dims)
    for name in want:
        g, w = got[name].astype(np.float64), want[name].astype(np.float64)
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance, err_msg=name)
    for name, array in before.items():
        np.testing.assert_array_equal(inputs[name], array)


# --- constructs ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_masked_tiles(n: int) -> None:
    assert_same(
        """kernel k[N](x: f32[N]) -> (y: f32[N]) {
             grid io: cdiv(N, 64) {
               tile i: 64 where io*64 + i < N { y[io*64 + i] = x[io*64 + i] * 2.0 }
             } }""",
        N=n,
    )


def test_programs_of_scalars() -> None:
    assert_same(
        """kernel k[M, N](x: i32[M, N]) -> (y: i32[M]) {
             for i: M {
               buffer acc: i32[] in reg = 0
               for j: N { if x[i, j] > 0 { acc += x[i, j] } }
               y[i] = acc
             } }""",
        M=3,
        N=7,
    )


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("+=", "f32"), ("*=", "f32"), ("max=", "f32"), ("min=", "f64"), ("+=", "i8"), ("*=", "i16"),
     ("max=", "u8"), ("min=", "i64"), ("+=", "bf16"), ("and=", "bool"), ("or=", "bool")],
)  # fmt: skip
def test_updates_reduce_over_lanes(op: str, dtype: str) -> None:
    start = {"and=": "true", "or=": "false"}.get(op, "1" if dtype[0] in "iu" else "1.0")
    start = {"true": "1 == 1", "false": "1 == 0"}.get(start, start)
    assert_same(
        f"""kernel k[M, N](x: {dtype}[M, N]) -> (y: {dtype}[M]) {{
             grid i: M {{
               buffer acc: {dtype}[] in reg = {start}
               for jo: cdiv(N, 16) {{
                 tile j: 16 where jo*16 + j < N {{ acc {op} x[i, jo*16 + j] }}
               }}
               y[i] = acc
             }} }}""",
        tolerance=0.05 if dtype == "bf16" else 1e-5,
        M=4,
        N=37,
    )


def test_an_extreme_of_lanes_is_nan_where_one_is() -> None:
    kernel = parse_kernel(
        """kernel k[M, N](x: f32[M, N]) -> (y: f32[M], z: f32[M]) {
             grid i: M {
               buffer high: f32[] in reg = -inf
               buffer low: f32[] in reg = inf
               tile j: 64 where j < N { high max= x[i, j]  low min= x[i, j] }
               y[i] = high
               z[i] = low
             } }"""
    )
    x = np.array([[1, np.nan, 3], [-1, -2, -3], [np.inf, 0, -np.inf]], np.float32)
    got = triton(kernel, {"x": x}, {})
    np.testing.assert_array_equal(got["y"], [np.nan, -1, np.inf])
    np.testing.assert_array_equal(got["z"], [np.nan, -3, -np.inf])


def test_buffers_private_to_lanes() -> None:
    assert_same(
        """kernel k[N, R](x: f32[N, R]) -> (y: f32[N]) {
             grid io: cdiv(N, 32) {
               tile i: 32 where io*32 + i < N {
                 buffer acc: f32[] in reg = -inf
                 for r: R { acc max= x[io*32 + i, r] }
                 y[io*32 + i] = acc
               } } }""",
        N=45,
        R=3,
    )


def test_lanes_walk_loops_of_their_own_length() -> None:
    assert_same(
        """kernel k[N](x: i64[N]) -> (y: i64[N]) {
             grid one: 1 {
               tile i: 32 where i < N {
                 buffer acc: i64[] in reg = 0
                 for r: i + 1 { acc += x[r] }
                 y[i] = acc
               } } }""",
        N=27,
    )


def test_local_rows_are_scratch_of_each_program() -> None:
    assert_same(
        """kernel k[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
             grid i: M {
               buffer row: f32[N] in local = 0.0
               for jo: cdiv(N, 16) {
                 tile j: 16 where jo*16 + j < N { row[jo*16 + j] += x[i, jo*16 + j] } }
               for jo: cdiv(N, 16) {
                 tile j: 16 where jo*16 + j < N { y[i, jo*16 + j] = row[N - 1 - (jo*16 + j)] } }
             } }""",
        M=3,
        N=37,
    )


def test_loops_on_the_host_and_temporaries() -> None:
    assert_same(
        """kernel k[T, N](x: f32[T, N]) -> (y: f32[T, N]) {
             for t: T {
               buffer z: f32[N] in global = 3.0
               grid i: N { z[i] += x[t, i] }
               if t > 0 { grid i: N { y[t, i] = y[t - 1, i] + z[N - 1 - i] } }
               if t == 0 { grid i: N { y[t, i] = z[i] } }
             } }""",
        T=4,
        N=5,
    )


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i64", "u32", "u64"])
@pytest.mark.parametrize("op", ["+=", "max=", "min="])
def test_shared_updates_are_atomic(dtype: str, op: str) -> None:
    zero = "0" if dtype[0] in "iu" else "0.0"
    assert_same(
        f"""kernel k[V, T](x: {dtype}[T], ids: i64[T]) -> (y: {dtype}[V]) {{
             grid v: V {{ y[v] = {zero} }}
             grid to: cdiv(T, 16) {{
               tile t: 16 where to*16 + t < T {{ y[ids[to*16 + t]] {op} x[to*16 + t] }}
             }} }}""",
        tolerance=1e-5,
        V=3,
        T=37,
    )


def test_atomic_extremes_keep_nan() -> None:
    kernel = parse_kernel(
        """kernel k[T](x: f32[T]) -> (y: f32[], z: f32[]) {
             y = -1.0
             z = -1.0
             grid t: T { y max= x[t]  z min= x[t] } }"""
    )
    for x in ([1.0, np.nan, 2.0], [np.nan, -3.0, 1.0], [-3.0, -0.5, np.nan]):
        for sign in (1.0, -1.0):
            got = triton(
                kernel, {"x": np.copysign(np.array(x), sign * np.array(x)).astype(np.float32)}, {}
            )
            assert np.isnan(got["y"]) and np.isnan(got["z"])


def test_bool_updates_under_a_grid() -> None:
    assert_same(
        """kernel k[T](x: bool[T]) -> (y: bool[], z: bool[]) {
             y = 1 == 0
             z = 1 == 1
             grid t: T { y or= x[t]  z and= x[t] } }""",
        T=9,
    )


def test_padded_reads() -> None:
    assert_same(
        """kernel k[N](x: bf16[N], f: f32[]) -> (y: bf16[N], z: bf16[N]) {
             grid io: cdiv(N, 16) {
               tile i: 16 where io*16 + i < N {
                 y[io*16 + i] = x[io*16 + i - 2] else 1.5
                 z[io*16 + i] = x[io*16 + i + 3] else bf16(f)
               } } }""",
        N=21,
    )


def test_grouped_programs_cover_the_grid() -> None:
    for group in (1, 2, 3, 8):
        assert_same(
            f"""kernel k[B, M, N](x: i64[B, M, N]) -> (y: i64[B, M, N]) {{
                 grid b: B, i: M, j: N hint(group = {group}) {{
                   y[b, i, j] = x[b, i, j] + 1 }} }}""",
            B=2,
            M=5,
            N=3,
        )


def test_an_empty_grid_runs_nothing() -> None:
    assert_same("kernel k[N](x: f32[N]) -> (y: f32[N]) { grid i: N { y[i] = x[i] } }", N=0)


def test_names_that_are_pythons_or_tritons() -> None:
    assert_same(
        """kernel def[lambda](None: f32[lambda], tl: f32[lambda], range: f32[lambda])
           -> (class: f32[lambda], triton: f32[lambda]) {
             grid import: lambda {
               buffer floordiv: f32[] in reg = 0.0
               floordiv += None[import] + tl[import]
               class[import] = floordiv
               triton[import] = range[import]
             } }""".replace("for", "for"),
        **{"lambda": 5},
    )
    names = Names()
    assert [names.fresh(n) for n in ("x", "x", "_x", "np", "print")] == [
        "x", "x_2", "x_3", "np_2", "print_2",
    ]  # fmt: skip


# --- products --------------------------------------------------------------------------------

TILED = """kernel k[M, N, K](a: {ta}[{sa}], b: {tb}[{sb}]) -> (c: {acc}[M, N]) {{
  grid io: cdiv(M, 16), jo: cdiv(N, 32) {{
    buffer acc: {acc}[16, 32] in reg = {zero}
    for ko: cdiv(K, {k}) {{
      tile {order} where io*16 + i < M, jo*32 + j < N, ko*{k} + k < K {{
        acc[i, j] += {product}
      }}
    }}
    tile i: 16, j: 32 where io*16 + i < M, jo*32 + j < N {{ c[io*16 + i, jo*32 + j] = acc[i, j] }}
  }} }}"""


def tiled(
    a: str, b: str, acc: str, *, turned: bool = False, order: str = "ijk", k: int = 32
) -> str:
    extents = {"i": "16", "j": "32", "k": str(k)}
    left = "a[ko*{k} + k, io*16 + i]" if turned else "a[io*16 + i, ko*{k} + k]"
    right = "b[jo*32 + j, ko*{k} + k]" if turned else "b[ko*{k} + k, jo*32 + j]"
    left, right = left.replace("{k}", str(k)), right.replace("{k}", str(k))

    def cast(t: str, e: str) -> str:
        return e if t == acc else f"{acc}({e})"

    return TILED.format(
        ta=a, tb=b, acc=acc, k=k, zero="0" if acc[0] == "i" else "0.0",
        sa="K, M" if turned else "M, K", sb="N, K" if turned else "K, N",
        order=", ".join(f"{axis}: {extents[axis]}" for axis in order),
        product=f"{cast(a, left)} * {cast(b, right)}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "acc"),
    [("bf16", "bf16", "f32"), ("f16", "f16", "f32"), ("f32", "f32", "f32"), ("bf16", "f32", "f32"),
     ("f8e4m3", "f8e4m3", "f32"), ("f8e5m2", "f8e4m3", "f32"), ("i8", "i8", "i32")],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_products_take_the_matrix_unit(a: str, b: str, acc: str, turned: bool) -> None:
    text = tiled(a, b, acc, turned=turned)
    source = BACKEND.lower(parse_kernel(text), "nvidia", "sm_90", "source").stages["source"]
    assert isinstance(source, str) and "tl.dot(" in source
    assert_same(text, tolerance=1e-4, M=20, N=33, K=45)


@pytest.mark.parametrize("order", ["ijk", "jik", "kij", "ikj"])
def test_products_in_any_order_of_lanes(order: str) -> None:
    text = tiled("bf16", "bf16", "f32", order=order)
    source = BACKEND.lower(parse_kernel(text), "nvidia", "sm_90", "source").stages["source"]
    assert isinstance(source, str) and "tl.dot(" in source
    assert_same(text, tolerance=1e-4, M=17, N=31, K=33)


@pytest.mark.parametrize(("a", "acc"), [("f64", "f64"), ("i16", "i32"), ("i32", "i32")])
def test_products_without_a_matrix_unit(a: str, acc: str) -> None:
    assert_same(tiled(a, a, acc, k=8), tolerance=1e-12, M=18, N=33, K=21)


def test_masked_off_elements_of_an_accumulator_stay() -> None:
    """A later unmasked sum sees them, so zeros times infinity must not get in."""
    kernel = parse_kernel(
        """kernel k[M, K](a: bf16[M, K], b: bf16[K, 16]) -> (s: f32[]) {
             grid one: 1 {
               buffer acc: f32[16, 16] in reg = 1.0
               tile i: 16, j: 16, k: 16 where i < M, k < K {
                 acc[i, j] += f32(a[i, k]) * f32(b[k, j]) }
               buffer total: f32[] in reg = 0.0
               tile i: 16, j: 16 where j < 1 { total += select(i == 15, acc[i, j], 0.0) }
               s = total
             } }"""
    )
    a = np.ones((3, 5), np.float32)
    b = np.full((5, 16), np.inf, np.float32)
    dtype = kernel.inputs[0].type.numpy
    assert triton(kernel, {"a": a.astype(dtype), "b": b.astype(dtype)}, {})["s"] == 1.0


# --- refusals --------------------------------------------------------------------------------

REFUSED = {
    "power of two": "kernel k(x: f32[24]) -> (y: f32[24]) { tile i: 24 { y[i] = x[i] } }",
    "whole lanes": """kernel k(x: f32[8]) -> (y: f32[8]) {
        grid one: 1 { buffer b: f32[8] in reg = 0.0  for i: 8 { b[i] = x[i] }
                      tile i: 8 { y[i] = b[i] } } }""",
    "atomic": "kernel k[T](x: f32[T]) -> (y: f32[]) { y = 1.0  grid t: T { y *= x[t] } }",
    "bf16": "kernel k[T](x: bf16[T]) -> (y: bf16[]) { y = 1.0  grid t: T { y += x[t] } }",
    "scheduled IR": "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }",
    "not in global": """kernel k[N](x: f32[N]) -> (y: f32[N]) {
        buffer s: f32[] in reg = 2.0  grid i: N { y[i] = x[i] * s } }""",
    "host cannot": """kernel k[N](x: i64[N]) -> (y: i64[N]) {
        if x[0] > 0 { grid i: N { y[i] = x[i] } } }""",
}


@pytest.mark.parametrize("part", REFUSED)
def test_what_it_cannot_express_is_refused(part: str) -> None:
    kernel = parse_kernel(REFUSED[part])
    with pytest.raises(UnsupportedError) as caught:
        BACKEND.lower(kernel, "nvidia", "sm_90", "source")
    assert part in caught.value.message
    assert caught.value.hint and caught.value.node is not None


def test_unknown_archs_and_stages() -> None:
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { grid i: N { y[i] = x[i] } }")
    with pytest.raises(UsageError):
        BACKEND.lower(kernel, "nvidia", "gfx942")
    with pytest.raises(UsageError):
        BACKEND.lower(kernel, "amd", "gfx942", "ptx")


def test_bad_inputs() -> None:
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { grid i: N { y[i] = x[i] } }")
    artifact = BACKEND.lower(kernel, "nvidia", "sm_90", "source")
    executable = BACKEND.load(artifact, interpret=True)
    with pytest.raises(InputDataError):
        executable({})
    with pytest.raises(InputDataError):
        executable({"x": np.zeros(3)})
    given = {"y": np.zeros((3, 2), np.float32)[:, 0]}
    with pytest.raises(InputDataError):
        executable({"x": np.zeros(3, np.float32)}, outputs=given)
    mine = np.zeros(3, np.float32)
    out = executable({"x": np.ones(3, np.float32)}, outputs={"y": mine})
    assert out["y"] is mine and mine.tolist() == [1, 1, 1]


def test_a_crash_of_the_interpreter_is_an_error_and_the_next_run_works() -> None:
    kernel = parse_kernel("kernel k[N](x: i64[N]) -> (y: i64[N]) { grid i: N { y[i] = x[x[i]] } }")
    executable = BACKEND.load(BACKEND.lower(kernel, "nvidia", "sm_90", "source"), interpret=True)
    with pytest.raises(EvaluationError):
        executable({"x": np.full(4, 1 << 50)})
    assert executable({"x": np.array([1, 0])})["y"].tolist() == [0, 1]


# --- compiling -------------------------------------------------------------------------------

ROW = """kernel k[M, N](x: f32[M, N]) -> (s: f32[M], y: f32[M, N]) {
  grid i: M {
    buffer acc: f32[] in reg = 0.0
    for jo: cdiv(N, 256) { tile j: 256 where jo*256 + j < N { acc += exp(x[i, jo*256 + j]) } }
    s[i] = acc
  }
  grid i: M, jo: cdiv(N, 256) {
    tile j: 256 where jo*256 + j < N { y[i, jo*256 + j] = x[i, jo*256 + j] / s[i] }
  } }"""


@pytest.mark.parametrize(
    ("target", "arch"), [("nvidia", "sm_90"), ("amd", "gfx942"), ("amd", "gfx1100")]
)
def test_two_launches_become_one_module(target: str, arch: str) -> None:
    artifact = BACKEND.lower(parse_kernel(ROW), target, arch)
    assert tuple(artifact.stages) == BACKEND.manifest.stages[target]
    binary = artifact.stages[BACKEND.manifest.stages[target][-1]]
    assert isinstance(binary, bytes) and binary[:4] == b"\x7fELF"
    for name in artifact.launch["functions"]:
        assert name.encode() in binary
        assert artifact.report["functions"][name]["shared_bytes"] >= 0


@pytest.mark.parametrize(
    ("target", "arch", "instruction"),
    [("nvidia", "sm_90", "wgmma"), ("nvidia", "sm_80", "mma.sync"), ("amd", "gfx942", "v_mfma")],
)
def test_bf16_products_use_the_matrix_unit(target: str, arch: str, instruction: str) -> None:
    text = tiled("bf16", "bf16", "f32").replace("16", "64").replace("bf64", "bf16")
    kernel = parse_kernel(text)
    stage = "ptx" if target == "nvidia" else "amdgcn"
    assert instruction in str(BACKEND.lower(kernel, target, arch).stages[stage])


def test_products_and_sums_are_not_fused() -> None:
    """Float semantics are IEEE per operation."""
    kernel = parse_kernel(
        """kernel k[N](x: f32[N], z: f32[N]) -> (y: f32[N]) {
             grid i: N { y[i] = x[i] * x[i] + z[i] } }"""
    )
    assert "fma" not in str(BACKEND.lower(kernel, "nvidia", "sm_90").stages["ptx"])
    assert "v_fma" not in str(BACKEND.lower(kernel, "amd", "gfx942").stages["amdgcn"])


def test_fewer_stages_are_taken_where_shared_memory_is_small() -> None:
    """A hint may change speed alone: it must not make a kernel impossible, and it is reported."""
    text = tiled("bf16", "bf16", "f32", k=64).replace("16", "64").replace("bf64", "bf16")
    text = text.replace("32) {", "32) hint(num_stages = 9) {", 1)
    artifact = BACKEND.lower(parse_kernel(text), "amd", "gfx1100")
    ((name, found),) = artifact.report["functions"].items()
    assert found["shared_bytes"] <= SHARED_BYTES["gfx1100"]
    assert found["num_stages"] == artifact.launch["functions"][name]["num_stages"] < 9


def test_no_gpu_is_a_missing_hardware_error() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { grid i: N { y[i] = x[i] } }")
    with pytest.raises(MissingHardwareError):
        BACKEND.load(BACKEND.lower(kernel, "nvidia", "sm_90", "source"))


def test_importing_the_backend_loads_no_triton() -> None:
    code = "import sys, kir.backends.triton; assert not {'triton', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_expressions_of_the_host_match_the_op_table() -> None:
    from kir.ops import OPS

    for name in ("floordiv", "mod", "cdiv", "tdiv", "trem"):
        for a in (-7, -6, 0, 5, 7):
            for b in (-3, 0, 2, 3):
                assert evaluate([name, "a", b], {"a": a}) == int(
                    OPS[name].numpy(np.int64(a), np.int64(b))
                )


def test_dims_are_inferred_from_inputs() -> None:
    kernel = parse_kernel(ROW)
    assert infer_dims(kernel, {"x": (2, 3)}) == {"M": 2, "N": 3}
