"""Operators and casts on constants, folded where no float is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from kir.algebra import wrap
from kir.dtypes import DType, bool_
from kir.ir import Cast, Const, Expr, Op
from kir.ops import OPS, compute

_EXACT_ON_FLOATS = {"neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "trunc", "select",
                    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf"}  # fmt: skip
_FRACTIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def fold(e: Op) -> Const | None:
    """An op on constants as a constant; None where a float would be rounded."""
    consts = [a for a in e.args if isinstance(a, Const)]
    if e.name not in OPS:
        return None
    arrays = [np.asarray(c.value).astype(c.dtype.numpy) for c in consts]
    floats = e.dtype.is_float or any(c.dtype.is_float for c in consts)
    if floats and e.name not in _EXACT_ON_FLOATS and not _is_exact(e, consts, arrays):
        return None
    return _literal(compute(e.name, arrays, e.dtype), e.dtype)


def _is_exact(e: Op, consts: list[Const], arrays: list[np.ndarray[Any, Any]]) -> bool:
    if e.name not in _FRACTIONS or not all(math.isfinite(c.value) for c in consts):
        return False
    result = float(compute(e.name, arrays, e.dtype))
    a, b = (Fraction(c.value) for c in consts)
    if not math.isfinite(result) or (e.name == "div" and b == 0):
        return False
    return _FRACTIONS[e.name](a, b) == Fraction(result)


def _literal(value: np.ndarray[Any, Any], dtype: DType) -> Const:
    if dtype.is_bool:
        return Const(bool(value), dtype)
    return Const(float(value) if dtype.is_float else int(value), dtype)


def cast(e: Cast) -> Expr:
    v = e.value
    if v.dtype == e.dtype:
        return v
    if not isinstance(v, Const):
        return e
    if e.dtype.is_bool:
        return Const(bool(v.value != 0), bool_)
    if e.dtype.is_integer and not v.dtype.is_float:
        return Const(wrap(int(v.value), e.dtype), e.dtype)
    if e.dtype.is_integer or not math.isfinite(v.value):
        return e
    with np.errstate(all="ignore"):
        result = float(np.asarray(float(v.value)).astype(e.dtype.numpy))
    exact = math.isfinite(result) and Fraction(result) == Fraction(v.value)
    return Const(result, e.dtype) if exact else e
