"""Every op on every dtype, every cast and bitcast, on the cpu against the op table's NumPy meaning.

Each kernel applies one op to arrays of special and random values, once in a plain loop (scalars)
and once in tiles (vectors with a masked tail); both must agree with `kir.ops.compute`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kir.backends.cpu import BACKEND
from kir.dtypes import (
    DTYPES,
    INTEGERS,
    NARROW_FLOATS,
    DType,
    bf16,
    bool_,
    f32,
    f64,
    from_numpy,
    i8,
    i32,
    i64,
    u64,
)
from kir.errors import DTypeError
from kir.ir import (
    Axis,
    Bitcast,
    Cast,
    Const,
    Dim,
    Expr,
    Kernel,
    Loop,
    Op,
    Param,
    Read,
    Store,
    Var,
    const,
    substitute,
)
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
    extremes: list[float] = [
        *(0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 1.5, 2.5, -2.5, 3e38, 4.1),
        *(1e-40, -1e-40, 1e-45, 88.9, -104.2, 1e-8, 1e10, 1e-3, 0.6, 0.99, 1.01),
    ]
    scale = np.exp(rng.uniform(-12, 12, N) * (2.0 if t in (f32, f64) else 0.7))
    with np.errstate(all="ignore"):
        result = np.where(rng.integers(0, 2, N) == 0, rng.normal(size=N) * scale,
                          rng.normal(size=N) * 3).astype(t.numpy)  # fmt: skip
        result[: len(extremes)] = np.array(extremes).astype(t.numpy)
    return rng.permutation(result)


def loops_of(name: str, value: Expr, tile: int | None) -> Loop:
    """name[n] = value(n), in tiles, or in a loop over a permutation `at`: scalars, since LLVM makes
    no vectors of it."""
    n, size = Var("n"), Var("N")
    if tile is None:
        place = Read("at", (n,), i64)
        value = substitute(value, {"n": place})
        return Loop("for", Axis("n", size), (), (Store(name, (place,), value),))
    index = op("add", op("mul", Var("o"), const(tile)), n)
    body = Store(name, (index,), substitute(value, {"n": index}))
    inner = Loop("tile", Axis("n", const(tile)), (op("lt", index, size),), (body,))
    return Loop("for", Axis("o", op("cdiv", size, const(tile))), (), (inner,))


def evaluate(
    arrays: dict[str, np.ndarray[Any, Any]], wanted: Sequence[tuple[Expr, int | None]]
) -> list[np.ndarray[Any, Any]]:
    """Each expression over `x[n]`..., all of them in one kernel, compiled and run."""
    size = Var("N")
    (length,) = {len(a) for a in arrays.values()}
    if any(tile is None for _, tile in wanted):
        arrays = {**arrays, "at": np.random.default_rng(7).permutation(length)}
    inputs = tuple(Param(n, from_numpy(a.dtype), (size,)) for n, a in arrays.items())
    outputs = tuple(Param(f"y{k}", e.dtype, (size,)) for k, (e, _) in enumerate(wanted))
    body = tuple(loops_of(f"y{k}", e, tile) for k, (e, tile) in enumerate(wanted))
    kernel = Kernel("k", (Dim("N"),), inputs, outputs, (), body)
    made = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))(arrays)
    return [made[p.name] for p in outputs]


def x_of(t: DType) -> Read:
    return Read("x", (Var("n"),), t)


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
        far = ~(np.abs(wide_got - wide_want) <= ulps * spacing)
    bad = finite & (wide_got != wide_want) & far
    assert not bad.any(), (wide_got[bad][:5], wide_want[bad][:5], np.flatnonzero(bad)[:5])


def _signatures(name: str) -> list[list[DType]]:
    """The operands' dtypes that an op takes."""
    d = OPS[name]
    if d.rule in ("philox", "rand"):
        return [[u64, i64]]
    found = [[bool_, t, t] if d.rule == "select" else [t] * d.arity for t in DTYPES.values()]
    return [dtypes for dtypes in found if _fits(name, dtypes)]


def _fits(name: str, dtypes: list[DType]) -> bool:
    try:
        result_dtype(name, dtypes)
    except DTypeError:
        return False
    return True


