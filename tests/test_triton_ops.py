"""Every op on every dtype, and every conversion, under Triton's interpreter, against KIR's own.

One kernel holds all ops of a dtype, so that the whole table takes a few runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kir.backends.triton import BACKEND
from kir.backends.triton.handlers import HANDLERS, INFIX
from kir.dtypes import DTYPES, DType, bool_, i32, i64, u64
from kir.errors import KirError
from kir.interpret import run
from kir.ir import Axis, Bitcast, Cast, Expr, Kernel, Loop, Param, Read, Store, Var, const
from kir.ops import OPS, op

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="the extra `triton` is not installed")
pytest.importorskip("torch", reason="torch is not installed")

Array = np.ndarray[Any, Any]
COUNT = 128
ULPS = {"f64": 4, "f32": 2, "f16": 1, "bf16": 1, "f8e4m3": 1, "f8e5m2": 1}
ROUNDED_ONCE = {"add", "sub", "mul", "div", "neg", "fma", "sqrt", "max", "min", "abs", "sign",
                "select", "floor", "ceil", "round", "trunc"}  # fmt: skip


def values(dtype: DType, seed: int) -> Array:
    """Special values first, then random ones of a wide range."""
    rng = np.random.default_rng(seed)
    if dtype.is_bool:
        return rng.integers(0, 2, COUNT).astype(np.bool_)
    if dtype.is_integer:
        low, high = dtype.limits()
        special = [0, 1, high, low, high - 1, low + 1, 2, 3, 7, 8, 31, 32, 63, 64]
        special += [-1, -2, -7] if low < 0 else []
        rest = rng.integers(low, high, COUNT - len(special), dtype=dtype.numpy, endpoint=True)
        small = rng.integers(0, 9, COUNT - len(special)).astype(dtype.numpy)
        rest = np.where(rng.random(rest.shape) < 0.5, rest, small)
        made = np.concatenate([np.array(special).astype(dtype.numpy), rest.astype(dtype.numpy)])
        return made if seed % 2 == 0 else rng.permutation(made)
    odd = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-3, 3e-8]
    odd += [448.0, 464.0, 480.0, 57344.0, 61440.0, 65504.0, 65520.0, 1e-7, 1e-40, 3e38]
    with np.errstate(all="ignore"):
        rest = rng.standard_normal(COUNT - len(odd)) * np.exp(rng.normal(0, 3, COUNT - len(odd)))
        made = np.concatenate([odd, rest]).astype(dtype.numpy)
    return made if seed % 2 == 0 else rng.permutation(made)


def kernel_of(inputs: dict[str, DType], results: dict[str, Expr]) -> Kernel:
    """Each expression over `x[i]` for lanes i, stored to an output of its own."""
    lane = Axis("i", const(COUNT))
    body = tuple(Store(name, (Var("i"),), e) for name, e in results.items())
    shape = (const(COUNT),)
    return Kernel(
        "ops",
        (),
        tuple(Param(n, t, shape) for n, t in inputs.items()),
        tuple(Param(n, e.dtype, shape) for n, e in results.items()),
        (),
        (Loop("tile", lane, (), body),),
    )


def at(name: str, dtype: DType) -> Read:
    return Read(name, (Var("i"),), dtype)


def both(kernel: Kernel, inputs: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    artifact = BACKEND.lower(kernel, "nvidia", "sm_90", "source")
    return BACKEND.load(artifact, interpret=True)(inputs), run(kernel, inputs)


def assert_near(name: str, got: Array, want: Array, dtype: DType, ulps: int) -> None:
    """Equal, or at most `ulps` of the result apart; NaN equals NaN."""
    assert got.dtype == want.dtype
    if not dtype.is_float:
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    with np.errstate(invalid="ignore"):
        g, w = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(w) & np.isfinite(g)
    np.testing.assert_array_equal(g[~finite], w[~finite], err_msg=name)
    least = float(np.finfo(np.float64).tiny) if dtype.bits == 64 else 1e-45
    spacing = np.maximum(np.abs(w[finite]) * 2 * dtype.unit_roundoff, least)
    spacing = np.maximum(spacing, _smallest(dtype))
    apart = np.abs(g[finite] - w[finite]) / spacing
    assert apart.max(initial=0.0) <= ulps, (name, float(apart.max()))


def _smallest(dtype: DType) -> float:
    return {"f16": 2.0**-24, "bf16": 2.0**-133, "f8e4m3": 2.0**-9, "f8e5m2": 2.0**-16}.get(
        dtype.name, 0.0
    )


def applied(name: str, dtype: DType) -> Expr | None:
    """The op on operands of a dtype, None where it has none."""
    rule = OPS[name].rule
    if rule in ("philox", "rand"):
        return op(name, at("s", u64), at("k", i64)) if dtype == i64 else None
    args: list[Expr] = [at(n, dtype) for n in ("x", "y", "z")[: OPS[name].arity]]
    if rule == "select":
        args = [at("c", bool_), at("x", dtype), at("y", dtype)]
    if rule == "shift":
        args = [at("x", dtype), at("y", dtype)]
    try:
        return op(name, *args)
    except KirError:
        return None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_op(dtype: DType) -> None:
    inputs = {"x": dtype, "y": dtype, "z": dtype, "c": bool_, "s": u64, "k": i64}
    results = {f"r_{n}": e for n in OPS if (e := applied(n, dtype)) is not None}
    kernel = kernel_of(inputs, results)
    arrays = {n: values(t, k) for k, (n, t) in enumerate(inputs.items())}
    got, want = both(kernel, arrays)
    for name, e in results.items():
        exact = name.removeprefix("r_") in ROUNDED_ONCE or not e.dtype.is_float
        assert_near(name, got[name], want[name], e.dtype, 0 if exact else ULPS[e.dtype.name])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_cast_and_bitcast(dtype: DType) -> None:
    x = at("x", dtype)
    results: dict[str, Expr] = {f"to_{t}": Cast(x, t) for t in DTYPES.values()}
    results |= {
        f"bits_{t}": Bitcast(x, t)
        for t in DTYPES.values()
        if t.bits == dtype.bits and not t.is_bool and not dtype.is_bool
    }
    kernel = kernel_of({"x": dtype}, results)
    got, want = both(kernel, {"x": values(dtype, 4)})
    for name, e in results.items():
        assert_near(name, got[name], want[name], e.dtype, 0)


def test_the_table_is_complete() -> None:
    assert set(OPS) <= set(HANDLERS) | set(INFIX)


@pytest.mark.parametrize(
    "dtype", [DTYPES["f8e4m3"], DTYPES["f8e5m2"], DTYPES["bf16"], DTYPES["f16"]], ids=str
)
def test_every_value_of_a_narrow_float_survives(dtype: DType) -> None:
    """Loaded, converted and stored again: each of the byte patterns (or a sample of halves)."""
    bits = (
        np.arange(256, dtype=np.uint8)
        if dtype.bits == 8
        else np.arange(0, 1 << 16, 251, dtype=np.uint16)
    )
    x = np.resize(bits, 512 if dtype.bits == 16 else 256).view(dtype.numpy)
    n = const(len(x))
    body = Store("y", (Var("i"),), Cast(Cast(Read("x", (Var("i"),), dtype), DTYPES["f64"]), dtype))
    kernel = Kernel("copy", (), (Param("x", dtype, (n,)),), (Param("y", dtype, (n,)),), (),
                    (Loop("tile", Axis("i", n), (), (body,)),))  # fmt: skip
    got, want = both(kernel, {"x": x})
    np.testing.assert_array_equal(got["y"].astype(np.float64), want["y"].astype(np.float64))


@pytest.mark.parametrize("dtype", [DTYPES["f8e4m3"], DTYPES["f8e5m2"], DTYPES["bf16"]], ids=str)
def test_ties_round_to_even(dtype: DType) -> None:
    bits = np.arange(1 << min(dtype.bits, 11), dtype=f"uint{dtype.bits}") << (dtype.bits & 8) // 4
    order = np.unique(bits.view(dtype.numpy).astype(np.float32))
    order = order[np.isfinite(order)]
    middle = (order[1:] + order[:-1]) / 2
    x = np.zeros(2048, np.float32)
    x[: min(len(middle), 2048)] = middle[:2048]
    n = const(len(x))
    body = Store("y", (Var("i"),), Cast(Read("x", (Var("i"),), DTYPES["f32"]), dtype))
    kernel = Kernel("ties", (), (Param("x", DTYPES["f32"], (n,)),), (Param("y", dtype, (n,)),), (),
                    (Loop("tile", Axis("i", n), (), (body,)),))  # fmt: skip
    got, _ = both(kernel, {"x": x})
    np.testing.assert_array_equal(
        got["y"].astype(np.float32), x.astype(dtype.numpy).astype(np.float32)
    )


def test_scalars_take_the_same_ops() -> None:
    """Without lanes: programs of scalars, with literals on either side."""
    x, n = Read("x", (Var("i"),), i32), const(COUNT)
    one = op("add", op("mul", x, Cast(const(3), i32)), op("floordiv", x, Cast(const(-7), i32)))
    kernel = Kernel("scalars", (), (Param("x", i32, (n,)),), (Param("y", i32, (n,)),), (),
                    (Loop("grid", Axis("i", n), (), (Store("y", (Var("i"),), one),)),))  # fmt: skip
    got, want = both(kernel, {"x": values(i32, 0)})
    np.testing.assert_array_equal(got["y"], want["y"])
