"""The CuTe DSL road: what it compiles to, what that PTX computes, and what it refuses.

The PTX runs in the emulator of `kir.backends.cute.ptx`, so these tests show what the compiled
text means; no GPU takes part.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kir.backend import Artifact
from kir.backends.cute import BACKEND
from kir.backends.cute.generate import generate
from kir.derivation import replay
from kir.errors import (
    CompileError,
    EvaluationError,
    MissingHardwareError,
    UnsupportedError,
    UsageError,
)
from kir.inputs import random_inputs
from kir.interpret import oracle, run
from kir.ir import Kernel
from kir.syntax import parse, parse_kernel

pytestmark = pytest.mark.cute
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
needs_dsl = pytest.mark.skipif(
    importlib.util.find_spec("cutlass") is None, reason="nvidia-cutlass-dsl is not installed"
)
ARCHS = ("sm_80", "sm_90a", "sm_100a")

SMALL_MATMUL = """
kernel product[M, N, K](a: {t}[M, K], b: {t}[K, N]) -> (c: {t}[M, N]) {{
  grid io: cdiv(M, 32), jo: cdiv(N, 16) hint(num_warps = {warps}) {{
    buffer acc: f32[32, 16] in reg = 0
    for ko: cdiv(K, 16) {{
      tile i: 32, j: 16, k: 16 where io*32 + i < M, jo*16 + j < N, ko*16 + k < K {{
        acc[i, j] += f32(a[io*32 + i, ko*16 + k]) * f32(b[ko*16 + k, jo*16 + j])
      }}
    }}
    tile i: 32, j: 16 where io*32 + i < M, jo*16 + j < N {{
      c[io*32 + i, jo*16 + j] = {t}(acc[i, j])
    }}
  }}
}}
"""
KEYWORDS = """
kernel def[class](lambda: f32[class], tid: f32[class], cute: f32[class]) -> (import: f32[class]) {
  grid pid: cdiv(class, 64) {
    tile _max: 64 where pid*64 + _max < class {
      import[pid*64 + _max] = lambda[pid*64 + _max] - tid[pid*64 + _max] * cute[pid*64 + _max]
    }
  }
}
"""


def example(name: str) -> Kernel:
    (kernel,) = parse((EXAMPLES / f"{name}.kir").read_text()).kernels().values()
    return kernel


def scheduled(kernel: Kernel) -> Kernel:
    steps = BACKEND.default_schedule(kernel, "nvidia", "sm_90a")
    return replay(kernel, steps)[-1][1]


@cache
def _compiled(kernel: Kernel, arch: str) -> Artifact:
    return BACKEND.lower(kernel, "nvidia", arch)


def compiled(kernel: Kernel, arch: str = "sm_90a") -> Artifact:
    return _compiled(kernel, arch)


def ptx_of(artifact: Artifact) -> str:
    text = artifact.stages["ptx"]
    assert isinstance(text, str)
    return text


def emulate(
    kernel: Kernel, inputs: Mapping[str, Any], dims: Mapping[str, int] | None = None
) -> dict[str, Any]:
    return BACKEND.load(compiled(kernel), interpret=True)(inputs, dims)


def agrees(spec: Kernel, kernel: Kernel, dims: Mapping[str, int], seed: int = 0) -> None:
    """The emulated PTX is within the oracle's bounds, with room for the approximate functions."""
    inputs = random_inputs(spec, dims, seed)
    found = emulate(kernel, inputs, dims)
    for name, expected in oracle(spec, inputs, dims).items():
        assert found[name].shape == expected.value.shape
        wrong = np.abs(found[name].astype(np.float64) - expected.value) > 4 * expected.bound + 1e-30
        assert not wrong.any(), f"{name} at {np.argwhere(wrong)[:5].tolist()}"


# --- what it compiles to ---------------------------------------------------------------------


