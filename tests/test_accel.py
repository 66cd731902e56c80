"""The accelerator: kernels on the simulator and under QEMU against the interpreter, and what the
run-time interface refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kir.backend import Artifact
from kir.backends.accel import BACKEND, elf, simulator, toolchain
from kir.backends.accel.backend import Simulation
from kir.backends.accel.engines import Dma, Mma, Wait, with_engines
from kir.backends.accel.machine import MACHINES, find
from kir.backends.accel.program import program
from kir.derivation import replay
from kir.dtypes import DTYPES, DType
from kir.errors import (
    CompileError,
    EvaluationError,
    InputDataError,
    KirError,
    MissingHardwareError,
    UnsupportedError,
    UsageError,
)
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Kernel, walk
from kir.specialise import specialise
from kir.syntax import format_kernel, parse_kernel

Array = np.ndarray[Any, Any]
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
needs_qemu = pytest.mark.skipif(not simulator.qemu_available(), reason="no qemu-riscv64")


def spec(name: str) -> Kernel:
    return parse_kernel((EXAMPLES / f"{name}.kir").read_text(encoding="utf-8"))


def scheduled(kernel: Kernel, arch: str = "reference") -> Kernel:
    steps = BACKEND.default_schedule(kernel, "accel", arch)
    return replay(kernel, steps)[-1][1]


def loaded(kernel: Kernel, arch: str = "reference") -> Simulation:
    return Simulation(BACKEND.lower(kernel, "accel", arch))


def lowered(text: str, arch: str = "reference") -> Artifact:
    return BACKEND.lower(parse_kernel(text), "accel", arch)


def same(got: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        np.testing.assert_allclose(
            got[name].astype(np.float64), array.astype(np.float64), tolerance, tolerance
        )


def machine_file(tmp_path: Path, **changes: str) -> str:
    """The reference machine with new values of `section__key`, in the section's first table."""
    lines = (MACHINES / "reference.toml").read_text(encoding="utf-8").splitlines()
    for change, value in changes.items():
        section, _, key = change.partition("__")
        start = next(
            k for k, x in enumerate(lines) if x.startswith((f"[{section}]", f"[[{section}"))
        )
        at = next(k for k in range(start, len(lines)) if lines[k].startswith(f"{key} = "))
        lines[at] = f"{key} = {value}"
    path = tmp_path / "machine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


# --- the three kernels, and more, with odd sizes ---------------------------------------------

KERNELS: dict[str, tuple[tuple[dict[str, int], ...], float]] = {
    "gelu": (({"M": 3, "N": 1025}, {"M": 0, "N": 7}, {"M": 1, "N": 1}), 3e-6),
    "softmax": (({"M": 5, "N": 1031}, {"M": 65, "N": 1}, {"M": 2, "N": 0}), 3e-6),
    "matmul_bf16": (
        ({"M": 33, "N": 65, "K": 31}, {"M": 64, "N": 32, "K": 96}, {"M": 3, "N": 2, "K": 0}),
        1e-2,
    ),
    "matmul": (({"M": 17, "N": 65, "K": 33},), 1e-4),
    "matmul_int8": (({"M": 33, "N": 31, "K": 70},), 1e-6),
    "layer_norm": (({"M": 3, "N": 1030},), 1e-4),
}
ENGINE = ("matmul_bf16", "matmul_int8")
REASSOCIATED = ("softmax", "layer_norm")
"""Here a sum over lanes has whatever order suits the core."""


@pytest.fixture(scope="module")
def simulations() -> dict[str, Simulation]:
    return {}


def simulation(cache: dict[str, Simulation], name: str) -> Simulation:
    if name not in cache:
        cache[name] = loaded(scheduled(spec(name)))
    return cache[name]


@pytest.mark.parametrize("name", KERNELS)
def test_the_simulator_agrees_with_the_interpreter(
    name: str, simulations: dict[str, Simulation]
) -> None:
    kernel, made = spec(name), simulation(simulations, name)
    sizes, tolerance = KERNELS[name]
    for dims in sizes:
        inputs = random_inputs(kernel, dims, seed=1)
        before = {n: a.copy() for n, a in inputs.items()}
        got = made(inputs, dims)
        same(got, run(kernel, inputs, dims), tolerance)
        for n, a in inputs.items():
            assert a.tobytes() == before[n].tobytes()
    assert made.counters is not None


