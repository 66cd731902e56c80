"""Every op on every dtype, every cast and bitcast, on the cpu against the op table's NumPy meaning.

Each kernel applies one op to arrays of special and random values, once in a plain loop (scalars)
and once in tiles (vectors with a masked tail); both must agree with `kir.ops.compute`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.dtypes import DTYPES, FLOATS, INTEGERS, NARROW_FLOATS, DType, bool_, f32, f64, i64, u64
from kir.errors import DTypeError
from kir.ir import Axis, Bitcast, Cast, Dim, Expr, Kernel, Loop, Param, Read, Store, Var, const
from kir.ops import OPS, compute, op, result_dtype

N = 173  # not a multiple of the vectors' lanes

EXACT = {"add", "sub", "mul", "div", "neg", "fma", "abs", "sign", "max", "min", "sqrt", "select",
         "floor", "ceil", "round", "trunc"}  # fmt: skip
ULPS = {f32: 4, f64: 4}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


def values(t: DType, seed: int) -> np.ndarray[Any, Any]:
    """N values of a dtype: the special ones, then random ones of many magnitudes."""
    rng = np.random.default_rng(seed)
    if t.is_bool:
        return rng.integers(0, 2, N).astype(bool)
    if t.is_integer:
        low, high = t.limits()
        special = [0, 1, 2, 3, 7, high, high - 1, low, low + 1]
        special += [-1, -2, -7] if t.kind == "int" else [5, 6]
        wide = rng.integers(low, high, N, dtype=t.numpy, endpoint=True)
        small = rng.integers(max(low, -9), 9, N).astype(t.numpy)
        result = np.where(rng.integers(0, 2, N) == 0, wide, small).astype(t.numpy)
        result[: len(special)] = np.array(special, t.numpy)
        return rng.permutation(result)
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 1.5, 2.5, -2.5, 3e38,
               1e-40, -1e-40, 1e-45, 88.9, -104.2, 1e-8, 1e10, 1e-3, 0.6, 0.99, 1.01, 4.1]  # fmt: skip
    scale = np.exp(rng.uniform(-12, 12, N) * (2.0 if t in (f32, f64) else 0.7))
    with np.errstate(all="ignore"):
        result = np.where(rng.integers(0, 2, N) == 0, rng.normal(size=N) * scale,
                          rng.normal(size=N) * 3).astype(t.numpy)  # fmt: skip
        result[: len(special)] = np.array(special).astype(t.numpy)
    return rng.permutation(result)


def kernel_of(name: str, params: list[Param], value: Expr, out: DType, tile: int | None) -> Kernel:
    """y[n] = value(n), in a loop or in tiles."""
    n, size = Var("n"), Var("N")
    if tile is None:
        loop = Loop("for", Axis("n", size), (), (Store("y", (n,), value),))
    else:
        from kir.ir import substitute

        index = op("add", op("mul", Var("o"), const(tile)), Var("n"))
        body = Store("y", (index,), substitute(value, {"n": index}))
        inner = Loop("tile", Axis("n", const(tile)), (op("lt", index, size),), (body,))
        loop = Loop("for", Axis("o", op("cdiv", size, const(tile))), (), (inner,))
    outs = (Param("y", out, (size,)),)
    return Kernel(name, (Dim("N"),), tuple(params), outs, (), (loop,))


def run(kernel: Kernel, arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    executable = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))
    return executable(arrays)["y"]


def agree(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], ulps: int) -> None:
    """Equal NaNs, infinities and, within `ulps`, values; integers exactly."""
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    wide_got, wide_want = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(wide_got), np.isnan(wide_want))
    finite = np.isfinite(wide_want)
    infinite = ~finite & ~np.isnan(wide_want)
    np.testing.assert_array_equal(wide_got[infinite], wide_want[infinite])
    with np.errstate(all="ignore"):
        spacing = np.abs(np.spacing(np.abs(want))).astype(np.float64)
    bad = finite & ~(np.abs(wide_got - wide_want) <= ulps * spacing)
    assert not bad.any(), (wide_got[bad][:5], wide_want[bad][:5], np.flatnonzero(bad)[:5])


def _cases() -> list[tuple[str, DType]]:
    found = []
    for name, d in OPS.items():
        for t in DTYPES.values():
            try:
                if d.rule in ("philox", "rand"):
                    found += [(name, t)] if t == u64 else []
                    continue
                dtypes = [bool_, t, t] if d.rule == "select" else [t] * d.arity
                result_dtype(name, dtypes)
                found.append((name, t))
            except DTypeError:
                continue
    return found


@pytest.mark.parametrize(("name", "t"), _cases(), ids=lambda x: str(x))
def test_every_op_on_every_dtype(name: str, t: DType) -> None:
    d = OPS[name]
    if d.rule in ("philox", "rand"):
        dtypes = [u64, i64]
    else:
        dtypes = [bool_, t, t] if d.rule == "select" else [t] * d.arity
    arrays = {f"x{k}": values(u, k + 1) for k, u in enumerate(dtypes)}
    size = Var("N")
    params = [Param(n, u, (size,)) for n, u in zip(arrays, dtypes, strict=True)]
    value = op(name, *(Read(p.name, (Var("n"),), p.type) for p in params))
    want = compute(name, list(arrays.values()), value.type)
    ulps = 0 if name in EXACT or not value.type.is_float else ULPS.get(t, 1)
    for tile in (None, 16):
        got = run(kernel_of(f"k_{name}", params, value, value.type, tile), arrays)
        agree(got, want, ulps)


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
def test_every_cast(source: DType) -> None:
    from kir.interpret import run as interpret

    x = values(source, 5)
    for target in DTYPES.values():
        param = Param("x", source, (Var("N"),))
        value = Cast(Read("x", (Var("n"),), source), target)
        kernel = kernel_of("k", [param], value, target, 32)
        got = run(kernel, {"x": x})
        want = interpret(kernel, {"x": x})["y"]
        # through f32, ml_dtypes may round twice what is rounded once here
        twice = target in NARROW_FLOATS and source.bits > 24
        agree(got, want, 1 if twice else 0)


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
def test_bitcasts_keep_bits(source: DType) -> None:
    if source.is_bool:
        return
    x = values(source, 6)
    if source.is_float:
        x = np.where(np.isnan(x.astype(np.float64)), source.numpy.type(1), x).astype(source.numpy)
    for target in DTYPES.values():
        if target.bits != source.bits or target.is_bool or target.is_float:
            continue
        param = Param("x", source, (Var("N"),))
        there = Bitcast(Read("x", (Var("n"),), source), target)
        for tile in (None, 8):
            got = run(kernel_of("k", [param], there, target, tile), {"x": x})
            np.testing.assert_array_equal(got, x.view(target.numpy))
            back = run(kernel_of("k", [param], Bitcast(there, source), source, tile), {"x": x})
            np.testing.assert_array_equal(back.view(target.numpy), x.view(target.numpy))


@pytest.mark.parametrize("t", NARROW_FLOATS, ids=str)
def test_narrow_floats_convert_every_value_both_ways(t: DType) -> None:
    bits = np.arange(1 << t.bits, dtype=f"uint{t.bits}")
    x = bits.view(t.numpy)
    param = Param("x", t, (Var("N"),))
    up = kernel_of("k", [param], Cast(Read("x", (Var("n"),), t), f32), f32, 32)
    wide = run(up, {"x": x})
    np.testing.assert_array_equal(wide, x.astype(np.float32))
    # between neighbours: the midpoint, and one f32 step to either side of it
    order = np.unique(wide[np.isfinite(wide)])
    middle = ((order[1:].astype(np.float64) + order[:-1]) / 2).astype(np.float32)
    down_in = np.concatenate([order, middle, np.nextafter(middle, np.float32(np.inf)),
                              np.nextafter(middle, np.float32(-np.inf)),
                              np.float32([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38])])  # fmt: skip
    param = Param("x", f32, (Var("N"),))
    down = kernel_of("k", [param], Cast(Read("x", (Var("n"),), f32), t), t, 32)
    with np.errstate(all="ignore"):
        want = down_in.astype(t.numpy)
    agree(run(down, {"x": down_in}), want, 0)


@pytest.mark.parametrize("source", [f64, *(t for t in INTEGERS if t.bits == 32)], ids=str)
def test_wide_values_round_once_to_narrow_floats(source: DType) -> None:
    """1 + 2^-8 + 2^-40 is above the midpoint of two bf16; through f32 it would round to even."""
    if source == f64:
        x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40, 1e300, -1e300, 1e-300])
    else:
        x = np.array([(1 << 24) + (1 << 16) + 1, (1 << 24) + 3 * (1 << 16) - 1], source.numpy)
    from kir.dtypes import bf16

    param = Param("x", source, (Var("N"),))
    kernel = kernel_of("k", [param], Cast(Read("x", (Var("n"),), source), bf16), bf16, 4)
    got = run(kernel, {"x": x}).astype(np.float64)
    if source == f64:
        np.testing.assert_array_equal(got, [1 + 2.0**-7, 1 + 2.0**-7, np.inf, -np.inf, 0.0])
    else:
        np.testing.assert_array_equal(got, [(1 << 24) + (1 << 17), (1 << 24) + (1 << 17)])


FUNCTIONS = {
    "exp": (np.exp, -104, 89), "exp2": (np.exp2, -150, 128.5), "expm1": (np.expm1, -20, 89),
    "log": (np.log, 0, 3e38), "log2": (np.log2, 0, 3e38), "log1p": (np.log1p, -1, 1e9),
    "tanh": (np.tanh, -12, 12), "sin": (np.sin, -1e9, 1e9), "cos": (np.cos, -1e9, 1e9),
    "erf": (None, -5, 5), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -103, 103),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inline_functions_are_within_four_ulp(name: str) -> None:
    function, low, high = FUNCTIONS[name]
    rng = np.random.default_rng(3)
    size = 60_000
    near = np.exp(rng.uniform(-80, 4, size)) * rng.choice([-1, 1], size)
    x = np.concatenate([rng.uniform(low, high, size), near, 1 + near * 1e-2,
                        rng.uniform(-2, 2, size)])  # fmt: skip
    x = x[(x >= low) & (x <= high)].astype(np.float32)
    wide = x.astype(np.float64)
    if function is None:
        want = compute("erf", [wide], f64)
    else:
        with np.errstate(all="ignore"):
            want = function(wide)
    param = Param("x", f32, (Var("N"),))
    value = op(name, Read("x", (Var("n"),), f32))
    got = run(kernel_of("k", [param], value, f32, 32), {"x": x}).astype(np.float64)
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        spacing = np.abs(np.spacing(np.abs(rounded))).astype(np.float64)
    finite = np.isfinite(rounded) & np.isfinite(spacing)
    ulp = np.abs(got - want)[finite] / spacing[finite]
    assert ulp.max() <= 4, (ulp.max(), x[finite][ulp.argmax()])
    np.testing.assert_array_equal(got[~finite & ~np.isnan(want)], rounded[~finite & ~np.isnan(want)])


def test_division_by_zero_and_the_least_integer_do_not_trap() -> None:
    for name in ("floordiv", "mod", "cdiv", "tdiv", "trem"):
        for t in INTEGERS:
            low, _ = t.limits()
            for divisor in (0, -1, 1, 3):
                if divisor < 0 and t.kind == "uint":
                    continue
                from kir.ir import Const

                value = op(name, Read("x", (Var("n"),), t), Const(divisor, t))
                x = np.array([low, low + 1, 0, 1, 5, *([-5, -6] if low else [])], t.numpy)
                got = run(kernel_of("k", [Param("x", t, (Var("N"),))], value, t, 4), {"x": x})
                want = compute(name, [x, np.full_like(x, divisor)], t)
                np.testing.assert_array_equal(got, want, str((name, t, divisor)))


def test_floats_are_the_ones_listed() -> None:
    assert set(FLOATS) - set(NARROW_FLOATS) == {f32, f64}
