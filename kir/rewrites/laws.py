"""The table of scalar laws: what `rule(definition, name)` may put in the place of what.

Each law is `pattern -> replacement` in the syntax of expressions. `a b c d x y` stand for any
expression of one dtype, `p q` for any bool, `k` for a literal, `m` for one computed from `k`; where
a name occurs twice, both parts are equal. `+`, `*` and the like match either way round.

`effect` is what a law does to floats; on integers and bools all laws are exact, and wrapping is
part of them. `exact` leaves every bit, NaN, infinities and the sign of 0 included. `error` is the
most by which both sides differ as computed, in unit roundoffs of the dtype: an expression in the
same names, in which functions are as good as `kir.interpret.rules` asks of every target. It holds
barring overflow and underflow on either side. Laws about the order of sums and products, which the
ring (`kir.interpret.ring`) does not know, are called approximate though they err by 0: all others
that are not approximate hold there bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from kir.dtypes import DType, bf16, f32, f64
from kir.ir import Cast, Const, Expr, Op, Reduce
from kir.rewrites.base import Effect

Kinds = tuple[str, ...]
FLOAT: Kinds = ("float",)
SIGNED: Kinds = ("int",)
UNSIGNED: Kinds = ("uint",)
INTEGER: Kinds = ("int", "uint")
NUMBER: Kinds = ("float", "int", "uint")
WITH_SIGN: Kinds = ("float", "int")
BOOL: Kinds = ("bool",)
ANY: Kinds = ("float", "int", "uint", "bool")

Condition = Callable[[Expr], bool]
Compute = Callable[[float, DType], float]


@dataclass(frozen=True)
class Law:
    """One law. `when` says what a part must be shown to be, `let` how `m` comes from `k`."""

    name: str
    text: str
    kinds: Kinds
    effect: Effect = "exact"
    error: str = ""
    when: Mapping[str, str] = field(default_factory=dict, hash=False)
    let: str = ""
    dtypes: tuple[DType, ...] = ()
    """Those that it is about, where not all of its kinds are."""

    def is_about(self, dtype: DType) -> bool:
        return dtype.kind in self.kinds and (not self.dtypes or dtype in self.dtypes)

    def effect_for(self, dtype: DType) -> Effect:
        return self.effect if dtype.is_float else "exact"

    def bound(self) -> str:
        if self.effect == "exact":
            return ""
        size = (
            f"|difference| <= {self.error} * u"
            if self.error != "0"
            else "the same but in the sign of 0"
        )
        return f"`{self.text}`: {size}, barring overflow and underflow"


BEYOND_THE_RING = frozenset({
    "abs_of_mul", "mul_of_abs", "abs_of_div", "div_of_abs", "max_of_adds", "add_of_max",
    "min_of_adds", "add_of_min", "sqrt_of_square", "square_of_sqrt", "square_of_rsqrt",
    "max_of_exps", "log_of_exp", "exp_of_log", "add_of_logs", "sub_of_logs", "log_of_recip",
    "log_of_sqrt", "tanh_of_log1p",
})  # fmt: skip
"""Laws of floats that the ring lacks: it has no order that sums and products keep, squares without
roots, and no inverse of `exp`; nor is anything so great there that it may be cut off."""


# --- conditions ----------------------------------------------------------------------------------


def nonnegative(e: Expr) -> bool:
    """Whether the value is shown to be at least 0, or NaN."""
    match e:
        case Const(value):
            return value >= 0
        case Op("abs" | "exp" | "exp2" | "sqrt" | "rsqrt" | "sigmoid" | "cosh" | "rand"):
            return e.dtype.is_float
        case Op("mul", (a, b)) if a == b and e.dtype.is_float:
            return True
        case Op("mul" | "div" | "add" | "min" | "pow", args) if e.dtype.is_float:
            return all(nonnegative(a) for a in args)
        case Op("max", args):
            return any(nonnegative(a) for a in args)
        case Op("select", (_, a, b)):
            return nonnegative(a) and nonnegative(b)
        case Cast(value):
            return value.dtype.kind == "uint" or value.dtype.is_bool or nonnegative(value)
        case Reduce("sum" | "prod", body=body):
            return body.dtype.is_float and nonnegative(body)
    return False


def _power_of_two(e: Expr) -> bool:
    if not isinstance(e, Const) or not math.isfinite(e.value) or e.value <= 0:
        return False
    whole = Fraction(e.value)
    return (
        (whole.numerator & (whole.numerator - 1))
        == 0
        == (whole.denominator & (whole.denominator - 1))
    )


def _invertible(e: Expr) -> bool:
    """A float literal whose reciprocal is a float of its dtype: no rounding differs then."""
    if not isinstance(e, Const) or not math.isfinite(e.value) or e.value == 0:
        return False
    inverse = float(e.dtype.numpy.type(1 / e.value))
    return math.isfinite(inverse) and Fraction(inverse) * Fraction(e.value) == 1


def _one_less(e: Expr) -> bool:
    """A literal that is 2^m - 1 for an m of at least 2."""
    return isinstance(e, Const) and e.value >= 3 and _power_of_two(Const(e.value + 1, e.dtype))


def _one_more(e: Expr) -> bool:
    return isinstance(e, Const) and e.value >= 3 and _power_of_two(Const(e.value - 1, e.dtype))


CONDITIONS: dict[str, Condition] = {
    "nonnegative": nonnegative,
    "a power of two": _power_of_two,
    "a literal with an exact reciprocal": _invertible,
    "a literal but 0": lambda e: isinstance(e, Const) and e.value != 0,
    "a literal from 0 below the width": lambda e: (
        isinstance(e, Const) and 0 <= e.value < e.dtype.bits - (e.dtype.kind == "int")
    ),
    "one less than a power of two": _one_less,
    "one more than a power of two": _one_more,
}
LETS: dict[str, Compute] = {
    "log2(k)": lambda k, t: int(k).bit_length() - 1,
    "log2(k + 1)": lambda k, t: (int(k) + 1).bit_length() - 1,
    "log2(k - 1)": lambda k, t: (int(k) - 1).bit_length() - 1,
    "k - 1": lambda k, t: int(k) - 1,
    "2^k": lambda k, t: 1 << int(k),
    "1 / k": lambda k, t: 1.0 / k,
}


# --- the table -----------------------------------------------------------------------------------


def _exact(name: str, text: str, kinds: Kinds, let: str = "", **when: str) -> Law:
    return Law(name, text, kinds, when=when, let=let)


def _real(name: str, text: str, kinds: Kinds, error: str, **when: str) -> Law:
    return Law(name, text, kinds, "reassociates", error, when)


def _near(name: str, text: str, error: str, **when: str) -> Law:
    return Law(name, text, FLOAT, "approximates", error, when)


POWER = "a power of two"
ARITHMETIC = (
    # signs
    _exact("neg_neg", "-(-x) -> x", NUMBER),
    _exact("sub_to_add", "a - b -> a + -b", NUMBER),
    _exact("add_to_sub", "a + -b -> a - b", NUMBER),
    _exact("sub_neg", "a - -b -> a + b", NUMBER),
    _exact("neg_of_mul", "-(a * b) -> -a * b", NUMBER),
    _exact("mul_of_neg", "-a * b -> -(a * b)", NUMBER),
    _exact("mul_of_negs", "-a * -b -> a * b", NUMBER),
    _exact("neg_of_div", "-(a / b) -> -a / b", FLOAT),
    _exact("div_of_neg", "-a / b -> -(a / b)", FLOAT),
    _exact("div_by_neg", "a / -b -> -(a / b)", FLOAT),
    _exact("div_of_negs", "-a / -b -> a / b", FLOAT),
    _exact("mul_minus_one", "x * -1 -> -x", WITH_SIGN),
    _exact("neg_to_mul", "-x -> x * -1", WITH_SIGN),
    _real("neg_of_sub", "-(a - b) -> b - a", NUMBER, "0"),
    _exact("abs_of_neg", "abs(-x) -> abs(x)", WITH_SIGN),
    _exact("abs_of_abs", "abs(abs(x)) -> abs(x)", NUMBER),
    _exact("square_of_abs", "abs(x) * abs(x) -> x * x", NUMBER),
    _near("abs_of_mul", "abs(a * b) -> abs(a) * abs(b)", "0"),
    _near("mul_of_abs", "abs(a) * abs(b) -> abs(a * b)", "0"),
    _near("abs_of_div", "abs(a / b) -> abs(a) / abs(b)", "0"),
    _near("div_of_abs", "abs(a) / abs(b) -> abs(a / b)", "0"),
    # order of operands
    _exact("add_commute", "a + b -> b + a", NUMBER),
    _exact("mul_commute", "a * b -> b * a", NUMBER),
    # powers of two
    _exact("add_to_double", "x + x -> x * 2", NUMBER),
    _exact("double_to_add", "x * 2 -> x + x", NUMBER),
    _exact("div_to_mul", "x / k -> x * m", FLOAT, "1 / k", k="a literal with an exact reciprocal"),
    _exact("mul_to_div", "x * k -> x / m", FLOAT, "1 / k", k="a literal with an exact reciprocal"),
    # rounding
    _exact("ceil_to_floor", "ceil(x) -> -floor(-x)", FLOAT),
    _exact("floor_to_ceil", "floor(x) -> -ceil(-x)", FLOAT),
    _exact("floor_of_floor", "floor(floor(x)) -> floor(x)", FLOAT),
    _exact("round_of_round", "round(round(x)) -> round(x)", FLOAT),
    # association
    _real("add_left", "a + (b + c) -> (a + b) + c", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("add_right", "(a + b) + c -> a + (b + c)", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("add_sub_right", "(a + b) - c -> a + (b - c)", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("add_sub_left", "a + (b - c) -> (a + b) - c", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("sub_sub", "(a - b) - c -> a - (b + c)", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("sub_of_add", "a - (b + c) -> (a - b) - c", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("sub_of_sub", "a - (b - c) -> (a - b) + c", NUMBER, "4 * (abs(a) + abs(b) + abs(c))"),
    _real("mul_left", "a * (b * c) -> (a * b) * c", NUMBER, "4 * abs(a * b * c)"),
    _real("mul_right", "(a * b) * c -> a * (b * c)", NUMBER, "4 * abs(a * b * c)"),
    # products and sums
    _real("collect", "a * b + a * c -> a * (b + c)", NUMBER, "5 * (abs(a * b) + abs(a * c))"),
    _real("collect_sub", "a * b - a * c -> a * (b - c)", NUMBER, "5 * (abs(a * b) + abs(a * c))"),
    _real("collect_one", "a * b + a -> a * (b + 1)", NUMBER, "5 * (abs(a * b) + abs(a))"),
    _real("expand", "a * (b + c) -> a * b + a * c", NUMBER, "5 * (abs(a * b) + abs(a * c))"),
    _real("expand_sub", "a * (b - c) -> a * b - a * c", NUMBER, "5 * (abs(a * b) + abs(a * c))"),
    _real("expand_one", "a * (b + 1) -> a * b + a", NUMBER, "5 * (abs(a * b) + abs(a))"),
    _real("squares_apart", "a * a - b * b -> (a + b) * (a - b)", NUMBER, "6 * (a * a + b * b)"),
    # quotients
    _real("collect_div", "a / c + b / c -> (a + b) / c", FLOAT, "5 * (abs(a / c) + abs(b / c))"),
    _real("expand_div", "(a + b) / c -> a / c + b / c", FLOAT, "5 * (abs(a / c) + abs(b / c))"),
    _real("div_of_mul", "a * b / c -> a * (b / c)", FLOAT, "4 * abs(a * b / c)"),
    _real("mul_of_div", "a * (b / c) -> a * b / c", FLOAT, "4 * abs(a * b / c)"),
    _real("div_div", "a / b / c -> a / (b * c)", FLOAT, "4 * abs(a / b / c)"),
    _real("div_by_mul", "a / (b * c) -> a / b / c", FLOAT, "4 * abs(a / b / c)"),
    _real("div_by_div", "a / (b / c) -> a * c / b", FLOAT, "4 * abs(a * c / b)"),
    _real("mul_of_divs", "(a / b) * (c / d) -> a * c / (b * d)", FLOAT, "6 * abs(a * c / (b * d))"),
)

EXTREMA = (
    _exact("max_of_same", "max(x, x) -> x", NUMBER),
    _exact("min_of_same", "min(x, x) -> x", NUMBER),
    _real("max_commute", "max(a, b) -> max(b, a)", NUMBER, "0"),
    _real("min_commute", "min(a, b) -> min(b, a)", NUMBER, "0"),
    _real("max_left", "max(a, max(b, c)) -> max(max(a, b), c)", NUMBER, "0"),
    _real("max_right", "max(max(a, b), c) -> max(a, max(b, c))", NUMBER, "0"),
    _real("min_left", "min(a, min(b, c)) -> min(min(a, b), c)", NUMBER, "0"),
    _real("min_right", "min(min(a, b), c) -> min(a, min(b, c))", NUMBER, "0"),
    _real("neg_of_max", "-max(a, b) -> min(-a, -b)", FLOAT, "0"),
    _real("neg_of_min", "-min(a, b) -> max(-a, -b)", FLOAT, "0"),
    _real("max_to_min", "max(a, b) -> -min(-a, -b)", FLOAT, "0"),
    _near("max_of_adds", "max(a + c, b + c) -> max(a, b) + c", "0"),
    _near("add_of_max", "max(a, b) + c -> max(a + c, b + c)", "0"),
    _near("min_of_adds", "min(a + c, b + c) -> min(a, b) + c", "0"),
    _near("add_of_min", "min(a, b) + c -> min(a + c, b + c)", "0"),
    _exact("max_absorbs", "max(a, min(a, b)) -> a", INTEGER),
    _exact("min_absorbs", "min(a, max(a, b)) -> a", INTEGER),
    _real("max_to_abs", "max(x, -x) -> abs(x)", WITH_SIGN, "0"),
    _real("abs_to_max", "abs(x) -> max(x, -x)", WITH_SIGN, "0"),
    _real("select_to_abs", "select(x >= 0, x, -x) -> abs(x)", WITH_SIGN, "0"),
    _real("abs_to_select", "abs(x) -> select(x >= 0, x, -x)", WITH_SIGN, "0"),
    _exact("select_to_max", "select(a > b, a, b) -> max(a, b)", INTEGER),
    _exact("select_to_min", "select(a < b, a, b) -> min(a, b)", INTEGER),
    _exact("max_to_select", "max(a, b) -> select(a > b, a, b)", INTEGER),
    _exact("min_to_select", "min(a, b) -> select(a < b, a, b)", INTEGER),
    _real("max_to_select_nan", "max(a, b) -> select(a > b or isnan(a), a, b)", FLOAT, "0"),
    _real("min_to_select_nan", "min(a, b) -> select(a < b or isnan(a), a, b)", FLOAT, "0"),
)

LOGIC = (
    _exact("and_commute", "a and b -> b and a", BOOL),
    _exact("or_commute", "a or b -> b or a", BOOL),
    _exact("not_of_and", "not (a and b) -> not a or not b", BOOL),
    _exact("not_of_or", "not (a or b) -> not a and not b", BOOL),
    _exact("and_of_nots", "not a and not b -> not (a or b)", BOOL),
    _exact("or_of_nots", "not a or not b -> not (a and b)", BOOL),
    _exact("collect_and", "a and b or a and c -> a and (b or c)", BOOL),
    _exact("expand_and", "a and (b or c) -> a and b or a and c", BOOL),
    _exact("lt_flip", "a < b -> b > a", NUMBER),
    _exact("gt_flip", "a > b -> b < a", NUMBER),
    _exact("le_flip", "a <= b -> b >= a", NUMBER),
    _exact("ge_flip", "a >= b -> b <= a", NUMBER),
    _exact("not_of_eq", "not a == b -> a != b", ANY),
    _exact("not_of_ne", "not a != b -> a == b", ANY),
    _exact("not_of_lt", "not a < b -> a >= b", INTEGER),
    _exact("not_of_le", "not a <= b -> a > b", INTEGER),
    _exact("ne_to_isnan", "x != x -> isnan(x)", FLOAT),
    _exact("isnan_to_ne", "isnan(x) -> x != x", FLOAT),
    _exact("select_of_not", "select(not p, a, b) -> select(p, b, a)", ANY),
    _exact("select_swap", "select(p, a, b) -> select(not p, b, a)", ANY),
    _exact("select_to_and", "select(p, select(q, a, b), b) -> select(p and q, a, b)", ANY),
    _exact("select_of_and", "select(p and q, a, b) -> select(p, select(q, a, b), b)", ANY),
    _exact("select_to_or", "select(p, a, select(q, a, b)) -> select(p or q, a, b)", ANY),
    _exact("select_of_or", "select(p or q, a, b) -> select(p, a, select(q, a, b))", ANY),
    _exact("select_first", "select(p, select(p, a, b), c) -> select(p, a, c)", ANY),
    _exact("select_last", "select(p, a, select(p, b, c)) -> select(p, a, c)", ANY),
    _exact("select_and", "select(p, q, false) -> p and q", BOOL),
    _exact("select_or", "select(p, true, q) -> p or q", BOOL),
)

_PUSHED = ("-{}", "abs({})", "exp({})", "exp2({})", "log({})", "sqrt({})", "rsqrt({})",
           "recip({})", "tanh({})", "sigmoid({})")  # fmt: skip
_PUSHED_IN = ("{} + c", "c + {}", "{} - c", "c - {}", "{} * c", "{} / c", "c / {}", "max({}, c)",
              "min({}, c)")  # fmt: skip
_WORDS = {"-{}": "neg", "{} + c": "add", "c + {}": "add_to", "{} - c": "sub", "c - {}": "sub_from",
          "{} * c": "mul", "{} / c": "div", "c / {}": "div_into"}  # fmt: skip


def _selects() -> tuple[Law, ...]:
    """A function goes into both branches of a `select`, and comes out of them."""
    made = []
    for form in _PUSHED + _PUSHED_IN:
        word = _WORDS.get(form) or form.split("(")[0]
        kinds = FLOAT if "/" in form or word in ("exp", "exp2", "log", "sqrt", "rsqrt", "recip",
                                                 "tanh", "sigmoid") else NUMBER  # fmt: skip
        outside = form.format("select(p, a, b)")
        inside = f"select(p, {form.format('a')}, {form.format('b')})"
        made.append(_exact(f"push_{word}", f"{outside} -> {inside}", kinds))
        made.append(_exact(f"pull_{word}", f"{inside} -> {outside}", kinds))
    return tuple(made)


INTEGERS = (
    _exact("mul_to_shl", "x * k -> x << m", INTEGER, "log2(k)", k=POWER),
    _exact("shl_to_mul", "x << k -> x * m", INTEGER, "2^k", k="a literal from 0 below the width"),
    _exact("floordiv_to_shr", "x // k -> x >> m", INTEGER, "log2(k)", k=POWER),
    _exact(
        "shr_to_floordiv", "x >> k -> x // m", INTEGER, "2^k", k="a literal from 0 below the width"
    ),
    _exact("mod_to_mask", "x % k -> x & m", INTEGER, "k - 1", k=POWER),
    _exact(
        "mul_to_shl_sub",
        "x * k -> (x << m) - x",
        INTEGER,
        "log2(k + 1)",
        k="one less than a power of two",
    ),
    _exact(
        "mul_to_shl_add",
        "x * k -> (x << m) + x",
        INTEGER,
        "log2(k - 1)",
        k="one more than a power of two",
    ),
    _exact("sub_to_mod", "x - x // k * k -> x % k", INTEGER, k="a literal but 0"),
    _exact("mod_to_sub", "x % k -> x - x // k * k", INTEGER, k="a literal but 0"),
    _exact(
        "cdiv_to_floordiv",
        "cdiv(x, k) -> x // k + select(x % k != 0, 1, 0)",
        INTEGER,
        k="a literal but 0",
    ),
    _exact("tdiv_to_floordiv", "tdiv(a, b) -> a // b", UNSIGNED),
    _exact("trem_to_mod", "trem(a, b) -> a % b", UNSIGNED),
    _exact("not_to_neg", "~x -> -x - 1", INTEGER),
    _exact("neg_to_not", "-x -> ~x + 1", INTEGER),
    _exact("not_of_bits_and", "~(a & b) -> ~a | ~b", INTEGER),
    _exact("not_of_bits_or", "~(a | b) -> ~a & ~b", INTEGER),
    _exact("collect_bits", "a & b | a & c -> a & (b | c)", INTEGER),
    _exact("xor_to_or", "a ^ b -> (a | b) - (a & b)", INTEGER),
)

FUNCTIONS = (
    # reciprocals
    _near("div_to_recip", "a / b -> a * recip(b)", "11 * abs(a / b)"),
    _near("mul_to_quotient", "a * recip(b) -> a / b", "11 * abs(a / b)"),
    _near("one_div_to_recip", "1 / x -> recip(x)", "9 * abs(1 / x)"),
    _near("recip_to_div", "recip(x) -> 1 / x", "9 * abs(1 / x)"),
    _near("recip_of_recip", "recip(recip(x)) -> x", "17 * abs(x)"),
    _near("mul_of_recips", "recip(a) * recip(b) -> recip(a * b)", "28 * abs(1 / (a * b))"),
    # powers and roots
    _near("pow_2", "pow(x, 2) -> x * x", "26 * x * x"),
    _near("pow_3", "pow(x, 3) -> x * x * x", "31 * abs(x * x * x)"),
    _near("pow_4", "pow(x, 4) -> x * x * (x * x)", "36 * x * x * x * x"),
    _near("pow_half", "pow(x, 0.5) -> sqrt(x)", "20 * sqrt(x)", x="nonnegative"),
    _near("pow_minus_1", "pow(x, -1) -> recip(x)", "30 * abs(1 / x)"),
    _near("pow_minus_2", "pow(x, -2) -> recip(x * x)", "36 * abs(1 / (x * x))"),
    _near("pow_minus_half", "pow(x, -0.5) -> rsqrt(x)", "28 / sqrt(x)", x="nonnegative"),
    _near("recip_of_sqrt", "recip(sqrt(x)) -> rsqrt(x)", "20 / sqrt(x)"),
    _near("one_div_sqrt", "1 / sqrt(x) -> rsqrt(x)", "12 / sqrt(x)"),
    _near("div_by_sqrt", "a / sqrt(b) -> a * rsqrt(b)", "13 * abs(a / sqrt(b))"),
    _near("mul_of_rsqrt", "a * rsqrt(b) -> a / sqrt(b)", "13 * abs(a / sqrt(b))"),
    _near("rsqrt_to_recip", "rsqrt(x) -> recip(sqrt(x))", "20 / sqrt(x)"),
    _near("sqrt_of_square", "sqrt(x * x) -> abs(x)", "2 * abs(x)"),
    _near("square_of_sqrt", "sqrt(x) * sqrt(x) -> x", "4 * abs(x)", x="nonnegative"),
    _near("square_of_rsqrt", "rsqrt(x) * rsqrt(x) -> recip(x)", "28 / abs(x)", x="nonnegative"),
    _near("mul_of_sqrts", "sqrt(a) * sqrt(b) -> sqrt(a * b)", "6 * sqrt(a * b)",
          a="nonnegative", b="nonnegative"),
    # exponentials
    _near("exp_to_exp2", "exp(x) -> exp2(x * 1.4426950408889634)", "(17 + 7 * abs(x)) * exp(x)"),
    _near("exp2_to_exp", "exp2(x) -> exp(x * 0.6931471805599453)", "(17 + 6 * abs(x)) * exp2(x)"),
    _near("mul_of_exps", "exp(a) * exp(b) -> exp(a + b)",
          "(26 + 6 * abs(a) + 6 * abs(b)) * exp(a) * exp(b)"),
    _near("div_of_exps", "exp(a) / exp(b) -> exp(a - b)",
          "(26 + 6 * abs(a) + 6 * abs(b)) * exp(a) / exp(b)"),
    _near("exp_of_add", "exp(a + b) -> exp(a) * exp(b)",
          "(26 + 6 * abs(a) + 6 * abs(b)) * exp(a) * exp(b)"),
    _near("exp_of_sub", "exp(a - b) -> exp(a) / exp(b)",
          "(26 + 6 * abs(a) + 6 * abs(b)) * exp(a) / exp(b)"),
    _near("recip_of_exp", "recip(exp(x)) -> exp(-x)", "(26 + 5 * abs(x)) * exp(-x)"),
    _near("one_div_exp", "1 / exp(x) -> exp(-x)", "(19 + 5 * abs(x)) * exp(-x)"),
    _near("div_by_exp", "a / exp(b) -> a * exp(-b)", "(20 + 5 * abs(b)) * abs(a) * exp(-b)"),
    _near("mul_of_exp2s", "exp2(a) * exp2(b) -> exp2(a + b)",
          "(26 + 3 * abs(a) + 3 * abs(b)) * exp2(a) * exp2(b)"),
    _near("max_of_exps", "max(exp(a), exp(b)) -> exp(max(a, b))",
          "(16 + 4 * abs(max(a, b))) * exp(max(a, b))"),
    _near("log_of_exp", "log(exp(x)) -> x", "9 + 11 * abs(x)"),
    _near("exp_of_log", "exp(log(x)) -> x", "(9 + 11 * abs(log(x))) * x", x="nonnegative"),
    _near("add_of_logs", "log(a) + log(b) -> log(a * b)",
          "2 + 18 * (abs(log(a)) + abs(log(b)))", a="nonnegative", b="nonnegative"),
    _near("sub_of_logs", "log(a) - log(b) -> log(a / b)",
          "2 + 18 * (abs(log(a)) + abs(log(b)))", a="nonnegative", b="nonnegative"),
    _near("log_of_recip", "log(recip(x)) -> -log(x)", "9 + 17 * abs(log(x))"),
    _near("log_of_sqrt", "log(sqrt(x)) -> 0.5 * log(x)", "2 + 9 * abs(log(x))"),
    _near("log_to_log2", "log(x) -> log2(x) * 0.6931471805599453", "19 * abs(log(x))"),
    _near("log2_to_log", "log2(x) -> log(x) * 1.4426950408889634", "19 * abs(log2(x))"),
    _near("log_to_log1p", "log(1 + x) -> log1p(x)", "2 + 17 * abs(log(1 + x))"),
    _near("log1p_to_log", "log1p(x) -> log(1 + x)", "2 + 17 * abs(log(1 + x))"),
    _near("exp_to_expm1", "exp(x) - 1 -> expm1(x)", "(18 + 4 * abs(x)) * (exp(x) + 1)"),
    _near("expm1_to_exp", "expm1(x) -> exp(x) - 1", "(18 + 4 * abs(x)) * (exp(x) + 1)"),
    # sigmoid and hyperbolic functions
    _near("sigmoid_to_exp", "sigmoid(x) -> 1 / (1 + exp(-x))", "(20 + 4 * abs(x)) * sigmoid(x)"),
    _near("exp_to_sigmoid", "1 / (1 + exp(-x)) -> sigmoid(x)", "(20 + 4 * abs(x)) * sigmoid(x)"),
    _near("recip_to_sigmoid", "recip(1 + exp(-x)) -> sigmoid(x)",
          "(28 + 4 * abs(x)) * sigmoid(x)"),
    _near("silu_to_div", "x * sigmoid(x) -> x / (1 + exp(-x))",
          "(22 + 4 * abs(x)) * abs(x) * sigmoid(x)"),
    _near("sigmoid_of_neg", "1 - sigmoid(x) -> sigmoid(-x)", "18 + 4 * abs(x)"),
    _near("sigmoid_to_tanh", "sigmoid(x) -> 0.5 * tanh(0.5 * x) + 0.5", "28 + 2 * abs(x)"),
    _near("tanh_to_exp", "tanh(x) -> 1 - 2 / (exp(2 * x) + 1)", "60 + 12 * abs(x)"),
    _near("tanh_to_sigmoid", "tanh(x) -> 2 * sigmoid(2 * x) - 1", "52 + 12 * abs(x)"),
    Law("tanh_of_log1p",  # beyond 2^30 it is 1, and the squares must not overflow
        "tanh(log1p(x)) -> min(x, 1073741824) * (min(x, 1073741824) + 2) "
        "/ (min(x, 1073741824) * (min(x, 1073741824) + 2) + 2)",
        FLOAT, "approximates", "40 * tanh(log1p(x))", {"x": "nonnegative"},
        dtypes=(f64, f32, bf16)),
    _near("sinh_to_exp", "sinh(x) -> (exp(x) - exp(-x)) * 0.5", "(36 + 4 * abs(x)) * cosh(x)"),
    _near("cosh_to_exp", "cosh(x) -> (exp(x) + exp(-x)) * 0.5", "(36 + 4 * abs(x)) * cosh(x)"),
    # trigonometry
    _near("tan_to_quotient", "tan(x) -> sin(x) / cos(x)", "38 * abs(tan(x))"),
    _near("sin_of_neg", "sin(-x) -> -sin(x)", "16 * abs(sin(x))"),
    _near("cos_of_neg", "cos(-x) -> cos(x)", "16 * abs(cos(x))"),
    # contraction
    _near("fma_to_mul_add", "fma(a, b, c) -> a * b + c", "5 * (abs(a * b) + abs(c))"),
)  # fmt: skip

LAWS: dict[str, Law] = {
    law.name: law for law in (*ARITHMETIC, *EXTREMA, *LOGIC, *_selects(), *INTEGERS, *FUNCTIONS)
}
GROUPS: dict[str, tuple[str, ...]] = {
    "strength": (
        "pow_2", "pow_3", "pow_4", "pow_half", "pow_minus_1", "pow_minus_2", "pow_minus_half",
        "recip_of_sqrt", "one_div_sqrt", "div_by_sqrt", "sqrt_of_square", "square_of_sqrt",
        "recip_of_exp", "one_div_exp", "mul_of_exps", "div_of_exps", "log_of_exp", "exp_of_log",
        "one_div_to_recip", "div_to_mul", "mul_to_shl", "floordiv_to_shr", "mod_to_mask",
        "mul_of_negs", "div_of_negs", "abs_of_neg", "abs_of_abs", "square_of_abs",
        "max_of_same", "min_of_same", "max_to_abs",
    ),
    "fast_exp": ("exp_to_exp2", "sigmoid_to_exp", "tanh_to_exp"),
}  # fmt: skip
"""Lists of laws that a step may name in the place of one: each is used wherever it fits."""
