"""`simplify` keeps the value of every expression, and finds what the rewrites leave behind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.dtypes import bf16, bool_, f32, i8, i32, i64, u8, u64
from kir.ir import (
    TRUE,
    Axis,
    Bitcast,
    Cast,
    Const,
    Dim,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Param,
    Read,
    Reduce,
    Store,
    Var,
    const,
)
from kir.ops import compute, op
from kir.simplify import interval, simplify

N, M, i, j, k, io, jo = (Var(n) for n in ("N", "M", "i", "j", "k", "io", "jo"))


def evaluate(e: Expr, env: dict[str, int]) -> Any:
    """The meaning of an expression, op by op."""
    if isinstance(e, Const):
        return np.asarray(e.value).astype(e.dtype.numpy)
    if isinstance(e, Var):
        return np.asarray(env[e.name], np.int64)
    if isinstance(e, Cast):
        return np.asarray(evaluate(e.value, env)).astype(e.dtype.numpy)
    assert isinstance(e, Op)
    return compute(e.name, [evaluate(a, env) for a in e.args], e.dtype)


RANGES = {"i": (0, 7), "j": (0, 127), "N": (1, 9), "io": (0, 3), "M": (0, 5)}
LEAVES = st.one_of(
    st.sampled_from([Var(n) for n in RANGES]),
    st.integers(-8, 8).map(const),
    st.sampled_from([const(16), const(128), const(-128)]),
)
INDEX_OPS = ("add", "sub", "mul", "floordiv", "mod", "cdiv", "tdiv", "trem", "max", "min")


def _conditions(index: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    compares = st.builds(op, st.sampled_from(("eq", "ne", "lt", "le", "gt", "ge")), index, index)
    return st.recursive(
        st.one_of(compares, st.sampled_from([TRUE, Const(False, bool_)])),
        lambda c: st.one_of(
            st.builds(op, st.sampled_from(("and", "or")), c, c),
            st.builds(lambda a: op("not", a), c),
        ),
        max_leaves=3,
    )


INDEX: st.SearchStrategy[Expr] = st.recursive(
    LEAVES,
    lambda e: st.one_of(
        st.builds(op, st.sampled_from(INDEX_OPS), e, e),
        st.builds(lambda a: op("neg", a), e),
        st.builds(lambda c, a, b: op("select", c, a, b), _conditions(e), e, e),
    ),
    max_leaves=8,
)
ENVS = st.fixed_dictionaries({n: st.integers(*r) for n, r in RANGES.items()})


@settings(derandomize=True, deadline=None, max_examples=800)
@given(INDEX, st.lists(ENVS, min_size=4, max_size=4), st.booleans())
def test_index_expressions_keep_their_value(
    e: Expr, envs: list[dict[str, int]], known: bool
) -> None:
    simple = simplify(e, RANGES if known else None)
    low, high = interval(e, RANGES)
    for env in envs:
        value = int(evaluate(e, env))
        assert int(evaluate(simple, env)) == value
        assert (low is None or low <= value) and (high is None or value <= high)
    assert simplify(simple, RANGES if known else None) is simple or known


@settings(derandomize=True, deadline=None, max_examples=400)
@given(_conditions(INDEX), st.lists(ENVS, min_size=4, max_size=4))
def test_conditions_keep_their_value(e: Expr, envs: list[dict[str, int]]) -> None:
    simple = simplify(e, RANGES)
    for env in envs:
        assert bool(evaluate(simple, env)) == bool(evaluate(e, env))


SMALL = st.sampled_from([i8, u8, i32, u64])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SMALL, st.sampled_from(INDEX_OPS), st.integers(), st.integers(), st.integers())
def test_wrapping_integers_fold_as_they_compute(t: Any, name: str, a: int, b: int, c: int) -> None:
    low, high = t.limits()
    x, y, z = (Const(low + v % (high - low + 1), t) for v in (a, b, c))
    e = op(name, op("add", x, y), z)
    assert simplify(e) == Const(int(evaluate(e, {})), t)


FLOATS = st.floats(width=16)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from([f32, bf16]), st.sampled_from(["add", "sub", "mul", "div", "max", "min"]),
       FLOATS, FLOATS)  # fmt: skip
def test_floats_fold_only_where_nothing_is_rounded(t: Any, name: str, a: float, b: float) -> None:
    def rounded(v: float) -> Const:
        return Const(float(np.asarray(v).astype(t.numpy)), t)

    e = op(name, rounded(a), rounded(b))
    simple = simplify(e)
    if isinstance(simple, Const):
        here = float(evaluate(e, {}))
        assert repr(simple.value) == repr(here) or math.isnan(here) == math.isnan(simple.value)


def add(a: Expr, b: Expr) -> Op:
    return op("add", a, b)


def mul(a: Expr, b: Expr | int) -> Op:
    return op("mul", a, const(b) if isinstance(b, int) else b)


@pytest.mark.parametrize(
    ("expr", "simple"),
    [
        (add(i, const(0)), i),
        (mul(i, 1), i),
        (mul(i, 0), const(0)),
        (add(add(i, const(1)), const(2)), add(i, const(3))),
        (op("sub", add(i, j), i), j),
        (op("sub", mul(add(i, const(1)), 2), const(2)), mul(i, 2)),
        (op("floordiv", mul(i, 8), const(8)), i),
        (op("floordiv", add(mul(jo, 128), j), const(128)), jo),
        (op("mod", add(mul(jo, 128), j), const(128)), j),
        (op("floordiv", op("floordiv", jo, const(4)), const(8)), op("floordiv", jo, const(32))),
        (add(mul(op("floordiv", jo, const(4)), 4), op("mod", jo, const(4))), jo),
        (op("cdiv", const(10), const(4)), const(3)),
        (op("cdiv", mul(jo, 8), const(8)), jo),
        (op("max", jo, const(0)), jo),
        (op("min", j, const(127)), j),
        (op("lt", j, const(128)), TRUE),
        (op("not", op("lt", i, M)), op("ge", i, M)),
        (op("select", op("ge", jo, const(0)), i, j), i),
        (op("eq", mul(jo, 2), add(mul(M, 4), const(1))), Const(False, bool_)),
        (op("mod", op("mod", jo, const(64)), const(8)), op("mod", jo, const(8))),
    ],
)
def test_rules(expr: Expr, simple: Expr) -> None:
    assert simplify(expr, RANGES) == simple


def loop(name: str, extent: Expr | int, *body: Any, where: tuple[Expr, ...] = ()) -> Loop:
    return Loop(
        "for", Axis(name, const(extent) if isinstance(extent, int) else extent), where, body
    )


def test_symbolic_extents_make_fused_loops_invertible() -> None:
    flat = add(mul(i, N), j)
    body = Store("y", (op("floordiv", flat, N), op("mod", flat, N)), Const(1.0, f32))
    done = simplify(loop("i", M, loop("j", N, body)))
    assert done == loop("i", M, loop("j", N, Store("y", (i, j), Const(1.0, f32))))


def test_a_divisor_that_may_be_zero_is_left_alone() -> None:
    e = op("floordiv", mul(jo, N), N)
    assert simplify(e) is e


def test_conditions_that_always_hold_vanish() -> None:
    inside = op("lt", i, N)
    store = Store("y", (i,), Const(1.0, f32))
    assert simplify(loop("i", N, If(inside, (store,)), where=(inside,))) == loop("i", N, store)
    mask = op("lt", add(mul(io, 4), i), N)
    nested = loop("i", 4, If(mask, (store,)), where=(mask,))
    assert simplify(nested) == loop("i", 4, store, where=(mask,))
    assert simplify(loop("i", 4, If(op("lt", i, const(0)), (store,)))) == loop("i", 4)


def test_reads_may_wrap_so_division_stays() -> None:
    x = Read("x", (i,), i64)
    e = op("floordiv", mul(x, 4), const(4))
    assert simplify(e) is e
    assert simplify(op("lt", x, add(x, const(1)))) == op("lt", x, add(x, const(1)))
    assert simplify(op("floordiv", op("mod", x, const(8)), const(8))) == const(0)


def test_floats_are_not_reassociated() -> None:
    x = Read("x", (i,), f32)
    one, zero = Const(1.0, f32), Const(0.0, f32)
    assert simplify(op("mul", x, one)) == x
    assert simplify(op("sub", x, zero)) == x
    for kept in (op("add", x, zero), op("mul", x, zero), op("add", op("add", x, one), one)):
        assert simplify(kept) is kept
    tenth = op("div", one, Const(10.0, f32))
    assert simplify(tenth) is tenth
    assert simplify(op("div", one, Const(8.0, f32))) == Const(0.125, f32)


def test_casts_of_constants() -> None:
    assert simplify(Cast(const(300), i8)) == Const(44, i8)
    assert simplify(Cast(const(3), f32)) == Const(3.0, f32)
    kept = Cast(Const(0.1, f32), bf16)
    assert simplify(kept) is kept
    assert simplify(Cast(Read("x", (), f32), f32)) == Read("x", (), f32)
    assert simplify(Bitcast(Const(0.1, f32), i32)) == Bitcast(Const(0.1, f32), i32)


def test_a_simple_kernel_comes_back_as_the_same_object() -> None:
    where = (op("lt", add(mul(jo, 128), j), N),)
    total = Reduce("sum", (Axis("k", N),), (), Read("x", (k,), f32))
    body = loop(
        "jo", op("cdiv", N, const(128)), loop("j", 128, Store("y", (j,), total), where=where)
    )
    kernel = Kernel(
        "f", (Dim("N"),), (Param("x", f32, (N,)),), (Param("y", f32, (const(128),)),), (), (body,)
    )
    assert simplify(kernel) is kernel
