"""Running error analysis: what each op does to a value that is known up to a bound.

A float is (value, bound): the value in f64, computed from the rounded inputs without the roundings
in between, and how far a computation that rounds every op to its dtype may lie from it. Each rule
gives the value, the bound that the operands' bounds imply, and the hazards: places where the
outcome may be anything (a divisor that may be zero, a logarithm that may be of a negative number).
The bounds of functions are taken at the ends of the interval, not from a derivative, wherever the
function is monotone. `ROUNDINGS` is the error an op itself may add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kir.interpret.domain import Array
from kir.ops import OPS

Rule = Callable[..., tuple[Array, Array, Array]]
NOWHERE: Array = np.zeros((), np.bool_)

ROUNDINGS: dict[str, float] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "fma", "sqrt"), 1.0),
    **dict.fromkeys(("neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "trunc"), 0.0),
    **dict.fromkeys(("recip", "rsqrt", "log", "log2", "log1p", "exp2"), 8.0),
    **dict.fromkeys(("exp", "expm1", "sigmoid", "sin", "cos"), 8.0),
    **dict.fromkeys(("tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "erf"), 16.0),
    "pow": 16.0,
}
"""How far the result of one op may be from the exact one, in unit roundoffs (half ulps) of its
dtype: 1 where IEEE 754 rounds correctly, more for functions, which no standard pins down."""
ARGUMENT_ROUNDINGS = {"exp": 2.0, "sigmoid": 2.0, "sinh": 2.0, "cosh": 2.0, "exp2": 1.0, "pow": 4.0}
"""Functions that are built on exp2: further roundoffs per unit of the exponent's size."""


