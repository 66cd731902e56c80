"""Every scalar law on numbers: exact ones bit for bit on all that is special, others within the
error that they state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kir.dtypes import DTYPES, DType, bool_, f32, f64
from kir.errors import VerificationError
from kir.ir import (
    Axis,
    Cast,
    Const,
    Define,
    Dim,
    Expr,
    Kernel,
    Node,
    Op,
    Param,
    Read,
    Var,
    transform,
)
from kir.ops import compute
from kir.rewrites.laws import BEYOND_THE_RING, CONDITIONS, GROUPS, LAWS, LETS, Law
from kir.rewrites.rules import apply_law
from kir.syntax import parse_kernel
from kir.testing import assert_ring_equal, make_array, same_bits

Array = np.ndarray[Any, Any]
NAMES = ("a", "b", "c", "d", "x", "y")
COUNT = 1500
LITERALS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 127, -1, -2, -3, 0, 0.5, 0.25, 10, 0.1)


def sides(law: Law, dtype: DType) -> list[tuple[Expr, Expr]]:
    """Instances of both sides of a law: one, or one for each literal that it may hold."""
    inputs = ", ".join(f"{n}: {dtype}" for n in (*NAMES, "k")) + ", p: bool, q: bool"
    text = f"kernel t({inputs}) -> (o: {dtype}) {{ t = {law.text.split(' -> ')[0]} o = x }}"
    pattern = first_value(text)
    shown = {n: what for n, what in law.when.items() if n != "k"}
    pattern = wrap(pattern, shown)
    if not any(isinstance(n, Read) and n.tensor == "k" for n in nodes(pattern)):
        made = apply_law(law, pattern)
        assert made is not None, f"{law.name} does not fit its own pattern"
        return [(pattern, made)]
    found = []
    for value in LITERALS:
        if dtype.is_float or (value == int(value) and dtype.holds(int(value))):
            number = float(np.asarray(value).astype(dtype.numpy)) if dtype.is_float else int(value)
            left = put_literal(pattern, Const(number, dtype))
            right = apply_law(law, left)
            if right is not None:
                found.append((left, right))
    return found


def first_value(text: str) -> Expr:
    stmt = parse_kernel(text).body[0]
    assert isinstance(stmt, Define)
    return stmt.value


def nodes(e: Expr) -> list[Expr]:
    below = e.args if isinstance(e, Op) else (e.value,) if isinstance(e, Cast) else ()
    return [e, *(n for b in below for n in nodes(b))]


def wrap(e: Expr, shown: dict[str, str]) -> Expr:
    """The pattern with `abs(x)` for every `x` that must be shown to be nonnegative."""
    if isinstance(e, Read) and e.tensor in shown:
        return Op("abs", (e,), e.type)
    if isinstance(e, Op):
        return replace(e, args=tuple(wrap(a, shown) for a in e.args))
    return e


def put_literal(e: Expr, k: Const) -> Expr:
    if isinstance(e, Read) and e.tensor == "k":
        return k
    if isinstance(e, Op):
        return replace(e, args=tuple(put_literal(a, k) for a in e.args))
    return e


def value_of(e: Expr, given: dict[str, Array]) -> Array:
    if isinstance(e, Const):
        return np.asarray(e.value).astype(e.dtype.numpy)
    if isinstance(e, Read):
        return given[e.tensor]
    assert isinstance(e, Op), e
    made: Array = compute(e.name, [value_of(a, given) for a in e.args], e.dtype)
    return made


def draw(dtype: DType, profile: str) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    given = {n: make_array(dtype, (COUNT,), profile, rng) for n in NAMES}
    given |= {n: make_array(bool_, (COUNT,), profile, rng) for n in ("p", "q")}
    for n in NAMES[1:]:  # equal operands, and signs apart, are rare otherwise
        same = rng.random(COUNT) < 0.1
        given[n] = np.where(same, given["a"], given[n]).astype(dtype.numpy)
    return given


def dtypes(law: Law) -> list[DType]:
    return [d for d in DTYPES.values() if d.kind in law.kinds]


EXACT = [law for law in LAWS.values() if any(law.effect_for(d) == "exact" for d in dtypes(law))]
CLOSE = [law for law in LAWS.values() if law.effect != "exact" and "float" in law.kinds]


def difference(left: Expr, right: Expr, dtype: DType) -> str | None:
    """Values on which both sides differ in a bit; None where none was found."""
    for profile in ("special", "wide", "tame", "integers"):
        given = draw(dtype, profile)
        got, want = value_of(right, given), value_of(left, given)
        bad = ~same_bits(np.broadcast_to(want, (COUNT,)), np.broadcast_to(got, (COUNT,)))
        if bad.any():
            at = int(np.argmax(bad))
            values = {n: v[at] for n, v in given.items()}
            return f"{values}: {want.flat[at % want.size]} and {got.flat[at % got.size]}"
    return None


@pytest.mark.parametrize("law", EXACT, ids=lambda w: w.name)
def test_exact_laws_keep_every_bit(law: Law) -> None:
    for dtype in dtypes(law):
        if law.effect_for(dtype) == "exact":
            for left, right in sides(law, dtype):
                assert difference(left, right, dtype) is None, dtype


@pytest.mark.parametrize("law", CLOSE, ids=lambda w: w.name)
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_other_laws_keep_their_bound(law: Law, dtype: DType) -> None:
    inputs = ", ".join(f"{n}: f64" for n in NAMES)
    error = first_value(f"kernel t({inputs}) -> (o: f64) {{ t = x * 0 + ({law.error}) o = x }}")
    for left, right in sides(law, dtype):
        rng = np.random.default_rng(5)
        size = np.exp2(rng.uniform(-7, 3, (len(NAMES), COUNT)))
        drawn = rng.choice([-1.0, 1.0], size.shape) * size
        drawn[:, : COUNT // 4] = rng.integers(-3, 4, (len(NAMES), COUNT // 4))
        given = {n: v.astype(dtype.numpy) for n, v in zip(NAMES, drawn, strict=True)}
        for n in law.when:
            given[n] = np.abs(given[n])
        given |= {n: rng.random(COUNT) < 0.5 for n in ("p", "q")}
        want = np.broadcast_to(value_of(left, given).astype(np.float64), (COUNT,))
        got = np.broadcast_to(value_of(right, given).astype(np.float64), (COUNT,))
        allowed = value_of(error, {n: v.astype(np.float64) for n, v in given.items()})
        with np.errstate(all="ignore"):
            asked = np.isfinite(want) & np.isfinite(got) & np.isfinite(allowed)
            far = np.abs(want - got) > allowed * dtype.unit_roundoff
            lost = np.isfinite(want) & ~np.isfinite(got)
        assert asked.sum() > COUNT // 3, "the law was hardly tried"
        assert not (far & asked).any(), f"{law.name}: {np.argmax(far & asked)}"
        assert lost.sum() <= COUNT // 4, "most results are lost"


FLOATS = [w for w in LAWS.values() if "float" in w.kinds]


def over_rows(e: Expr) -> Kernel:
    """A kernel that computes `e` for each element of its inputs."""

    def visit(n: Node) -> Node | None:
        return Read(n.tensor, (Var("i"),), n.type) if isinstance(n, Read) else None

    types = dict.fromkeys(NAMES, f32) | {"p": bool_, "q": bool_}
    inputs = tuple(Param(n, t, (Var("N"),)) for n, t in types.items())
    made = Define("o", (Axis("i", Var("N")),), transform(e, visit))
    return Kernel("t", (Dim("N"),), inputs, (Param("o", e.dtype, (Var("N"),)),), (), (made,))


@pytest.mark.parametrize("law", FLOATS, ids=lambda w: w.name)
def test_laws_hold_in_the_ring(law: Law) -> None:
    if law.name in BEYOND_THE_RING:
        assert law.effect == "approximates"
        return
    for left, right in sides(law, f32):
        assert assert_ring_equal(over_rows(left), over_rows(right)) == 0


def test_the_ring_lacks_what_it_is_said_to_lack() -> None:
    for name in BEYOND_THE_RING:
        with pytest.raises(VerificationError):
            for left, right in sides(LAWS[name], f32):
                assert_ring_equal(over_rows(left), over_rows(right))


def test_a_wrong_law_is_found() -> None:
    wrong = [
        Law("wrong", "a - b -> b - a", ("int",)),
        Law("wrong_nan", "select(a > b, a, b) -> max(a, b)", ("float",)),
        Law("wrong_zero", "x + 0 -> x", ("float",)),
        Law("wrong_sum", "(a + b) + c -> a + (b + c)", ("float",)),
        Law("wrong_shift", "tdiv(x, k) -> x >> m", ("int",), when={"k": "a power of two"},
            let="log2(k)"),
    ]  # fmt: skip
    for law in wrong:
        dtype = f32 if law.kinds == ("float",) else DTYPES["i32"]
        found = [difference(left, right, dtype) for left, right in sides(law, dtype)]
        assert any(found), law.text


def test_the_table_is_well_formed() -> None:
    assert len(LAWS) >= 200
    for law in LAWS.values():
        assert set(law.when.values()) <= set(CONDITIONS)
        assert not law.let or law.let in LETS
        assert (law.effect == "exact") == (law.error == ""), law.name
        assert (law.effect == "exact") == (law.bound() == ""), law.name
    for names in GROUPS.values():
        assert set(names) <= set(LAWS)
    used = {what for law in LAWS.values() for what in law.when.values()}
    assert used == set(CONDITIONS), "a condition that no law asks for"
    assert {law.let for law in LAWS.values()} - {""} == set(LETS)