@needs_dsl
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["gelu", "softmax", "matmul_bf16"])
def test_compiles_for_the_arch_asked_for(name: str, arch: str) -> None:
    artifact = compiled(scheduled(example(name)), arch)
    assert re.search(rf"^\.target {arch}$", ptx_of(artifact), re.M)
    cubin = artifact.stages["cubin"]
    assert isinstance(cubin, bytes) and cubin[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", cubin, 18)[0] == 190  # EM_CUDA
    entry = artifact.launch["kernels"][0]["entry"]
    assert entry.encode() in cubin
    flags = struct.unpack_from("<I", cubin, 48)[0]
    number = int(re.sub(r"\D", "", arch))
    assert number in (flags & 0xFF, flags >> 8 & 0xFF), f"ELF flags {flags:#x}"


@needs_dsl
def test_rows_reduce_by_shuffles_and_stay_in_f32() -> None:
    text = ptx_of(compiled(scheduled(example("softmax"))))
    assert text.count("shfl.sync.bfly") == 2 * 5  # a maximum and a sum, each over 32 lanes
    assert "bar.sync" in text
    assert "f64" not in text


@needs_dsl
def test_matmul_uses_the_tensor_cores() -> None:
    artifact = compiled(scheduled(example("matmul_bf16")))
    found = re.findall(r"mma\.sync\.\S+", ptx_of(artifact))
    assert set(found) == {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"}
    # 128 x 128 x 64 over 8 warps is 64 instructions for each
    assert len(found) == (128 // 16) * (128 // 8) * (64 // 16) // 8
    assert artifact.report["tensor_core_instructions"] == len(found)


@needs_dsl
def test_a_product_and_a_sum_are_not_contracted() -> None:
    kernel = parse_kernel("""
    kernel f[N](a: f32[N], b: f32[N], c: f32[N]) -> (y: f32[N]) {
      grid o: cdiv(N, 128) {
        tile i: 128 where o*128 + i < N {
          y[o*128 + i] = a[o*128 + i] * b[o*128 + i] - c[o*128 + i]
        }
      }
    }""")
    assert "fma" not in ptx_of(compiled(kernel))
    x = np.float32(1 + 2**-12)  # x*x needs more than 24 bits: an fma would give another answer
    inputs = {n: np.full(5, v, np.float32) for n, v in zip("abc", (x, x, x * x), strict=True)}
    assert (emulate(kernel, inputs)["y"] == 0).all()


@needs_dsl
def test_the_description_is_plain_json_and_complete() -> None:
    launch = json.loads(json.dumps(dict(compiled(scheduled(example("matmul_bf16"))).launch)))
    (kernel,) = launch["kernels"]
    assert kernel["grid"] == [["cdiv", "M", 128], ["cdiv", "N", 128]]
    assert kernel["block"] == [256, 1, 1]
    assert kernel["shared"] == 2 * 128 * (64 + 8) * 2
    tensors, dims = ("a", "b", "c"), ("M", "N", "K")
    assert kernel["args"] == [*({"tensor": t} for t in tensors), *({"dim": d} for d in dims)]


def test_the_source_is_deterministic_and_parses() -> None:
    kernel = scheduled(example("layer_norm"))
    first, second = generate(kernel).source, generate(kernel).source
    assert first == second
    ast.parse(first)


def test_python_keywords_and_the_generators_own_names_are_mangled() -> None:
    tree = ast.parse(generate(parse_kernel(KEYWORDS)).source)
    (function,) = (
        f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("def_")
        and f.name != "def_"
    )  # fmt: skip
    assert [a.arg for a in function.args.args][-1] == "class_"
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)
              and isinstance(n.ctx, ast.Store)}  # fmt: skip
    assert {"lambda_", "tid_", "cute_", "import_"} <= stored


# --- what the PTX computes -------------------------------------------------------------------


@needs_dsl
@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("add", {"M": 3, "N": 1025}),
        ("gelu", {"M": 2, "N": 7}),
        ("softmax", {"M": 2, "N": 1500}),
        ("softmax", {"M": 1, "N": 1}),
        ("log_softmax", {"M": 2, "N": 130}),
        ("layer_norm", {"M": 2, "N": 77}),
        ("rms_norm", {"M": 2, "N": 1024}),
        ("argmax", {"M": 3, "N": 70}),
        ("cross_entropy", {"N": 5, "C": 9}),
        ("matmul", {"M": 33, "N": 34, "K": 17}),
    ],
    ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v.values())),
)
def test_examples_compute_what_the_oracle_says(name: str, dims: dict[str, int]) -> None:
    agrees(example(name), scheduled(example(name)), dims)


@needs_dsl
def test_empty_tensors_launch_nothing() -> None:
    kernel = scheduled(example("softmax"))
    assert emulate(kernel, {"x": np.zeros((0, 4), np.float32)})["y"].shape == (0, 4)
    assert emulate(kernel, {"x": np.zeros((3, 0), np.float32)})["y"].shape == (3, 0)