@pytest.mark.parametrize("name", OPS)
def test_every_op_on_every_dtype(name: str) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    wanted: list[tuple[Expr, int | None]] = []
    for dtypes in _signatures(name):
        reads = []
        for k, t in enumerate(dtypes):
            arrays[f"x{k}_{t}"] = values(t, k + 1)
            reads.append(Read(f"x{k}_{t}", (Var("n"),), t))
        wanted += [(op(name, *reads), tile) for tile in (None, 8)]
    for (value, _), got in zip(wanted, evaluate(arrays, wanted), strict=True):
        assert isinstance(value, Op)
        operands = [arrays[r.tensor] for r in value.args if isinstance(r, Read)]
        want = compute(name, operands, value.type)
        exact = name in EXACT or not value.type.is_float
        inexact = 5 if name in ("erf", "tanh") and value.type == f32 else ULPS.get(value.type, 1)
        agree(got, want, 0 if exact else inexact)


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
def test_every_cast(source: DType) -> None:
    x = values(source, 5)
    targets = list(DTYPES.values())
    made = evaluate({"x": x}, [(Cast(x_of(source), t), 16) for t in targets])
    for target, got in zip(targets, made, strict=True):
        # through f32, ml_dtypes may round twice what is rounded once here
        twice = target in NARROW_FLOATS and source.bits > 24
        agree(got, cast_reference(x, source, target), 1 if twice else 0)


def cast_reference(x: np.ndarray[Any, Any], source: DType, target: DType) -> np.ndarray[Any, Any]:
    """docs/design.md: truncate, saturate, NaN gives 0; integers wrap; bool is != 0."""
    with np.errstate(all="ignore"):
        if target.is_bool:
            return np.asarray(x.astype(np.float64 if source.is_float else x.dtype) != 0)
        if source.is_float and target.is_integer:
            low, high = target.limits()
            whole = [0 if v != v else v for v in x.astype(np.float64).tolist()]
            kept = [min(max(v, low), high) for v in whole]
            return np.array([int(v) for v in kept], target.numpy)
        if source in NARROW_FLOATS:
            x = x.astype(np.float32)
        return x.astype(target.numpy)


@pytest.mark.parametrize("source", [t for t in DTYPES.values() if not t.is_bool], ids=str)
def test_bitcasts_keep_bits(source: DType) -> None:
    x = values(source, 6)
    if source.is_float:
        x = np.where(np.isnan(x.astype(np.float64)), source.numpy.type(1), x).astype(source.numpy)
    targets = [t for t in INTEGERS if t.bits == source.bits]
    there = [(Bitcast(x_of(source), t), tile) for t in targets for tile in (None, 8)]
    back = [(Bitcast(e, source), tile) for e, tile in there]
    for (e, _), got in zip(there + back, evaluate({"x": x}, there + back), strict=True):
        np.testing.assert_array_equal(got.view(targets[0].numpy), x.view(targets[0].numpy), str(e))


@pytest.mark.parametrize("t", NARROW_FLOATS, ids=str)
def test_narrow_floats_convert_every_value_both_ways(t: DType) -> None:
    x = np.arange(1 << t.bits, dtype=f"uint{t.bits}").view(t.numpy)
    (wide,) = evaluate({"x": x}, [(Cast(x_of(t), f32), 32)])
    np.testing.assert_array_equal(wide, x.astype(np.float32))
    # between neighbours: the midpoint, and one f32 step to either side of it
    order = np.unique(wide[np.isfinite(wide)])
    middle = ((order[1:].astype(np.float64) + order[:-1]) / 2).astype(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38], np.float32)
    steps = [np.nextafter(middle, np.float32(towards)) for towards in (np.inf, -np.inf)]
    down = np.concatenate([order, middle, *steps, special])
    (got,) = evaluate({"x": down}, [(Cast(x_of(f32), t), 32)])
    with np.errstate(all="ignore"):
        agree(got, down.astype(t.numpy), 0)


def test_wide_values_round_once_to_narrow_floats() -> None:
    """1 + 2^-8 + 2^-40 is above the midpoint of two bf16; through f32 it would round to even."""
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40, 1e300, -1e300, 1e-300])
    (got,) = evaluate({"x": x}, [(Cast(x_of(f64), bf16), 4)])
    np.testing.assert_array_equal(
        got.astype(np.float64), [1 + 2.0**-7, 1 + 2.0**-7, np.inf, -np.inf, 0.0]
    )
    n = np.array([(1 << 24) + (1 << 16) + 1, (1 << 24) + 3 * (1 << 16) - 1], np.int32)
    (got,) = evaluate({"x": n}, [(Cast(x_of(i32), bf16), 4)])
    np.testing.assert_array_equal(got.astype(np.float64), [(1 << 24) + (1 << 17)] * 2)