@pytest.mark.qemu
@needs_qemu
@pytest.mark.parametrize("name", KERNELS)
def test_qemu_agrees_with_the_simulator(name: str, simulations: dict[str, Simulation]) -> None:
    """Bit for bit, sums over lanes aside: both run one LLVM IR, whose operations are IEEE's."""
    kernel, made = spec(name), simulation(simulations, name)
    dims = KERNELS[name][0][0]
    inputs = random_inputs(kernel, dims, seed=2)
    got = made.under_qemu(inputs, dims)
    counted = made.counters
    expected = made(inputs, dims)
    assert counted == made.counters
    for n, a in expected.items():
        assert name in REASSOCIATED or got[n].tobytes() == a.tobytes()
    same(got, run(kernel, inputs, dims), KERNELS[name][1])


@pytest.mark.parametrize("name", ["gelu", "softmax", "matmul", "matmul_bf16"])
def test_assembly_uses_vectors_and_engines(name: str, simulations: dict[str, Simulation]) -> None:
    stages = simulation(simulations, name).artifact.stages
    asm, obj = stages["asm"], stages["obj"]
    assert isinstance(asm, str) and isinstance(obj, bytes)
    assert "vsetvli" in asm and "vle32.v" in asm
    assert ("kir_matrix_mma" in asm) == (name in ENGINE)
    assert "kir_dma_load" in asm
    assert set(elf.read_object(obj).undefined()) <= toolchain.RUN_TIME_SYMBOLS


def test_staging_moves_each_element_once(simulations: dict[str, Simulation]) -> None:
    made = simulation(simulations, "gelu")
    made(random_inputs(spec("gelu"), {"M": 3, "N": 1025}))
    assert made.counters == simulator.Counters(3 * 1025 * 4, 6, 0, 0)


def test_the_engine_does_all_products(simulations: dict[str, Simulation]) -> None:
    made = simulation(simulations, "matmul_bf16")
    made(random_inputs(spec("matmul_bf16"), {"M": 33, "N": 65, "K": 31}))
    assert made.counters is not None
    assert made.counters.mma_macs == 33 * 65 * 31
    assert made.counters.mma_calls == 2 * 3 * 1


def test_the_report(simulations: dict[str, Simulation]) -> None:
    report = simulation(simulations, "matmul_bf16").artifact.report
    assert report["matrix_products"] == 1 and report["core_products"] == 0
    assert report["dma_copies"] == 2 and report["core_copies"] == 0
    assert report["scratchpad_bytes"] == 32 * 32 * (4 + 2 + 2)


def test_specialised_dims_and_given_outputs(simulations: dict[str, Simulation]) -> None:
    kernel = specialise(spec("gelu"), {"M": 2, "N": 100})
    made = loaded(scheduled(kernel))
    inputs = random_inputs(kernel, {})
    out = {"y": np.full((2, 100), 7, np.float32)}
    got = made(inputs, {"M": 2, "N": 100}, out)
    assert got["y"] is out["y"]
    same(out, run(kernel, inputs), 3e-6)


# --- scheduled by hand: what becomes of copies and products ----------------------------------


def engines(text: str) -> list[Dma | Mma]:
    kernel, _ = with_engines(parse_kernel(text), find("reference"))
    return [n for n in walk(kernel) if isinstance(n, Dma | Mma)]


PADDED = """
kernel windows[H, W](x: f16[H, W]) -> (y: f16[H, W]) {
  grid i: cdiv(H, 4), j: cdiv(W, 8) {
    buffer t: f16[6, 10] in local
    for r: 6, s: 10 { t[r, s] = x[i*4 + r - 1, j*8 + s - 1] else 2.0 }
    buffer u: f16[4, 8] in local
    tile r: 4, s: 8 { u[r, s] = t[r, s] + t[r + 2, s + 2] }
    for r: 4, s: 8 where i*4 + r < H, j*8 + s < W { y[i*4 + r, j*8 + s] = u[r, s] }
  }
}"""


