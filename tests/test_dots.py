"""Sums of groups of products by one instruction: i16 pairs, u8 by i8 in fours, bf16 pairs. Run
where this machine has it, else read in the assembly."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.backends.cpu.archs import chip_of, machine_of
from kir.dtypes import DTYPES
from kir.interpret import run as interpret
from kir.pipeline import Target, choose_steps, lower, schedule
from kir.plan.cpu import plan
from kir.plan.cpu.chip import Chip
from kir.rewrites import apply_step
from kir.specialise import specialise
from kir.syntax import format_kernel, load, parse, parse_kernel, parse_steps

NDArray = np.ndarray[Any, Any]
BLOCK = """kernel k[K](a: {one}[K, {rows}, {group}], b: {many}[K, {lanes}, {group}])
    -> (c: {total}[{rows}, {lanes}]) {{
  buffer acc: {total}[{rows}, {lanes}] in reg = 0
  for k: K {{ tile i: {rows}, j: {lanes}, g: {group} {{
    acc[i, j] += {total}(a[k, i, g]) * {total}(b[k, j, g]) }} }}
  tile i2: {rows}, j2: {lanes} {{ c[i2, j2] = acc[i2, j2] }}
}}"""
INSTRUCTIONS = ("vpmaddwd", "vpdpwssd", "vpdpbusd", "vdpbf16ps")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


def block(one: str, many: str, group: int, rows: int = 6, lanes: int = 16) -> str:
    total = "f32" if one == "bf16" else "i32"
    return BLOCK.format(one=one, many=many, group=group, rows=rows, lanes=lanes, total=total)


def counts(text: str, arch: str, *steps: str) -> dict[str, int]:
    kernel = parse_kernel(text)
    for step in parse_steps("\n".join(steps)) if steps else ():
        kernel = apply_step(kernel, step)
    asm = BACKEND.lower(kernel, "cpu", arch, "asm").stages["asm"]
    assert isinstance(asm, str)
    return {name: found for name in INSTRUCTIONS if (found := asm.count(name))}


@pytest.mark.parametrize("arch", ["native", "x86-64-v3"])
@pytest.mark.parametrize(("rows", "lanes"), [(6, 16), (1, 8), (4, 24), (7, 5), (3, 32)])
def test_pairs_of_i16(arch: str, rows: int, lanes: int) -> None:
    """All values, the two that overflow together among them: sums wrap as written."""
    kernel = parse_kernel(block("i16", "i16", 2, rows, lanes))
    rng = np.random.default_rng(0)
    for depth in (0, 1, 37):
        a = rng.integers(-(1 << 15), 1 << 15, (depth, rows, 2)).astype(np.int16)
        b = rng.integers(-(1 << 15), 1 << 15, (depth, lanes, 2)).astype(np.int16)
        a[:1] = b[:1] = -(1 << 15)
        want = interpret(kernel, {"a": a, "b": b})["c"]
        got = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))({"a": a, "b": b})["c"]
        np.testing.assert_array_equal(got, want)
    if lanes % 8 == 0:
        assert counts(block("i16", "i16", 2, rows, lanes), "x86-64-v3").keys() == {"vpmaddwd"}
    else:
        assert not counts(block("i16", "i16", 2, rows, lanes), "x86-64-v3")


def test_what_each_chip_uses() -> None:
    i16, u8, bf16 = block("i16", "i16", 2), block("u8", "i8", 4), block("bf16", "bf16", 2)
    assert counts(i16, "x86-64-v4").keys() == {"vpmaddwd"}
    assert "vpdpwssd" in counts(i16, "sapphirerapids")
    assert "vpdpbusd" not in counts(u8, "x86-64-v4")
    assert not counts(bf16, "x86-64-v4", "flush(g)")
    assert counts(u8, "sapphirerapids").keys() == {"vpdpbusd"}
    assert counts(bf16, "sapphirerapids", "flush(g)").keys() == {"vdpbf16ps"}


def test_subnormals_are_flushed_only_where_that_is_asked_for() -> None:
    assert not counts(block("bf16", "bf16", 2), "sapphirerapids")


def dpbf16ps(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """`vdpbf16ps` of one pair, as Intel's manual says: the odd products first, a rounding to
    nearest for each sum, subnormal operands and results 0."""

    def flushed(x: NDArray) -> NDArray:
        return np.where(np.abs(x) < 2.0**-126, np.float32(0), x).astype(np.float32)

    for g in (1, 0):  # a product of two bf16 is exact in f64, and so is its sum with an f32 here
        exact = flushed(a[..., g]).astype(np.float64) * flushed(b[..., g]).astype(np.float64)
        acc = flushed((flushed(acc).astype(np.float64) + exact).astype(np.float32))
    return acc


def test_a_model_of_the_bf16_instruction_stays_near_the_kernel() -> None:
    """Within a rounding for each sum, away from subnormals; and the bound of `flush` with them."""
    kernel = parse_kernel(block("bf16", "bf16", 2))
    rng, bf16 = np.random.default_rng(1), DTYPES["bf16"].numpy
    for scale in (1.0, 2.0**-70):
        a = (rng.standard_normal((40, 6, 2)) * scale).astype(bf16)
        b = (rng.standard_normal((40, 16, 2)) * scale).astype(bf16)
        want = interpret(kernel, {"a": a, "b": b})["c"].astype(np.float64)
        acc = np.zeros((6, 16), np.float32)
        for left, right in zip(a, b):
            acc = dpbf16ps(acc, left.astype("f4")[:, None, :], right.astype("f4")[None])
        size = np.einsum("kig,kjg->ij", *(np.abs(x.astype(np.float64)) for x in (a, b)))
        allowed = 2 * 80 * 2.0**-24 * size + 80 * 2.0**-125
        assert (np.abs(acc - want) <= allowed).all()


@pytest.mark.parametrize(
    "change",
    [
        ("g: 2 {", "g: 2 where k*2 + g < 3 {"),
        ("b[k, j, g]", "b[k, j, 1 - g]"),
        ("b[k, j, g]", "b[k, 15 - j, g]"),
        ("a[k, i, g]", "a[k, i, 0]"),
        ("a[k, i, g]", "a[k, i + j - j, g]"),
        ("acc[i, j] +=", "acc[i, j] max="),
        ("b[k, j, g])", "(b[k, j, g] else 0))"),
    ],
    ids=["where", "reversed", "lanes reversed", "no group", "odd index", "max", "fill"],
)
def test_what_is_nearly_such_a_sum_is_computed_as_written(change: tuple[str, str]) -> None:
    text = block("i16", "i16", 2).replace(*change)
    kernel = parse_kernel(text)
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(-9, 9, s).astype(np.int16)
              for n, s in (("a", (5, 6, 2)), ("b", (5, 16, 2)))}  # fmt: skip
    got = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))(arrays)["c"]
    np.testing.assert_array_equal(got, interpret(kernel, arrays)["c"])


@pytest.mark.parametrize("shape", [(6, 16, 4), (64, 64, 64), (13, 35, 20), (97, 130, 512)])
def test_the_planned_product_of_bytes(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    module = parse(load("examples/matmul_int8.kir"))
    spec = specialise(module.kernels()["matmul_int8"], {"M": m, "N": n, "K": k})
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(-128, 128, (m, k)).astype(np.int8),
        "b": rng.integers(-128, 128, (k, n)).astype(np.int8),
        "scale_a": np.ones(m, np.float32), "scale_b": np.ones(n, np.float32),
    }  # fmt: skip
    chip = chip_of("native")
    want = arrays["a"].astype(np.int64) @ arrays["b"].astype(np.int64)
    for dots in ((), ("i16",)):
        made = schedule(spec, plan(spec, Chip(chip.vector_bits, chip.registers, dots=dots)))
        assert dots or "i16" not in format_kernel(made)
        for threads in (1, -2):
            run = BACKEND.with_threads(BACKEND.lower(made, "cpu", "native"), threads)
            np.testing.assert_array_equal(run(arrays)["c"], want.astype(np.float32))


@pytest.mark.parametrize(("arch", "name"), [("x86-64-v3", "vpmaddwd"), ("x86-64-v4", "vpmaddwd"),
                                            ("sapphirerapids", "vpdpwssd")])  # fmt: skip
def test_the_default_schedule_multiplies_bytes_in_pairs(arch: str, name: str) -> None:
    module = parse(load("examples/matmul_int8.kir"))
    spec = specialise(module.kernels()["matmul_int8"], {"M": 256, "N": 256, "K": 256})
    goal = Target("cpu", arch=arch)
    asm = lower(spec, goal, choose_steps(spec, goal), "asm").stages["asm"]
    assert isinstance(asm, str) and len(re.findall(rf"\b{name}\b", asm)) >= 8
    assert machine_of(arch).dots
