"""Literals and dtypes while elaborating: weak expressions, and operands made to fit.

A literal is *weak*: it takes the dtype of its neighbour, or of the place it goes to. While walking,
weak expressions carry the dtypes WEAK_INT and WEAK_FLOAT; `coerce` settles them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kir.dtypes import DType, bool_, f64, i64, u64
from kir.errors import DTypeError
from kir.ir import Cast, Const, Expr, Op, Span
from kir.ops import OPS, result_dtype

WEAK_INT = DType("integer literal", "int", 0)
WEAK_FLOAT = DType("float literal", "float", 0)
WEAK = (WEAK_INT, WEAK_FLOAT)


def coerce(e: Expr, dtype: DType) -> Expr:
    """Give a weak expression its dtype; a strong one passes through."""
    if e.dtype not in WEAK:
        return e
    if isinstance(e, Const):
        return _literal(e, dtype)
    assert isinstance(e, Op)
    args = tuple(coerce(a, dtype) for a in e.args)
    return Op(e.name, args, result_dtype(e.name, [a.dtype for a in args]), span=e.span)


def _literal(e: Const, dtype: DType) -> Const:
    if dtype.is_float:
        return Const(round_literal(float(e.value), dtype, e.span), dtype, span=e.span)
    if dtype.is_bool or e.dtype == WEAK_FLOAT:
        raise DTypeError(
            f"`{e.value}` stands where a value of {dtype} is needed",
            span=e.span,
            hint="bools are `true` and `false`" if dtype.is_bool else "convert with a cast",
        )
    if not dtype.holds(int(e.value)):
        low, high = dtype.limits()
        raise DTypeError(
            f"{e.value} does not fit {dtype} ({low} to {high})",
            span=e.span,
            hint="cast the other operand to a wider dtype",
        )
    return Const(int(e.value), dtype, span=e.span)


def round_literal(value: float, dtype: DType, span: Span | None = None) -> float:
    """`value` rounded to `dtype`; DTypeError where a finite literal overflows."""
    with np.errstate(over="ignore"):
        rounded = float(np.asarray(value, np.float64).astype(dtype.numpy).astype(np.float64))
    if math.isfinite(value) and not math.isfinite(rounded):
        raise DTypeError(f"{value} overflows {dtype}", span=span, hint="write `inf` if you mean it")
    if math.isinf(value) and math.isnan(rounded):
        raise DTypeError(f"{dtype} has no infinity", span=span, hint="its greatest value is 448.0")
    return rounded


def settle(e: Expr) -> Expr:
    """A weak expression in a place that asks for no dtype: integers become i64."""
    if e.dtype == WEAK_FLOAT:
        raise DTypeError(
            "this literal needs a dtype", span=e.span, hint="write it as a cast, like `f32(0.5)`"
        )
    return coerce(e, i64) if e.dtype == WEAK_INT else e


def widen(e: Expr, dtype: DType) -> Expr:
    """The one implicit conversion: a narrower integer to i64, where no value changes."""
    if dtype == i64 and e.dtype.is_integer and e.dtype not in (i64, u64):
        return Cast(e, i64, span=e.span)
    return e


def fit(e: Expr, dtype: DType, what: str) -> Expr:
    """`e` as a value of `dtype`, or a DTypeError that says which cast would do it."""
    e = widen(coerce(e, dtype), dtype)
    if e.dtype != dtype:
        raise DTypeError(
            f"{what} is {dtype}, and this value is {e.dtype}",
            span=e.span,
            hint=f"convert it: `{dtype}(...)`",
        )
    return e


def unify(args: Sequence[Expr], symbol: str, span: Span | None) -> list[Expr]:
    """Give operands that must share a dtype one: literals adapt, narrow integers widen to i64."""
    strong = list(dict.fromkeys(a.dtype for a in args if a.dtype not in WEAK))
    if not strong:
        kind = WEAK_FLOAT if any(a.dtype == WEAK_FLOAT for a in args) else WEAK_INT
        return [_weaken(a, kind) for a in args]
    goal = i64 if i64 in strong else strong[0]
    fitted = [widen(coerce(a, goal), goal) for a in args]
    if any(a.dtype != goal for a in fitted):
        kinds = " and ".join(str(t) for t in strong)
        raise DTypeError(
            f"`{symbol}` joins {kinds}",
            span=span,
            hint=f"nothing is converted silently: cast one side, like `{strong[0]}(...)`",
        )
    return fitted


def _weaken(e: Expr, kind: DType) -> Expr:
    if e.dtype not in WEAK:  # the condition of a `select`
        return e
    if isinstance(e, Const):
        value = float(e.value) if kind == WEAK_FLOAT else e.value
        return Const(value, kind, span=e.span)
    assert isinstance(e, Op)
    return Op(e.name, tuple(_weaken(a, kind) for a in e.args), kind, span=e.span)


def apply(name: str, args: Sequence[Expr], span: Span | None) -> Expr:
    """An op on operands that may be weak, with a readable error where dtypes do not fit."""
    d = OPS[name]
    symbol = d.infix or name
    if len(args) != d.arity:
        raise DTypeError(f"`{symbol}` takes {d.arity} operands, not {len(args)}", span=span)
    if d.rule in ("philox", "rand"):
        fitted = [fit(args[0], u64, "a seed"), fit(args[1], i64, "a counter")]
    elif d.rule == "select":
        condition = fit(args[0], bool_, "the condition of `select`")
        fitted = [condition, *unify(args[1:], symbol, span)]
    else:
        fitted = unify(args, symbol, span)
    values = fitted[1:] if d.rule == "select" else fitted
    if all(a.dtype in WEAK for a in values):
        if d.rule in ("compare", "test"):
            goal = f64 if d.rule == "test" or values[0].dtype == WEAK_FLOAT else i64
            fitted = [coerce(a, goal) for a in fitted]
        else:
            needs_float = "int" not in d.kinds
            kind = WEAK_FLOAT if needs_float else values[0].dtype
            if kind.kind not in d.kinds:
                raise DTypeError(f"`{symbol}` is not defined on {kind}s", span=span)
            weak = [_weaken(a, kind) for a in values]
            return Op(name, (*fitted[: len(fitted) - len(weak)], *weak), kind, span=span)
    try:
        return Op(name, tuple(fitted), result_dtype(name, [a.dtype for a in fitted]), span=span)
    except DTypeError as error:
        raise error.at(span=span, hint=_op_hint(name, values[0].dtype)) from None


def _op_hint(name: str, dtype: DType) -> str | None:
    if name == "div" and dtype.is_integer:
        return "on integers `//` rounds down and `tdiv(a, b)` to zero; cast for a float quotient"
    if dtype.is_integer and "float" in OPS[name].kinds:
        return "cast the operand to a float, like `f32(...)`"
    if dtype.is_bool:
        return "on bools use `and`, `or`, `not`, `select`"
    return None
