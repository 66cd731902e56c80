"""Bessel functions, as `specials` computes its own: power series, which for I have terms
of one sign, and asymptotic expansions from where these are as good."""

from __future__ import annotations

import math
from collections.abc import Callable

from kir.frontends.torch.specials import (
    EULER,
    INF,
    NAN,
    F,
    Stages,
    as_row,
    call,
    horner,
    where,
)
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import Value

FAR = 20.0
"""J, Y and I change to the asymptotic expansion here: its least term is exp(-40). The greatest term
of a series is below 1e8 times the function, so that 1e-8 of the amplitude is lost."""
FAR_K = 9.0
"""K changes here: the least term of the expansion is exp(-18), and the series, a difference of
terms like exp(9) that is like exp(-9), keeps 2e-8."""
TERMS, FAR_TERMS = 40, 14


def _term(k: int, order: int) -> float:
    """Of (x^2/4)^k in I (x/2)^-order."""
    return 1 / (math.factorial(k) * math.factorial(k + order))


def _harmonic(k: int) -> float:
    return sum(1 / j for j in range(1, k + 1))


def _hankel(k: int, order: int) -> float:
    """a_k [10.17.1]."""
    found = 1.0
    for j in range(1, k + 1):
        found *= (4 * order * order - (2 * j - 1) ** 2) / (8 * j)
    return found


def _quarter(st: Stages, x: Value, edge: float) -> Value:
    """x^2/4 up to an edge: beyond it the series is not used, and is to overflow nothing."""
    return st(lambda x: 0.25 * call("min", abs(x), edge) * call("min", abs(x), edge), x)


def _i_scaled(order: int) -> Callable[[Stages, Value], Value]:
    """exp(-|x|) I(x), by [10.25.2] and [10.40.1]."""

    def made(st: Stages, x: Value) -> Value:
        q = _quarter(st, x, FAR)
        near = st(lambda q: horner(q, [_term(k, order) for k in range(TERMS)]), q)
        far = st(
            lambda x: horner(1 / call("max", abs(x), FAR), [
                (-1) ** k * _hankel(k, order) for k in range(FAR_TERMS)]), x)  # fmt: skip

        def both(x: F, n: F, f: F) -> F:
            a = abs(x)
            series = call("exp", -a) * n * (0.5 * x if order else 1.0)
            expanded = f / call("sqrt", 2 * math.pi * a)
            expanded = call("sign", x) * expanded if order else expanded
            return where(a < FAR, series, expanded)

        return st(both, x, near, far)

    return made


def _i(order: int) -> Callable[[Stages, Value], Value]:
    def made(st: Stages, x: Value) -> Value:
        scaled = _i_scaled(order)(st, x)

        return st(lambda x, s: s * call("exp", abs(x)), x, scaled)

    return made


def _j(order: int) -> Callable[[Stages, Value], Value]:
    """[10.2.2], and [10.17.3]."""

    def made(st: Stages, x: Value) -> Value:
        q = _quarter(st, x, FAR)
        near = st(lambda q: horner(q, [(-1) ** k * _term(k, order) for k in range(TERMS)]), q)
        wave = _wave(st, x, order)[0]

        def both(x: F, n: F, w: F) -> F:
            series = n * (0.5 * x) if order else n
            turned = call("sign", x) * w if order else w
            return where(abs(x) < FAR, series, turned)

        return st(both, x, near, wave)

    return made