def _interval(v: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The bound of a value within [low, high], and where either end says nothing about it."""
    bound = np.maximum(high - v, v - low)
    finite = np.isfinite(v)
    hazard = ~finite & (np.isfinite(low) | np.isfinite(high))
    hazard = hazard | (finite & ~(np.isfinite(low) & np.isfinite(high)))
    return np.where(v == low, np.maximum(high - v, 0), bound), hazard


def _monotone(
    name: str, falling: bool = False, low: float = -math.inf, high: float = math.inf
) -> Rule:
    """A monotone function on [low, high], outside of which it is NaN."""
    f = OPS[name].numpy

    def rule(a: Array, ea: Array) -> tuple[Array, Array, Array]:
        v = f(a)
        ends = f(a - ea), f(a + ea)
        bottom, top = reversed(ends) if falling else ends
        bound, hazard = _interval(v, bottom, top)
        leaves = (ea > 0) & ((a - ea < low) | (a + ea > high))
        return v, np.where(ea == 0, 0.0, bound), (ea > 0) & (hazard | leaves)

    return rule


def _add(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
    return a + b, ea + eb, NOWHERE


def _sub(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
    return a - b, ea + eb, NOWHERE


def _product_bound(a: Array, ea: Array, b: Array, eb: Array) -> Array:
    if not (ea.any() or eb.any()):
        return np.zeros(())
    return np.asarray(np.abs(a) * eb + np.abs(b) * ea + ea * eb)


def _zero_times_infinity(a: Array, ea: Array, b: Array, eb: Array) -> Array:
    zero_a, zero_b = (ea > 0) & (np.abs(a) <= ea), (eb > 0) & (np.abs(b) <= eb)
    return np.asarray((zero_a & np.isinf(b)) | (zero_b & np.isinf(a)))


def _mul(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
    return a * b, _product_bound(a, ea, b, eb), _zero_times_infinity(a, ea, b, eb)


def _fma(
    a: Array, ea: Array, b: Array, eb: Array, c: Array, ec: Array
) -> tuple[Array, Array, Array]:
    bound = _product_bound(a, ea, b, eb) + ec
    # fused: rounding the product first would lose digits that cancellation makes count
    return OPS["fma"].numpy(a, b, c), bound, _zero_times_infinity(a, ea, b, eb)


def _div(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
    v = a / b
    least = np.abs(b) - eb
    crosses = (eb > 0) & (least <= 0)
    bound = (ea + np.where(eb > 0, np.abs(v) * eb, 0.0)) / np.where(crosses, 1.0, least)
    return (
        v,
        np.where(np.isinf(b) | ((ea == 0) & (eb == 0)), 0.0, bound),
        crosses | ((b == 0) & (ea > 0) & (np.abs(a) <= ea)),
    )


def _recip(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    one = np.ones(())
    return _div(one, np.zeros(()), a, ea)


def _neg(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    return -a, ea, NOWHERE


def _abs(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    return np.abs(a), ea, NOWHERE


def _sign(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    unsure = (ea > 0) & (np.abs(a) <= ea)
    return np.sign(a), np.where(unsure, 2.0, 0.0), NOWHERE


def _extreme(f: Callable[[Array, Array], Array]) -> Rule:
    def rule(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
        v = f(a, b)
        if not (ea.any() or eb.any()):
            return v, np.zeros(()), NOWHERE
        low, high = f(a - ea, b - eb), f(a + ea, b + eb)
        bound = np.where(np.isfinite(v), np.maximum(high - v, v - low), 0.0)
        return v, bound, np.isinf(ea) | np.isinf(eb)

    return rule


def _lipschitz(name: str, most: float, span: float) -> Rule:
    """A function whose slope is at most `most` and whose values lie within `span`."""
    f = OPS[name].numpy

    def rule(a: Array, ea: Array) -> tuple[Array, Array, Array]:
        return f(a), np.minimum(most * ea, span), (ea > 0) & ~np.isfinite(a)

    return rule


def _tan(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    branch = [np.floor((a + s * ea) / math.pi + 0.5) for s in (-1.0, 1.0)]
    v, bound, hazard = _monotone("tan")(a, ea)
    return v, bound, hazard | ((ea > 0) & (branch[0] != branch[1]))


def _erf(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    nearest = np.maximum(np.abs(a) - ea, 0.0)
    slope = 2 / math.sqrt(math.pi) * np.exp(-nearest * nearest)
    bound = np.where(ea > 0, np.minimum(slope * ea, 2.0), 0.0)
    return OPS["erf"].numpy(a), bound, NOWHERE


def _cosh(a: Array, ea: Array) -> tuple[Array, Array, Array]:
    v, size = np.cosh(a), np.abs(a)
    bound, hazard = _interval(v, np.cosh(np.maximum(size - ea, 0)), np.cosh(size + ea))
    return v, np.where(ea == 0, 0.0, bound), (ea > 0) & hazard


def _pow(a: Array, ea: Array, b: Array, eb: Array) -> tuple[Array, Array, Array]:
    v, size = np.power(a, b), np.abs(a)
    exact = (ea == 0) & (eb == 0)
    crosses = (ea > 0) & (size <= ea)
    least = np.where(crosses, 1.0, size - ea)
    logarithm = np.abs(np.log(np.where(size > 0, size, 1.0)))
    spread = (np.abs(b) + eb) * np.log1p(ea / np.where(least > 0, least, 1.0)) + eb * logarithm
    hazard = crosses | ((a <= 0) & (eb > 0))
    # pow(1, anything) and pow(anything, 0) are 1, whatever its neighbours are
    hazard = (
        hazard
        | (~np.isfinite(b) & (np.abs(size - 1) <= ea))
        | (~np.isfinite(a) & (np.abs(b) <= eb))
    )
    return v, np.where(exact, 0.0, np.abs(v) * np.expm1(spread)), ~exact & hazard


def _atan2(y: Array, ey: Array, x: Array, ex: Array) -> tuple[Array, Array, Array]:
    v = np.arctan2(y, x)
    exact = (ey == 0) & (ex == 0)
    least = np.hypot(np.maximum(np.abs(y) - ey, 0), np.maximum(np.abs(x) - ex, 0))
    slope = np.where(least > 0, (ey + ex) / np.where(least > 0, least, 1.0), 2 * math.pi)
    cut = (x - ex <= 0) & (np.abs(y) <= ey)  # so too where the sign of a zero decides
    bound = np.where(exact, 0.0, np.minimum(slope, 2 * math.pi))
    return v, np.where(cut, 2 * math.pi, bound), NOWHERE


RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "fma": _fma,
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    "abs": _abs,
    "sign": _sign,
    **{name: _monotone(name) for name in ("floor", "ceil", "round", "trunc")},
    **{name: _monotone(name) for name in ("exp", "exp2", "expm1", "atan", "sinh", "tanh")},
    "sigmoid": _monotone("sigmoid"),
    "log": _monotone("log", low=0.0),
    "log2": _monotone("log2", low=0.0),
    "log1p": _monotone("log1p", low=-1.0),
    "sqrt": _monotone("sqrt", low=0.0),
    "rsqrt": _monotone("rsqrt", falling=True, low=0.0),
    "recip": _recip,
    "pow": _pow,
    "sin": _lipschitz("sin", 1.0, 2.0),
    "cos": _lipschitz("cos", 1.0, 2.0),
    "tan": _tan,
    "asin": _monotone("asin", low=-1.0, high=1.0),
    "acos": _monotone("acos", falling=True, low=-1.0, high=1.0),
    "atan2": _atan2,
    "cosh": _cosh,
    "erf": _erf,
}
"""The ops from floats to a float; `kir.interpret.bounded` has the others."""


@dataclass(frozen=True)
class OpError:
    """How far something put in the place of an op may be off, beside what the op itself may be:
    `roundoffs` unit roundoffs of the value, `argument` more for each unit of its operand's size,
    and `absolute`."""

    roundoffs: float = 0.0
    argument: float = 0.0
    absolute: float = 0.0


TINY = 5e-324
"""The least positive f64."""


def own_error(
    name: str, args: list[Array], value: Array, unit: float, extra: OpError | None = None
) -> Array:
    """The error that the op itself may add, in absolute terms, for a dtype of roundoff `unit`;
    `extra` is that of what stands in its place."""
    roundings: Array = np.asarray(ROUNDINGS[name])
    more = ARGUMENT_ROUNDINGS.get(name)
    if more is not None:
        size = np.abs(args[0])
        if name == "pow":
            size = np.abs(args[1] * np.log2(np.where(size > 0, size, 1.0)))
        roundings = roundings + more * np.minimum(size, 2000.0)
    if extra is None:
        return relative(roundings * unit, np.abs(value))
    roundings = roundings + extra.roundoffs + extra.argument * np.minimum(np.abs(args[0]), 2000.0)
    return relative(roundings * unit, np.abs(value)) + extra.absolute


def relative(roundoff: Array | float, size: Array) -> Array:
    """`roundoff * size`, more than 0 wherever both are: f64 must not lose it to underflow."""
    return np.maximum(roundoff * size, np.minimum(np.where(roundoff, size, 0.0), TINY))