@needs_dsl
@pytest.mark.parametrize(("t", "warps"), [("bf16", 1), ("bf16", 4), ("f16", 2)])
def test_products_on_tensor_cores(t: str, warps: int) -> None:
    kernel = parse_kernel(SMALL_MATMUL.format(t=t, warps=warps))
    for dims in ({"M": 32, "N": 16, "K": 16}, {"M": 37, "N": 19, "K": 21}):
        inputs = random_inputs(kernel, dims, 1)
        a, b = (inputs[n].astype(np.float64) for n in "ab")
        found = emulate(kernel, inputs, dims)["c"].astype(np.float64)
        slack = 2.0**-7 * np.abs(a @ b) + 2.0**-20 * (np.abs(a) @ np.abs(b))
        assert (np.abs(found - a @ b) <= slack).all()
    assert "mma.sync" in ptx_of(compiled(kernel))


@needs_dsl
def test_matmul_of_the_default_schedule() -> None:
    agrees(example("matmul_bf16"), scheduled(example("matmul_bf16")), {"M": 130, "N": 20, "K": 70})


@needs_dsl
def test_a_product_masks_what_lies_outside() -> None:
    """Infinities beyond the depth's end must not reach the sums as 0 * inf."""
    kernel = parse_kernel(
        SMALL_MATMUL.format(t="bf16", warps=1).replace("ko: cdiv(K, 16)", "ko: 1")
    )
    inputs = random_inputs(kernel, {"M": 8, "N": 8, "K": 16}, 2)
    shorter = parse_kernel(
        SMALL_MATMUL.format(t="bf16", warps=1)
        .replace("ko: cdiv(K, 16)", "ko: 1")
        .replace("ko*16 + k < K", "ko*16 + k < K, k < 5")
    )
    inputs["a"][:, 5:] = np.inf
    found = emulate(shorter, inputs)["c"]
    a, b = (inputs[n].astype(np.float64) for n in "ab")
    expected = a[:, :5] @ b[:5]
    assert np.allclose(found.astype(np.float64), expected, rtol=2**-7, atol=2**-7)


OPERATORS = {
    "f32": ["a + b", "a - b", "a * b", "a / b", "-a", "max(a, b)", "min(a, b)", "abs(a)",
            "sign(a)", "floor(a)", "ceil(a)", "round(a)", "trunc(a)", "select(a < b, a, b)",
            "select(isnan(a) or isinf(b), b, a)", "recip(a)", "fma(a, b, a)",
            "select(not (a == b), a, b)", "f32(i32(a))", "f32(bf16(a))"],
    "bf16": ["a + b", "a * b", "a / b", "max(a, b)", "-a", "select(a >= b, a, b)"],
    "f16": ["a - b", "a * b", "min(a, b)", "abs(a)"],
    "i32": ["a + b", "a - b", "a * b", "a // b", "a % b", "tdiv(a, b)", "trem(a, b)",
            "cdiv(a, b)", "max(a, b)", "abs(a)", "sign(a)", "a & b", "a | b", "a ^ b", "~a"],
    "i64": ["a // b", "a % b", "a // 7", "a % 7", "cdiv(a, 7)", "min(a, b)", "i64(f32(a))"],
}  # fmt: skip
FUNCTIONS = ["exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "erf",
             "sigmoid", "sinh", "cosh", "atan", "asin", "acos"]  # fmt: skip


def pointwise(t: str, expressions: list[str]) -> Kernel:
    outputs = ", ".join(f"y{n}: {t}[N]" for n in range(len(expressions)))
    lines = "\n".join(
        f"y{n}[i] = " + re.sub(r"\b([ab])\b", r"\1[i]", e) for n, e in enumerate(expressions)
    )
    return parse_kernel(
        f"kernel f[N](a: {t}[N], b: {t}[N]) -> ({outputs}) {{ for z: 1 {{ tile i: 64 where i < N "
        f"{{ {lines} }} }} }}"
    )