def test_padded_copies_fill_all_sides() -> None:
    kernel = parse_kernel(PADDED)
    made = loaded(kernel)
    assert made.artifact.report["dma_copies"] == 2
    for shape in ((4, 8), (5, 9), (1, 1), (13, 3), (0, 4)):
        x = np.arange(shape[0] * shape[1], dtype=np.float16).reshape(shape)
        same(made({"x": x}), run(kernel, {"x": x}), 0)


def test_one_wait_serves_copies_in_a_row() -> None:
    kernel, _ = with_engines(
        parse_kernel("""
kernel k[N](x: f32[N, 8], y: f32[N, 8]) -> (z: f32[N, 8]) {
  grid i: N {
    buffer a: f32[8] in local
    buffer b: f32[8] in local
    for j: 8 { a[j] = x[i, j] }
    for j: 8 { b[j] = y[i, j] }
    for j: 8 { z[i, j] = a[j] + b[j] }
  }
}"""),
        find("reference"),
    )
    kinds = [type(n) for n in walk(kernel) if isinstance(n, Dma | Wait)]
    assert kinds == [Dma, Dma, Wait]


def test_a_copy_whose_order_counts_is_left_to_the_core() -> None:
    """`t[r + o]` is stored from several (r, o); the last of them in the loops' order stays."""
    kernel = parse_kernel("""
kernel k(x: f32[4, 3, 8]) -> (y: f32[6, 8]) {
  grid g: 1 {
    buffer t: f32[6, 8] in local
    for o: 3, r: 4, c: 8 { t[r + o, c] = x[r, o, c] }
    for r: 6, c: 8 { y[r, c] = t[r, c] }
  }
}""")
    made = loaded(kernel)
    x = np.arange(96, dtype=np.float32).reshape(4, 3, 8)
    same(made({"x": x}), run(kernel, {"x": x}), 0)
    turned = parse_kernel(format_kernel(kernel).replace("for o: 3, r: 4, c", "for r: 4, o: 3, c"))
    same(loaded(turned)({"x": x}), run(turned, {"x": x}), 0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_is_moved_and_computed(dtype: DType) -> None:
    f = "x_l[i] and y_l[i]" if dtype.is_bool else "x_l[i] + y_l[i]"
    kernel = parse_kernel(f"""
kernel k[N](x: {dtype}[N], y: {dtype}[N]) -> (z: {dtype}[N]) {{
  grid io: cdiv(N, 32) {{
    buffer x_l: {dtype}[32] in local
    buffer y_l: {dtype}[32] in local
    buffer z_l: {dtype}[32] in local
    for i: 32 where io*32 + i < N {{ x_l[i] = x[io*32 + i] }}
    for i: 32 where io*32 + i < N {{ y_l[i] = y[io*32 + i] }}
    tile i: 32 where io*32 + i < N {{ z_l[i] = {f} }}
    for i: 32 where io*32 + i < N {{ z[io*32 + i] = z_l[i] }}
  }}
}}""")
    made = loaded(kernel)
    assert made.artifact.report["dma_copies"] == 3
    inputs = random_inputs(kernel, {"N": 77})
    assert made(inputs)["z"].tobytes() == run(kernel, inputs)["z"].tobytes()


def test_sin_and_cos_of_large_values_need_no_library() -> None:
    kernel = parse_kernel("""
kernel waves[N](x: f32[N]) -> (s: f32[N], c: f32[N]) {
  grid io: cdiv(N, 16) {
    tile i: 16 where io*16 + i < N {
      s[io*16 + i] = sin(x[io*16 + i])
      c[io*16 + i] = cos(x[io*16 + i])
    }
  }
}""")
    rng = np.random.default_rng(0)
    exponents = rng.uniform(-3, 127.9, 2000)
    x = (np.exp2(exponents) * rng.choice([-1, 1], 2000)).astype(np.float32)
    x[:3] = np.inf, -np.inf, np.nan
    got = loaded(kernel)({"x": x})
    assert np.isnan(got["s"][:3]).all() and np.isnan(got["c"][:3]).all()
    exact = x[3:].astype(np.float64)
    np.testing.assert_allclose(got["s"][3:], np.sin(exact), 3e-7, 3e-8)
    np.testing.assert_allclose(got["c"][3:], np.cos(exact), 3e-7, 3e-8)


def test_a_transposed_copy_is_left_to_the_core() -> None:
    text = """
kernel t(x: f32[32, 16]) -> (y: f32[16, 32]) {
  grid g: 1 {
    buffer a: f32[16, 32] in local
    for i: 16, j: 32 { a[i, j] = x[j, i] }
    for i: 16, j: 32 { y[i, j] = a[i, j] }
  }
}"""
    made = lowered(text)
    assert (made.report["dma_copies"], made.report["core_copies"]) == (1, 1)
    x = np.arange(512, dtype=np.float32).reshape(32, 16)
    assert np.array_equal(BACKEND.load(made)({"x": x})["y"], x.T)


PRODUCT = """
kernel p(a: {a}[{m}, {k}], b: {a}[{n}, {k}]) -> (c: {c}[{m}, {n}]) {{
  grid g: 1 {{
    buffer al: {a}[{m}, {k}] in local
    buffer bl: {a}[{n}, {k}] in local
    buffer acc: {c}[{m}, {n}] in reg = {zero}
    for i: {m}, k: {k} {{ al[i, k] = a[i, k] }}
    for j: {n}, k: {k} {{ bl[j, k] = b[j, k] }}
    tile j: {n}, i: {m}, k: {k} {{ acc[i, j] += {c}(al[i, k]) * {c}(bl[j, k]) }}
    for i: {m}, j: {n} {{ c[i, j] = acc[i, j] }}
  }}
}}"""


@pytest.mark.parametrize(
    ("a", "c", "size", "products"),
    [
        ("bf16", "f32", (32, 32, 32), 1),
        ("f16", "f32", (7, 31, 32), 1),
        ("i8", "i32", (32, 1, 17), 1),
        ("f8e5m2", "f32", (8, 8, 8), 0),  # no such mode
        ("bf16", "f32", (33, 8, 8), 0),  # too large
    ],
)
def test_products_on_the_engine(a: str, c: str, size: tuple[int, ...], products: int) -> None:
    m, n, k = size
    zero = "0.0" if c == "f32" else "0"
    kernel = parse_kernel(PRODUCT.format(a=a, c=c, m=m, n=n, k=k, zero=zero))
    made = loaded(kernel)
    assert made.artifact.report["matrix_products"] == products
    inputs = random_inputs(kernel, {})
    same(made(inputs), run(kernel, inputs), 1e-5)
    assert made.counters is not None and made.counters.mma_calls == products


def test_operands_in_global_memory_stay_on_the_core() -> None:
    text = """
kernel p(a: bf16[8, 8], b: bf16[8, 8]) -> (c: f32[8, 8]) {
  grid g: 1 {
    buffer acc: f32[8, 8] in local = 0.0
    tile i: 8, j: 8, k: 8 { acc[i, j] += f32(a[i, k]) * f32(b[k, j]) }
    for i: 8, j: 8 { c[i, j] = acc[i, j] }
  }
}"""
    assert not any(isinstance(n, Mma) for n in engines(text))


def test_phases_follow_one_another_and_share_temporaries() -> None:
    """The second grid reads what other PEs wrote in the first; a loop over time runs alone."""
    kernel = parse_kernel("""
kernel k[N](x: f32[N]) -> (y: f32[N]) {
  buffer t: f32[N] in global = 1.0
  grid i: N { t[i] += x[i] }
  for step: 3 {
    grid j: N { y[j] = t[N - 1 - j] + f32(step) }
  }
  grid l: N { y[l] *= 2.0 }
}""")
    made = loaded(kernel)
    assert made.artifact.launch["phases"] == 4
    x = np.arange(101, dtype=np.float32)
    same(made({"x": x}), run(kernel, {"x": x}), 0)


def test_a_mask_whose_index_cancels() -> None:
    kernel = parse_kernel("""
kernel k[N](x: f32[8]) -> (y: f32[8]) {
  for j: 8 { y[j] = 0.0 }
  tile i: 8 where i + N <= i + 3 { y[i] = x[i] }
}""")
    x = np.arange(8, dtype=np.float32)
    made = loaded(kernel)
    for n in (3, 4):
        same(made({"x": x}, {"N": n}), run(kernel, {"x": x}, {"N": n}), 0)


@pytest.mark.parametrize("name", ["lambda", "def", "i64", "pe", "local", "entry", "kir_entry"])
def test_names_that_mean_something_elsewhere(name: str) -> None:
    kernel = parse_kernel(
        f"kernel {name}[N](x: f32[N]) -> ({name}_2: f32[N]) "
        f"{{ grid i: N {{ {name}_2[i] = x[i] + 1.0 }} }}"
    )
    x = np.zeros(3, np.float32)
    assert np.array_equal(loaded(kernel)({"x": x})[f"{name}_2"], x + 1)


# --- what is refused -------------------------------------------------------------------------

REFUSED = {
    "too large": (
        "buffer a: f32[99000] in local for j: 1000 { a[j] = x[j] } for j: 1000 { y[j] = a[j] }",
        r"needs 396032 bytes of scratchpad, and a PE of `reference` has 393216",
    ),
    "not constant": (
        "buffer a: f32[N] in local for j: N { a[j] = x[j] } for j: N { y[j] = a[j] }",
        "size of `a` on chip is not constant",
    ),
    "global in a grid": (
        "buffer a: f32[4] in global for j: N { y[j] = x[j] }",
        "in global memory stands in a `grid`",
    ),
    "local in a tile": (
        "tile j: 4 { buffer a: f32[2] in local = 0.0 y[j] = x[j] + a[0] }",
        "each lane would need its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_placed(case: str) -> None:
    body, message = REFUSED[case]
    text = f"kernel k[N](x: f32[N]) -> (y: f32[N]) {{ grid i: 1 {{ {body} }} }}"
    with pytest.raises(UnsupportedError, match=message) as raised:
        lowered(text)
    assert raised.value.node is not None and raised.value.kernel is not None


def test_a_spec_is_no_schedule() -> None:
    with pytest.raises(UnsupportedError, match="no scheduled IR"):
        BACKEND.lower(spec("softmax"), "accel", "reference")


def test_an_unknown_stage() -> None:
    with pytest.raises(UsageError, match="no stage `ptx`"):
        BACKEND.lower(scheduled(spec("gelu")), "accel", "reference", "ptx")


def test_only_the_stages_asked_for() -> None:
    made = BACKEND.lower(scheduled(spec("gelu")), "accel", "reference", "llvm")
    assert set(made.stages) == {"llvm"}


def test_wrong_inputs(simulations: dict[str, Simulation]) -> None:
    made = simulation(simulations, "gelu")
    with pytest.raises(InputDataError, match="`x` is not given"):
        made({})
    with pytest.raises(InputDataError, match="`x` is float64 with 2 axes"):
        made({"x": np.zeros((2, 3))})
    with pytest.raises(InputDataError, match=r"`y` has the shape \(3, 3\), not \(2, 3\)"):
        made({"x": np.zeros((2, 3), "f4")}, None, {"y": np.zeros((3, 3), "f4")})


# --- planted bugs: the run-time interface and the simulator catch them -----------------------

COPY = """
kernel k(x: f32[64]) -> (y: f32[64]) {
  grid g: 2 {
    buffer a: f32[32] in local
    for j: 32 { a[j] = x[g*32 + j] }
    for j: 32 { y[g*32 + j] = a[j] }
  }
}"""
X = {"x": np.arange(64, dtype=np.float32)}


def edited(text: str, pattern: str, new: str, arch: str = "reference") -> Simulation:
    """A simulation of a kernel whose LLVM IR was changed in one place."""
    made = lowered(text, arch)
    ir = made.stages["llvm"]
    assert isinstance(ir, str)
    ir, count = re.subn(pattern, new, ir, count=1)
    assert count == 1
    return Simulation(dataclasses.replace(made, stages={"llvm": ir}))


LOAD = r"(call void @kir_dma_load\(ptr %pe, ptr %\w+, ptr %\w+, )i64 1, i64 128, "
BUGS: dict[str, tuple[str, str, str]] = {
    "the scratchpad": (LOAD, r"\1i64 1, i64 132, ", "leaves the scratchpad"),
    "rows": (LOAD, r"\1i64 -1, i64 128, ", "more rows, or longer ones"),
    "the tensor": (
        r"(call void @kir_dma_store\(ptr %pe, ptr )%\w+",
        r"\1%local",
        "leaves the tensors",
    ),
    "no wait at the end": (
        r"(kir_dma_store\(ptr %pe, .*\n)  call void @kir_dma_wait\(ptr %pe\)\n",
        r"\1",
        "without waiting",
    ),
    "the core's own stores": (
        r"(define internal void @kir_phase0.*\nentry:\n)",
        r"\1  %wild = getelementptr i8, ptr %p.y, i64 256\n  store i8 1, ptr %wild\n",
        "wrote outside",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    pattern, new, message = BUGS[bug]
    made = edited(COPY, pattern, new)
    with pytest.raises(EvaluationError, match=message):
        made(X)


def test_transfers_keep_their_order() -> None:
    """Without the wait between them the load is still done before the store."""
    made = edited(COPY, r"  call void @kir_dma_wait\(ptr %pe\)\n(?=(.|\n)*kir_dma_store)", "")
    assert np.array_equal(made(X)["y"], X["x"])


def test_what_is_read_before_the_wait_is_poison() -> None:
    text = COPY.replace("a[j] }", "a[j] + 0.0 }")
    assert np.array_equal(BACKEND.load(lowered(text))(X)["y"], X["x"])
    made = edited(text, r"  call void @kir_dma_wait\(ptr %pe\)\n", "")
    try:
        wrong = made(X)["y"]
    except EvaluationError:
        return
    assert not np.array_equal(wrong, X["x"])


@pytest.mark.parametrize(
    ("argument", "new", "message"),
    [
        ("mode", "i64 0", "lacks these dtypes"),
        ("mode", "i64 9", "lacks these dtypes"),
        ("m", "i64 33", "larger than the matrix engine's"),
        ("a_row", "i64 1000000", "not in the scratchpad"),
    ],
)
def test_the_matrix_engine_refuses(argument: str, new: str, message: str) -> None:
    place = {"mode": 1, "a_row": 6, "m": 11}[argument]
    text = PRODUCT.format(a="bf16", c="f32", m=32, n=32, k=32, zero="0.0")
    pattern = rf"(call void @kir_matrix_mma\((?:[^,]+, ){{{place}}})[^,]+"
    made = edited(text, pattern, rf"\g<1>{new}")
    with pytest.raises(EvaluationError, match=message):
        made(random_inputs(parse_kernel(text), {}))


# --- other machines --------------------------------------------------------------------------


def test_the_dma_alignment_keeps_odd_rows_on_the_core(tmp_path: Path) -> None:
    arch = machine_file(tmp_path, dma__alignment="64")
    made = lowered(COPY, arch)
    assert made.report["dma_copies"] == 2  # 128 bytes from multiples of 128
    assert np.array_equal(BACKEND.load(made)(X)["y"], X["x"])
    odd = re.sub("(?<!f)32", "31", COPY)
    assert lowered(odd, arch).report["core_copies"] == 2
    with pytest.raises(EvaluationError, match="breaks the machine's alignment"):
        edited(COPY, LOAD, r"\1i64 1, i64 124, ", arch)(X)


def test_a_small_scratchpad_makes_the_plan_stage_less(tmp_path: Path) -> None:
    arch = machine_file(tmp_path, local__bytes="1024")
    kernel = spec("gelu")
    made = loaded(scheduled(kernel, arch), arch)
    assert made.artifact.report["dma_copies"] == 0
    inputs = random_inputs(kernel, {"M": 3, "N": 1025})
    same(made(inputs), run(kernel, inputs), 3e-6)


def test_no_engine_for_the_dtype(tmp_path: Path) -> None:
    arch = machine_file(tmp_path, matrix__a='"i8"', matrix__b='"i8"', matrix__acc='"i32"')
    text = Path(arch).read_text(encoding="utf-8")
    Path(arch).write_text(text[: text.index("[[matrix]]")], encoding="utf-8")
    kernel = spec("matmul_bf16")
    made = loaded(scheduled(kernel, arch), arch)
    assert made.artifact.report["matrix_products"] == 0
    inputs = random_inputs(kernel, {"M": 9, "N": 10, "K": 11})
    same(made(inputs), run(kernel, inputs), 1e-2)


def test_another_core(tmp_path: Path) -> None:
    """A machine of another instruction set: assembly, object and simulator; QEMU is for RISC-V."""
    arch = machine_file(
        tmp_path,
        core__triple='"aarch64-unknown-elf"',
        core__cpu='"generic"',
        core__features='["+neon"]',
        core__abi='"aapcs"',
        core__code_model='"small"',
        core__vector_bits="128",
    )
    kernel = spec("gelu")
    made = loaded(scheduled(kernel, arch), arch)
    asm = made.artifact.stages["asm"]
    assert isinstance(asm, str) and "fmla" in asm
    inputs = random_inputs(kernel, {"M": 3, "N": 70})
    same(made(inputs), run(kernel, inputs), 3e-6)
    with pytest.raises(UnsupportedError, match="QEMU runs RISC-V here"):
        made.under_qemu(inputs)


def test_a_core_without_floats_is_refused(tmp_path: Path) -> None:
    arch = machine_file(tmp_path, core__features='["+m", "+a", "+c"]', core__abi='"lp64"')
    text = "kernel k(x: f32[4]) -> (y: f32[4]) { grid i: 4 { y[i] = x[i] * 3.0 } }"
    with pytest.raises(UnsupportedError, match="calls `__mulsf3`, which the run-time interface"):
        lowered(text, arch)


# --- the linker ------------------------------------------------------------------------------


def test_the_linker_refuses_what_it_cannot_link() -> None:
    with pytest.raises(CompileError, match="no 64-bit little-endian ELF"):
        elf.link(b"\x7fELF\x01\x01", 64)
    obj = BACKEND.lower(scheduled(spec("gelu")), "accel", "reference").stages["obj"]
    assert isinstance(obj, bytes)
    with pytest.raises(CompileError, match=r"needs `\w+`, which nothing defines"):
        elf.link(obj, 64)


def test_qemu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, simulations: dict[str, Simulation]
) -> None:
    monkeypatch.setattr(simulator, "QEMU", "qemu-none")
    with pytest.raises(MissingHardwareError, match="`qemu-none` is not installed"):
        simulation(simulations, "gelu").under_qemu({"x": np.zeros((1, 1), "f4")})


def test_an_artifact_without_code_is_not_loaded() -> None:
    made = dataclasses.replace(lowered(COPY), stages={})
    with pytest.raises(KirError, match="needs the artifact's stage `llvm`"):
        BACKEND.load(made)


def test_scratchpad_places_overlap_only_when_not_alive_together() -> None:
    text = """
kernel k(x: f32[64]) -> (y: f32[64]) {
  grid g: 1 {
    buffer a: f32[64] in local
    for j: 64 { a[j] = x[j] }
    for t: 2 {
      buffer b: f32[32] in local
      for j: 32 { b[j] = a[t*32 + j] * 2.0 }
      for j: 32 { y[t*32 + j] = b[j] }
    }
    for t: 1 {
      buffer c: f32[48] in local
      for j: 48 { c[j] = a[j] + 1.0 }
      for j: 48 { y[j] += c[j] }
    }
  }
}"""
    kernel = parse_kernel(text)
    assert program(kernel, find("reference")).local_bytes == 256 + 192
    same(loaded(kernel)(X), run(kernel, X), 0)
