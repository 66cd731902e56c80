"""Special functions, in f64 of operands of at most 32 bits, whose results are then rounded once.

All are series, recurrences and asymptotic expansions whose remainders are known; numbers in
brackets are those of the NIST Digital Library of Mathematical Functions (https://dlmf.nist.gov).
Each function says where it changes from one to the other, and the relative error there. An f64
operand is refused: these errors are below half a unit of f32, not of f64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from kir.dtypes import DTYPES
from kir.errors import UnsupportedError
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import Value, cast, pointwise
from kir.ir import Const, Expr
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering

f64 = DTYPES["f64"]
EULER = 0.57721566490153286061
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class F:
    """An f64 (or a bool) expression with Python's operators."""

    e: Expr

    def __add__(self, other: F | float) -> F:
        return call("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: F | float) -> F:
        return call("sub", self, other)

    def __rsub__(self, other: F | float) -> F:
        return call("sub", other, self)

    def __mul__(self, other: F | float) -> F:
        return call("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: F | float) -> F:
        return call("div", self, other)

    def __rtruediv__(self, other: F | float) -> F:
        return call("div", other, self)

    def __neg__(self) -> F:
        return call("neg", self)

    def __lt__(self, other: F | float) -> F:
        return call("lt", self, other)

    def __gt__(self, other: F | float) -> F:
        return call("gt", self, other)

    def __abs__(self) -> F:
        return call("abs", self)


def call(name: str, *args: F | float) -> F:
    """An op of expressions and numbers."""
    return F(op(name, *(a.e if isinstance(a, F) else Const(float(a), f64) for a in args)))


def where(condition: F, a: F | float, b: F | float) -> F:
    return call("select", condition, a, b)


def horner(x: F, coefficients: Sequence[float]) -> F:
    """The polynomial of `x` with coefficients from that of the constant upwards."""
    found: F | float = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        found = x * found + c
    return found if isinstance(found, F) else F(Const(found, f64))


class Stages:
    """Values in f64 that are stored, so that an expression names them once."""

    def __init__(self, low: Lowering) -> None:
        self.low = low

    def __call__(self, function: Callable[..., F], *values: Value) -> Value:
        made = pointwise(lambda *e: function(*(F(x) for x in e)).e, values, f64, heavy=True)
        return self.low.keep(made)


Special = Callable[[Stages, Value], Value]


def as_row(function: Special) -> Structural:
    """A row for a function of one operand, which torch takes as its result's dtype."""

    def row(low: Lowering, x: Value) -> Value:
        dtype = low.out.dtype
        if dtype.bits > 32:
            raise UnsupportedError(f"special functions of {dtype} are not compiled")
        wide = low.keep(pointwise(lambda e: cast(cast(e, dtype), f64), [x], f64))
        return pointwise(lambda e: cast(e, dtype), [function(Stages(low), wide)], dtype)

    return row


# --- gamma -----------------------------------------------------------------------------------

SHIFT = 8
"""Stirling's series are taken at 8 or more, where the first term left out is below 1e-16."""
BERNOULLI = tuple(
    float(Fraction(*b))
    for b in ((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510))
)
"""B2, B4, ..."""


def _upper(st: Stages, x: Value) -> tuple[Value, Value]:
    """`x`, or 1 - x where that is greater; and the same moved to 8 or more."""
    up = st(lambda x: where(x < 0.5, 1 - x, x), x)
    return up, st(lambda u: where(u < SHIFT, u + SHIFT, u), up)


def _sin_pi(x: F) -> F:
    """sin(pi x), of x less its nearest integer, without the sign."""
    return abs(call("sin", math.pi * (x - call("round", x))))


def lgamma(st: Stages, x: Value) -> Value:
    """[5.11.1] at 8 or more, [5.5.1] down to 1/2, [5.5.3] below. The absolute error is below 4e-15
    of the greatest term, so that it is small beside an f32 next to the zeros at 1 and 2 too."""
    up, z = _upper(st, x)
    series = st(lambda z: horner(1 / (z * z), [
        b / ((2 * k + 2) * (2 * k + 1)) for k, b in enumerate(BERNOULLI)]) / z, z)  # fmt: skip

    def product(u: F) -> F:
        found = u
        for k in range(1, SHIFT):
            found = found * (u + k)
        return where(u < SHIFT, found, 1.0)

    below = st(product, up)
    value = st(
        lambda z, s, p: (z - 0.5) * call("log", z) - z + 0.5 * math.log(2 * math.pi) + s
        - call("log", p), z, series, below)  # fmt: skip

    def turned(x: F, v: F) -> F:
        low = math.log(math.pi) - call("log", _sin_pi(x)) - v
        found = where(x < 0.5, low, v)
        found = where(call("or", call("eq", x, 1.0), call("eq", x, 2.0)), 0.0, found)
        return where(call("isinf", x), INF, found)

    return st(turned, x, value)


def digamma(st: Stages, x: Value) -> Value:
    """[5.11.2], [5.5.2], [5.5.4]; -inf with the sign of a zero, NaN at the other poles."""
    up, z = _upper(st, x)
    series = st(lambda z: horner(1 / (z * z), [
        b / (2 * k + 2) for k, b in enumerate(BERNOULLI)]) / (z * z), z)  # fmt: skip

    def steps(u: F) -> F:
        found = 1 / u
        for k in range(1, SHIFT):
            found = found + 1 / (u + k)
        return where(u < SHIFT, found, 0.0)

    below = st(steps, up)
    value = st(lambda z, s, b: call("log", z) - 0.5 / z - s - b, z, series, below)

    def turned(x: F, v: F) -> F:
        part = x - call("round", x)
        pole = call("eq", part, 0.0)
        low = v - math.pi / call("tan", math.pi * part)
        found = where(x < 0.5, where(pole, NAN, low), where(call("isinf", x), INF, v))
        return where(call("eq", x, 0.0), -1 / x, found)

    return st(turned, x, value)


def polygamma(low: Lowering, n: int, x: Value) -> Value:
    """The derivative number `n` of digamma: Hurwitz's zeta of n + 1 by Euler and Maclaurin
    [25.11.5], with ten terms before it; by [5.15.6] below 1/2."""
    if n == 0:
        return as_row(digamma)(low, x)  # type: ignore[return-value]
    dtype = low.out.dtype
    if dtype.bits > 32 or n > 12:
        raise UnsupportedError(f"polygamma {n} of {dtype} is not compiled")
    st = Stages(low)
    wide = low.keep(pointwise(lambda e: cast(cast(e, dtype), f64), [x], f64))
    up, _ = _upper(st, wide)

    def power(u: F, count: int) -> F:
        found = u
        for _ in range(count - 1):
            found = found * u
        return found

    s, terms = n + 1, 10

    def head(u: F) -> F:
        found = 1 / power(u, s)
        for k in range(1, terms):
            found = found + 1 / power(u + k, s)
        return found

    def tail(v: F) -> F:
        """At v = u + 10, over v^s."""
        rising, coefficients = float(s), []
        for j, b in enumerate(BERNOULLI):
            coefficients.append(b / math.factorial(2 * j + 2) * rising)
            rising *= (s + 2 * j + 1) * (s + 2 * j + 2)
        return v / (s - 1) + 0.5 + horner(1 / (v * v), coefficients) / v

    begin, far = st(head, up), st(lambda u: u + float(terms), up)
    rest, scale = st(tail, far), st(lambda v: 1 / power(v, s), far)
    sign = -1.0 if n % 2 == 0 else 1.0
    whole = math.factorial(n)
    cotangent = st(lambda x: 1 / call("tan", math.pi * (x - call("round", x))), wide)
    derivative = _cotangent(n)

    def turned(x: F, b: F, r: F, c: F, t: F) -> F:
        value = sign * whole * (b + r * c)
        # psi(1 - x) + (-1)^(n + 1) psi(x) = (-1)^n pi d^n/dx^n cot(pi x)
        slope = math.pi ** (n + 1) * horner(t, derivative)
        below = (value if n % 2 == 0 else -value) - slope
        pole = call("eq", x - call("round", x), 0.0)
        found = where(x < 0.5, where(pole, sign * INF, below), value)
        return where(call("isinf", x), where(x > 0.0, 0.0, sign * INF), found)

    made = st(turned, wide, begin, rest, scale, cotangent)
    return pointwise(lambda e: cast(e, dtype), [made], dtype)


def _cotangent(n: int) -> list[float]:
    """d^n/dy^n cot(y) as a polynomial of cot(y), whose own derivative is -1 - cot^2."""
    found = [0.0, 1.0]
    for _ in range(n):
        slope = [k * c for k, c in enumerate(found)][1:]
        found = [0.0] * (len(slope) + 2)
        for k, c in enumerate(slope):
            found[k] -= c
            found[k + 2] -= c
    return found


# --- errors of normal numbers ----------------------------------------------------------------


def erfcx(st: Stages, x: Value) -> Value:
    """exp(x^2) erfc(x): of 1 - erf below 3 (relative error 1e-11); then the continued fraction
    [7.9.1], 14 deep (1e-14)."""

    def far(a: F) -> F:
        a = call("max", a, 3.0)
        found: F = a
        for k in range(14, 0, -1):
            found = a + (k / 2) / found
        return (1 / math.sqrt(math.pi)) / found

    tail = st(far, st(abs, x))
    return st(lambda x, t: where(x < 3.0, call("exp", x * x) * (1 - call("erf", x)), t), x, tail)


def erfc(st: Stages, x: Value) -> Value:
    scaled = erfcx(st, x)
    return st(lambda x, s: where(x < 3.0, 1 - call("erf", x), call("exp", -(x * x)) * s), x, scaled)


def erfinv(st: Stages, x: Value) -> Value:
    """Winitzki's estimate (2008), 2e-3 off, and two steps of Halley's, which cube the error."""
    a = 0.147

    def estimate(x: F) -> F:
        log = call("log1p", -(x * x))
        half = 2 / (math.pi * a) + 0.5 * log
        root = call("sqrt", half * half - log / a)
        return call("sign", x) * call("sqrt", (-log / a) / (root + half))

    def step(z: F, x: F) -> F:
        u = (call("erf", z) - x) * (0.5 * math.sqrt(math.pi)) * call("exp", z * z)
        return z - u / (1 + z * u)

    z = st(step, st(step, st(estimate, x), x), x)

    def ends(z: F, x: F) -> F:
        found = where(call("eq", abs(x), 1.0), x * INF, z)
        found = where(call("eq", x, 0.0), x, found)
        return where(abs(x) > 1.0, NAN, found)

    return st(ends, z, x)


def ndtri(st: Stages, p: Value) -> Value:
    """The inverse of the normal distribution: an estimate 4.5e-4 off (Abramowitz and Stegun
    26.2.23) and two steps of Halley's."""
    y = st(lambda p: call("min", p, 1 - p), p)

    def estimate(y: F) -> F:
        t = call("sqrt", -2 * call("log", y))
        top = horner(t, [2.515517, 0.802853, 0.010328])
        return t - top / horner(t, [1.0, 1.432788, 0.189269, 0.001308])

    z = st(estimate, y)
    for _ in range(2):
        scaled = erfcx(st, st(lambda z: z * math.sqrt(0.5), z))

        def step(z: F, y: F, s: F) -> F:
            u = (0.5 * s - y * call("exp", 0.5 * z * z)) * math.sqrt(2 * math.pi)
            return z + u / (1 - 0.5 * z * u)

        z = st(step, z, y, scaled)

    def ends(z: F, p: F) -> F:
        found = where(p < 0.5, -z, where(call("eq", p, 0.5), 0.0, z))
        found = where(call("eq", p, 0.0), -INF, where(call("eq", p, 1.0), INF, found))
        return where(call("or", p < 0.0, p > 1.0), NAN, found)

    return st(ends, z, p)


def log_ndtr(st: Stages, x: Value) -> Value:
    scaled = erfcx(st, st(lambda x: -x * math.sqrt(0.5), x))
    upper = erfc(st, st(lambda x: x * math.sqrt(0.5), x))

    def both(x: F, s: F, u: F) -> F:
        return where(x < -1.0, call("log", 0.5 * s) - 0.5 * x * x, call("log1p", -0.5 * u))

    return st(both, x, scaled, upper)


SPECIALS: dict[str, Structural] = {
    "prims.lgamma.default": as_row(lgamma),
    "prims.digamma.default": as_row(digamma),
    "polygamma.default": lambda low, n, x: polygamma(low, n, x),
    "special_polygamma.default": lambda low, n, x: polygamma(low, n, x),
    "prims.erf_inv.default": as_row(erfinv),
    "prims.erfc.default": as_row(erfc),
    "prims.erfcx.default": as_row(erfcx),
    "special_erfcx.default": as_row(erfcx),
    "prims.ndtri.default": as_row(ndtri),
    "special_ndtri.default": as_row(ndtri),
    "special_log_ndtr.default": as_row(log_ndtr),
}