@needs_dsl
@pytest.mark.parametrize("t", OPERATORS)
def test_operators_give_the_interpreters_bits(t: str) -> None:
    kernel = pointwise(t, OPERATORS[t])
    rng = np.random.default_rng(3)
    n = 64
    if t.startswith("i"):
        pool = np.array([0, 1, -1, 2, -3, 7, -8, 100, 2**31 - 1, -(2**31)])
        a, b = (rng.choice(pool, n) for _ in range(2))
        b = np.where((a == -(2**31)) & (b == -1), 5, b)  # the quotient has no value in i32
    else:
        pool = np.array([0.0, -0.0, 1, -2.5, 0.3, 7.5, 1e-3, -3e4, np.inf, -np.inf, np.nan])
        a, b = (rng.choice(pool, n) for _ in range(2))
    dtype = kernel.inputs[0].type.numpy
    inputs = {"a": a.astype(dtype), "b": b.astype(dtype)}
    with np.errstate(all="ignore"):
        expected, found = run(kernel, inputs), emulate(kernel, inputs)
    for k, e in enumerate(OPERATORS[t]):
        one, two = expected[f"y{k}"], found[f"y{k}"]
        wrong = ~((one == two) | ((one != one) & (two != two)))
        assert not wrong.any(), f"`{e}` on {a[wrong][0]}, {b[wrong][0]}: {two[wrong][0]}"


@needs_dsl
def test_functions_are_close() -> None:
    kernel = pointwise("f32", [f"{name}(a)" for name in FUNCTIONS] + ["pow(abs(a), b)"])
    rng = np.random.default_rng(4)
    inputs = {n: rng.uniform(-1, 1, 64).astype(np.float32) for n in "ab"}
    with np.errstate(all="ignore"):
        expected, found = run(kernel, inputs), emulate(kernel, inputs)
    for k, e in enumerate([*FUNCTIONS, "pow"]):
        same = np.isclose(found[f"y{k}"], expected[f"y{k}"], rtol=2e-6, atol=1e-7, equal_nan=True)
        assert same.all(), f"{e} of {inputs['a'][~same][0]}"


@needs_dsl
def test_shared_memory_padding_and_guards() -> None:
    """A row reversed through `local` memory, a padded read, and a conditional store."""
    kernel = parse_kernel("""
    kernel f[M](x: f32[M, 100]) -> (y: f32[M, 100], z: f32[M, 100]) {
      grid r: M {
        buffer row: f32[100] in local = 0
        tile i: 100 { row[i] = x[r, i] * 2.0 }
        tile i: 100 {
          y[r, 99 - i] = row[i]
          z[r, i] = x[r, i - 3] else -1.0
          if i % 2 == 1 { z[r, i] = row[99 - i] }
        }
      }
    }""")
    x = np.random.default_rng(5).standard_normal((3, 100)).astype(np.float32)
    found, expected = emulate(kernel, {"x": x}), run(kernel, {"x": x})
    assert (found["y"] == expected["y"]).all() and (found["z"] == expected["z"]).all()
    assert "bar.sync" in ptx_of(compiled(kernel))


@needs_dsl
@pytest.mark.parametrize("t", ["f32", "i32", "i64", "bf16"])
def test_reductions_over_a_cta(t: str) -> None:
    """Three operators from a start value, by two warps, with lanes left over."""
    kernel = parse_kernel(f"""
    kernel f[M, N](x: {t}[M, N]) -> (y: {t}[M, 3]) {{
      grid i: M hint(num_warps = 2) {{
        buffer s: {t} in reg = 1
        buffer most: {t} in reg = -5
        buffer least: {t} in reg = 5
        for jo: cdiv(N, 96) {{
          tile j: 96 where jo*96 + j < N {{
            s += x[i, jo*96 + j]
            most max= x[i, jo*96 + j]
            least min= x[i, jo*96 + j]
          }}
        }}
        y[i, 0] = s
        y[i, 1] = most
        y[i, 2] = least
      }}
    }}""")
    x = np.random.default_rng(6).integers(-9, 9, (3, 130)).astype(kernel.inputs[0].type.numpy)
    x[:, 10:128] = 0  # few terms, so that sums in bf16 are exact in any order
    assert (emulate(kernel, {"x": x})["y"] == run(kernel, {"x": x})["y"]).all()


