"""Chebyshev's polynomials of four kinds, of a degree that is data: closed forms [18.5.1 to 18.5.4],
with hyperbolic functions beyond 1, in f64 as `specials` computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kir.errors import UnsupportedError
from kir.frontends.torch.specials import F, Stages, call, f64, where
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import Value, cast, pointwise
from kir.ir import Const

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def _number(value: float) -> Value:
    constant = Const(float(value), f64)
    return Value((), f64, lambda _: constant)


def _quotient(st: Stages, a: Value, n: Value, top: float, below: float, odd: bool) -> Value:
    """f((n + top) t) / f(below t), f the sine or the cosine of t = acos(a), or the hyperbolic one
    of t = acosh(a) beyond 1. Of two sines at t = 0 the limit."""
    trig, hyperbolic = ("sin", "sinh") if odd else ("cos", "cosh")
    angle = st(lambda a: call("acos", call("min", a, 1.0)), a)

    def growth(a: F) -> F:
        t = call("max", a, 1.0) - 1.0
        return call("log1p", t + call("sqrt", 2 * t + t * t))

    grown = st(growth, a)

    def within(n: F, t: F) -> F:
        found = call(trig, (n + top) * t)
        return found / call(trig, below * t) if below else found

    def beyond(n: F, t: F) -> F:
        found = call(hyperbolic, (n + top) * t)
        return found / call(hyperbolic, below * t) if below else found

    inside, outside = st(within, n, angle), st(beyond, n, grown)

    def both(a: F, n: F, i: F, o: F) -> F:
        limit = (n + top) / below if odd else 1.0
        return where(a > 1.0, o, where(call("eq", a, 1.0), limit, i))

    return st(both, a, n, inside, outside)


Kind = Callable[[Stages, Value, Value], Value]


def _t(st: Stages, a: Value, n: Value) -> Value:
    return _quotient(st, a, n, 0.0, 0.0, False)


def _u(st: Stages, a: Value, n: Value) -> Value:
    return _quotient(st, a, n, 1.0, 1.0, True)


def _v(st: Stages, a: Value, n: Value) -> Value:
    return _quotient(st, a, n, 0.5, 0.5, False)


def _w(st: Stages, a: Value, n: Value) -> Value:
    return _quotient(st, a, n, 0.5, 0.5, True)


def _row(kind: Kind, mirrored: Kind, shifted: bool) -> Structural:
    """Of -x it is `mirrored` of x with the sign of the degree's parity."""

    def row(low: Lowering, x: Any, n: Any) -> Value:
        dtype = low.out.dtype
        if dtype.bits > 32:
            raise UnsupportedError(f"special functions of {dtype} are not compiled")
        x, n = (v if isinstance(v, Value) else _number(v) for v in (x, n))
        st = Stages(low)
        wide = [low.keep(pointwise(lambda e: cast(cast(e, dtype), f64), [v], f64)) for v in (x, n)]
        place = st(lambda e: 2 * e - 1, wide[0]) if shifted else wide[0]
        degree = st(lambda e: call("trunc", e), wide[1])
        a = st(abs, place)
        ahead, behind = kind(st, a, degree), mirrored(st, a, degree)

        def both(x: F, n: F, p: F, q: F) -> F:
            half = 0.5 * n
            even = call("eq", half, call("floor", half))
            found = where(x < 0.0, where(even, q, -q), p)
            return where(call("eq", n, 0.0), 1.0, where(n < 0.0, 0.0, found))

        made = st(both, place, degree, ahead, behind)
        return pointwise(lambda e: cast(e, dtype), [made], dtype)

    return row


CHEBYSHEV: dict[str, Structural] = {
    f"special_{prefix}chebyshev_polynomial_{letter}.{overload}": _row(kind, other, bool(prefix))
    for letter, kind, other in (("t", _t, _t), ("u", _u, _u), ("v", _v, _w), ("w", _w, _v))
    for prefix in ("", "shifted_")
    for overload in ("default", "x_scalar", "n_scalar")
}