def _wave(st: Stages, x: Value, order: int) -> tuple[Value, Value]:
    """J and Y of |x| far out. Of x less the phase, cos and sin come from those of x."""

    def part(odd: int) -> Callable[[F], F]:
        terms = [(-1) ** k * _hankel(2 * k + odd, order) for k in range(FAR_TERMS // 2)]

        def found(x: F) -> F:
            r = 1 / call("max", abs(x), FAR)
            return horner(r * r, terms) * r if odd else horner(r * r, terms)

        return found

    even, odd = st(part(0), x), st(part(1), x)
    # x - pi/4, and x - 3pi/4
    root = math.sqrt(0.5)

    def cosine(x: F) -> F:
        c, s = call("cos", abs(x)), call("sin", abs(x))
        return root * (s - c if order else c + s)

    def sine(x: F) -> F:
        c, s = call("cos", abs(x)), call("sin", abs(x))
        return root * (-s - c if order else s - c)

    c, s = st(cosine, x), st(sine, x)
    size = st(lambda x: call("sqrt", 2 / (math.pi * call("max", abs(x), FAR))), x)
    j = st(lambda z, p, q, c, s: z * (p * c - q * s), size, even, odd, c, s)
    y = st(lambda z, p, q, c, s: z * (p * s + q * c), size, even, odd, c, s)
    return j, y


def _y(order: int) -> Callable[[Stages, Value], Value]:
    """[10.8.1] and [10.17.4]; -inf at 0, NaN below."""

    def made(st: Stages, x: Value) -> Value:
        q = _quarter(st, x, FAR)
        own = st(lambda q: horner(q, [(-1) ** k * _term(k, order) for k in range(TERMS)]), q)
        other = st(lambda q: horner(q, _y_terms(order)), q)
        wave = _wave(st, x, order)[1]

        def both(x: F, j: F, r: F, w: F) -> F:
            half = 0.5 * x
            log = call("log", half) + EULER
            if order:
                near = (2 * log * j * half - half * r - 2 / x) / math.pi
            else:
                near = (2 / math.pi) * (log * j + r)
            found = where(x < FAR, near, w)
            return where(x > 0.0, found, where(call("eq", x, 0.0), -INF, NAN))

        return st(both, x, own, other, wave)

    return made


def _y_terms(order: int) -> list[float]:
    """What goes beside the logarithm and Euler's number."""
    if order:
        return [(-1) ** k * (_harmonic(k) + _harmonic(k + 1)) * _term(k, 1) for k in range(TERMS)]
    return [-((-1) ** k) * _harmonic(k) * _term(k, 0) for k in range(TERMS)]


def _k(order: int, scaled: bool) -> Callable[[Stages, Value], Value]:
    """[10.31.1] and [10.31.2], [10.40.2]; inf at 0, NaN below."""

    def made(st: Stages, x: Value) -> Value:
        q = _quarter(st, x, FAR_K)
        own = st(lambda q: horner(q, [_term(k, order) for k in range(TERMS)]), q)
        other = st(lambda q: horner(q, _k_terms(order)), q)
        far = st(lambda x: horner(1 / call("max", x, FAR_K), [
            _hankel(k, order) for k in range(18)]), x)  # fmt: skip

        def both(x: F, i: F, r: F, f: F) -> F:
            half = 0.5 * call("min", x, FAR_K)
            log = call("log", half) + EULER
            near = 1 / x + half * (log * i - r) if order else r - log * i
            expanded = f * call("sqrt", math.pi / (2 * x))
            if scaled:
                near = near * call("exp", call("min", x, FAR_K))
            else:
                expanded = expanded * call("exp", -x)
            found = where(x < FAR_K, near, expanded)
            return where(x > 0.0, found, where(call("eq", x, 0.0), INF, NAN))

        return st(both, x, own, other, far)

    return made


def _k_terms(order: int) -> list[float]:
    if order:
        return [(_harmonic(k) + _harmonic(k + 1)) / 2 * _term(k, 1) for k in range(TERMS)]
    return [_harmonic(k) * _term(k, 0) for k in range(TERMS)]


def _spherical_j0(st: Stages, x: Value) -> Value:
    """sin(x) / x."""

    def quotient(x: F) -> F:
        found = where(call("eq", x, 0.0), 1.0, call("sin", x) / x)
        return where(call("isinf", x), 0.0, found)

    return st(quotient, x)


BESSELS: dict[str, Structural] = {
    "prims.bessel_i0.default": as_row(_i(0)),
    "prims.bessel_i0e.default": as_row(_i_scaled(0)),
    "prims.bessel_i1.default": as_row(_i(1)),
    "prims.bessel_i1e.default": as_row(_i_scaled(1)),
    "prims.bessel_j0.default": as_row(_j(0)),
    "prims.bessel_j1.default": as_row(_j(1)),
    "special_bessel_j0.default": as_row(_j(0)),
    "special_bessel_j1.default": as_row(_j(1)),
    "special_bessel_y0.default": as_row(_y(0)),
    "special_bessel_y1.default": as_row(_y(1)),
    "special_modified_bessel_i0.default": as_row(_i(0)),
    "special_modified_bessel_i1.default": as_row(_i(1)),
    "special_modified_bessel_k0.default": as_row(_k(0, False)),
    "special_modified_bessel_k1.default": as_row(_k(1, False)),
    "special_scaled_modified_bessel_k0.default": as_row(_k(0, True)),
    "special_scaled_modified_bessel_k1.default": as_row(_k(1, True)),
    "prims.spherical_bessel_j0.default": as_row(_spherical_j0),
}