CONSTRUCTS = {
    "one_program": """
    kernel f[N](x: f32[N]) -> (y: f32) {
      buffer s: f32 in reg = 0
      for o: cdiv(N, 128) { tile i: 128 where o*128 + i < N { s += x[o*128 + i] } }
      y = s
    }""",
    "bools": """
    kernel f[N](x: bool[N], z: f32[N]) -> (y: bool[N], some: bool) {
      buffer a: bool in reg = false
      tile i: 100 where i < N {
        y[i] = x[i] and z[i] > 0.0
        a or= x[i]
      }
      some = a
    }""",
    "loops_in_lanes": """
    kernel f[N](x: f32[N, 7]) -> (y: f32[N]) {
      grid o: cdiv(N, 64) {
        tile i: 64 where o*64 + i < N {
          buffer s: f32 in reg = 0
          for k: 7 { s += x[o*64 + i, k] }
          unroll k: 7 { s = max(s, x[o*64 + i, k]) }
          y[o*64 + i] = s
        }
      }
    }""",
    "temporary": """
    kernel f[N](x: f32[N]) -> (y: f32[N]) {
      buffer t: f32[N] in global = 1
      grid o: N { t[o] = t[o] + x[o] }
      grid o2: N { y[o2] = t[o2] * 2.0 }
    }""",
    "fragments_with_neighbours": """
    kernel f(a: bf16[32, 16], b: bf16[16, 16], s: f32[16]) -> (c: f32[32, 16]) {
      grid o: 1 hint(num_warps = 1) {
        buffer acc: f32[32, 16] in reg = 0
        buffer two: f32[32, 16] in reg
        tile j: 16, i: 32, k: 16 { acc[i, j] += f32(b[k, j]) * f32(a[i, k]) }
        tile i: 32, j: 16 { two[i, j] = acc[i, j] * s[j] }
        tile j: 16, i: 32 { c[i, j] = two[i, j] + acc[i, j] }
      }
    }""",
    "transposed_fused_product": """
    kernel f[K](a: f16[K, 32], b: f16[16, K]) -> (c: f32[16, 32]) {
      grid o: 1 hint(num_warps = 2) {
        buffer acc: f32[32, 16] in reg = 1
        for ko: cdiv(K, 32) {
          tile i: 32, j: 16, k: 32 where ko*32 + k < K {
            acc[i, j] = fma(f32(a[ko*32 + k, i]), f32(b[j, ko*32 + k]), acc[i, j])
          }
        }
        tile i: 32, j: 16 { c[j, i] = acc[i, j] }
      }
    }""",
    "guarded_grid": """
    kernel f[M, N](x: f32[M, N]) -> (y: f32[N, M]) {
      grid i: M, jo: cdiv(N, 32) where i % 2 == 0 or i % 2 == 1 {
        tile j: 32 where jo*32 + j < N { y[jo*32 + j, i] = x[i, jo*32 + j] }
      }
    }""",
    "sums_in_shared_memory": """
    kernel f(x: f32[20, 50]) -> (y: f32[20]) {
      grid o: 1 {
        buffer s: f32[20] in local = 0
        tile i: 20, j: 50 { s[i] += x[i, j] }
        tile i: 20 { y[i] = s[i] }
      }
    }""",
}


@needs_dsl
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs_mean_what_the_interpreter_says(name: str) -> None:
    kernel = parse_kernel(CONSTRUCTS[name])
    dims = {d.name: 45 for d in kernel.dims}
    inputs = random_inputs(kernel, dims, 1)
    found, expected = emulate(kernel, inputs, dims), run(kernel, inputs, dims)
    for output, value in expected.items():
        assert np.allclose(found[output], value, rtol=1e-5, atol=1e-5), output
    assert ("mma.sync" in ptx_of(compiled(kernel))) == ("f32(b[" in CONSTRUCTS[name])


# --- what it refuses -------------------------------------------------------------------------


def refused(text: str) -> str:
    with pytest.raises(UnsupportedError) as caught:
        generate(parse_kernel(text))
    assert caught.value.node is not None
    return caught.value.message


def test_refusals_name_the_construct() -> None:
    at = "[o*64 + i]"

    def text(body: str, t: str = "f32") -> str:
        grid = f"grid o: cdiv(N, 64) {{ tile i: 64 where o*64 + i < N {{ {body} }} }}"
        return f"kernel f[N](x: {t}[N]) -> (y: {t}[N]) {{ {grid} }}"

    assert "no u8" in refused(text(f"y{at} = x{at}", "u8"))
    assert "no f64" in refused(text(f"y{at} = f32(f64(x{at}))"))
    assert "atomics" in refused(text(f"y{at} += x{at}"))
    assert "round twice" in refused(text(f"y{at} = x{at} + bf16(o)", "bf16"))
    assert "bitcast" in refused(text(f"y{at} = bitcast[f32](bitcast[i32](x{at}))"))
    assert "definitions" in refused("kernel f[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    assert "loop on the host" in refused(
        "kernel f[N](x: f32[N]) -> (y: f32[N]) { for t: N { grid i: N { y[i] = x[i] } } }"
    )