FUNCTIONS = {
    "exp": (np.exp, -104, 89), "exp2": (np.exp2, -150, 128.5), "expm1": (np.expm1, -20, 89),
    "log": (np.log, 0, 3e38), "log2": (np.log2, 0, 3e38), "log1p": (np.log1p, -1, 1e9),
    "tanh": (np.tanh, -12, 12), "sin": (np.sin, -1e9, 1e9), "cos": (np.cos, -1e9, 1e9),
    "erf": (None, -5, 5), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -103, 103),
}  # fmt: skip

ULPS_OF = {"exp": 6, "exp2": 3, "sigmoid": 6, "tanh": 5, "erf": 5}
"""Others: 2."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inline_functions_are_within_their_bounds(name: str) -> None:
    function, low, high = FUNCTIONS[name]
    rng = np.random.default_rng(3)
    size = 60_000
    near = np.exp(rng.uniform(-80, 4, size)) * rng.choice([-1, 1], size)
    x = np.concatenate([rng.uniform(low, high, size), near, 1 + near * 1e-2,
                        rng.uniform(-2, 2, size)])  # fmt: skip
    x = x[(x >= low) & (x <= high)].astype(np.float32)
    x = np.concatenate([np.sort(x), x])  # neighbours alike take the usual path, others the rare one
    wide = x.astype(np.float64)
    if function is None:
        want = compute("erf", [wide], f64)
    else:
        with np.errstate(all="ignore"):
            want = function(wide)
    (made,) = evaluate({"x": x}, [(op(name, x_of(f32)), 32)])
    got = made.astype(np.float64)
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        spacing = np.abs(np.spacing(np.abs(rounded))).astype(np.float64)
    finite = np.isfinite(rounded) & np.isfinite(spacing)
    ulp = np.abs(got - want)[finite] / spacing[finite]
    assert ulp.max() <= ULPS_OF.get(name, 2), (ulp.max(), x[finite][ulp.argmax()])
    np.testing.assert_array_equal(
        got[~finite & ~np.isnan(want)], rounded[~finite & ~np.isnan(want)]
    )


@pytest.mark.parametrize("name", ["floordiv", "mod", "cdiv", "tdiv", "trem"])
def test_division_by_constants_never_traps(name: str) -> None:
    for t in (i8, i64, u64):
        low, _ = t.limits()
        divisors = [d for d in (0, -1, 1, 3, 8) if d >= 0 or t.kind == "int"]
        x = np.array([low, low + 1, 0, 1, 5, *([-5, -6] if low else [])], t.numpy)
        made = evaluate({"x": x}, [(op(name, x_of(t), Const(d, t)), 4) for d in divisors])
        for divisor, got in zip(divisors, made, strict=True):
            want = compute(name, [x, np.full_like(x, divisor)], t)
            np.testing.assert_array_equal(got, want, str((name, t, divisor)))


def test_every_nan_stays_nan() -> None:
    payloads = np.concatenate([np.arange(1, 64), np.arange(0x7FFFC0, 0x800000),
                               np.random.default_rng(0).integers(1, 0x800000, 200)])  # fmt: skip
    bits = (payloads | 0x7F800000).astype(np.uint32)
    x = np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)
    unary = [n for n, d in OPS.items() if d.arity == 1 and d.rule == "same" and "float" in d.kinds]
    wanted: list[tuple[Expr, int | None]] = [(op(n, x_of(f32)), 8) for n in unary]
    for name, got in zip(unary, evaluate({"x": x}, wanted), strict=True):
        assert np.isnan(got).all(), name


def test_shifts_take_amounts_of_another_dtype() -> None:
    x, y = (
        np.arange(1, 9, dtype=np.int64) * -3,
        np.array([0, 1, 63, 64, 65, -1, 127, -128], np.int8),
    )
    reads = (x_of(i64), Read("amount", (Var("n"),), i8))
    wanted: list[tuple[Expr, int | None]] = [
        (op(name, *reads), tile) for name in ("shl", "shr") for tile in (None, 4)
    ]
    for (e, _), got in zip(wanted, evaluate({"x": x, "amount": y}, wanted), strict=True):
        assert isinstance(e, Op)
        np.testing.assert_array_equal(got, compute(e.name, [x, y], i64))