def test_a_product_must_fit_the_warps() -> None:
    text = SMALL_MATMUL.format(t="bf16", warps=32)
    assert "cannot be shared by 32 warps" in refused(text)


def test_a_product_read_without_its_mask_is_refused() -> None:
    text = SMALL_MATMUL.format(t="bf16", warps=1).replace(
        "tile i: 32, j: 16 where io*32 + i < M, jo*16 + j < N {",
        "tile i: 32, j: 16 where io*32 + i < M {",
    )
    assert "without the mask" in refused(text)


def test_register_buffers_must_follow_the_lanes() -> None:
    text = """
    kernel f(x: f32[64]) -> (y: f32[64]) {
      buffer r: f32[64] in reg
      tile i: 64 { r[i] = x[i] }
      tile i: 64 { y[i] = r[63 - i] }
    }"""
    assert "bare" in refused(text)


def test_wrong_use() -> None:
    kernel = parse_kernel(KEYWORDS)
    with pytest.raises(UsageError, match="unknown arch"):
        BACKEND.lower(kernel, "nvidia", "sm_52")
    with pytest.raises(UsageError, match="unknown stage"):
        BACKEND.lower(kernel, "nvidia", "sm_90a", "hsaco")
    source = BACKEND.lower(kernel, "nvidia", "sm_90a", "source")
    with pytest.raises(UsageError, match="no PTX"):
        BACKEND.load(source)


@needs_dsl
def test_loading_without_a_gpu_says_so() -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(MissingHardwareError, match="no NVIDIA"):
        BACKEND.load(compiled(parse_kernel(KEYWORDS)))


@needs_dsl
def test_a_failing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    import kir.backends.cute.backend as backend

    made = generate(parse_kernel(KEYWORDS))
    broken = replace(made, source=made.source.replace("cute.arch.thread_idx()", "cute.nothing()"))
    monkeypatch.setattr(backend, "generate", lambda kernel: broken)
    with pytest.raises(CompileError, match="nothing"):
        BACKEND.lower(parse_kernel(KEYWORDS), "nvidia", "sm_90a")


# --- the emulator catches what it is for -----------------------------------------------------


def broken(artifact: Artifact, old: str, new: str) -> Artifact:
    from dataclasses import replace

    text = ptx_of(artifact)
    assert re.search(old, text), "nothing to break"
    return replace(artifact, stages={**artifact.stages, "ptx": re.sub(old, new, text, count=1)})


@needs_dsl
def test_a_missing_barrier_is_a_race() -> None:
    artifact = broken(compiled(parse_kernel(SMALL_MATMUL.format(t="bf16", warps=2))),
                      r"(?s)(bar\.sync \t0;.*?)bar\.sync \t0;", r"\1")  # fmt: skip
    inputs = random_inputs(artifact.kernel, {"M": 32, "N": 16, "K": 16}, 0)
    with pytest.raises(EvaluationError, match="race"):
        BACKEND.load(artifact, interpret=True)(inputs)


@needs_dsl
def test_a_wrong_mask_is_out_of_bounds() -> None:
    artifact = broken(compiled(scheduled(example("add"))), r"setp\.ge\.s64", "setp.gt.s64")
    inputs = {n: np.ones((1, 100), np.float32) for n in "ab"}
    with pytest.raises(EvaluationError, match="outside every tensor"):
        BACKEND.load(artifact, interpret=True)(inputs)


@needs_dsl
def test_a_swapped_fragment_is_a_wrong_product() -> None:
    kernel = parse_kernel(SMALL_MATMUL.format(t="bf16", warps=1))
    artifact = broken(compiled(kernel), r"(mma\.sync[^{]*\{[^}]*\},\s*\{\s*%r\d+), (%r\d+)",
                      r"\1, %r1")  # fmt: skip
    inputs = random_inputs(kernel, {"M": 32, "N": 16, "K": 16}, 0)
    a, b = (inputs[n].astype(np.float64) for n in "ab")
    try:
        found = BACKEND.load(artifact, interpret=True)(inputs)["c"].astype(np.float64)
    except EvaluationError:
        return
    assert not np.allclose(found, a @ b, rtol=0.02, atol=0.02)
