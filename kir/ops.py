"""The op table: every scalar operator and function, declared once, free of any backend.

An op is its name, its dtype rule, its meaning in NumPy and its algebraic facts. Backends hold
their own tables of handlers keyed by these names. `infix` is the operator's symbol in the text;
ops without one are called like functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kir.dtypes import DType, bool_, f8e4m3, f32, i64, u32, u64
from kir.errors import DTypeError
from kir.ir import Const, Expr, Op

Array = Any  # an ndarray or NumPy scalar
Rule = Literal["same", "compare", "test", "shift", "select", "philox", "rand"]


@dataclass(frozen=True)
class OpDef:
    """One op.

    `rule` gives the result's dtype: `same` (all operands and the result share one), `compare`
    (operands share one, the result is bool), `test` (any to bool), `shift` (as its first),
    `select` (bool, T, T -> T), `philox` (u64, i64 -> u32), `rand` (u64, i64 -> f32).
    `kinds` are the dtype kinds its operands may have. `numpy` takes arrays whose dtype NumPy
    computes in (narrow floats arrive as f32 and are rounded by the caller).
    """

    name: str
    arity: int
    rule: Rule
    kinds: tuple[str, ...]
    numpy: Callable[..., Array]
    infix: str | None = None
    commutative: bool = False
    associative: bool = False
    idempotent: bool = False
    doc: str = ""


NUMBER, FLOAT, INTEGER, BOOL = ("float", "int", "uint"), ("float",), ("int", "uint"), ("bool",)
ANY = ("float", "int", "uint", "bool")


def _floordiv(a: Array, b: Array) -> Array:
    zero = np.equal(b, 0)
    return np.where(zero, np.zeros_like(a), np.floor_divide(a, np.where(zero, np.ones_like(b), b)))


def _mod(a: Array, b: Array) -> Array:
    zero = np.equal(b, 0)
    return np.where(zero, np.zeros_like(a), np.mod(a, np.where(zero, np.ones_like(b), b)))


def _is_signed(a: Array) -> bool:
    return np.asarray(a).dtype.kind == "i"


def _cdiv(a: Array, b: Array) -> Array:
    return _floordiv(a, b) + (_mod(a, b) != 0).astype(np.asarray(a).dtype)


def _tdiv(a: Array, b: Array) -> Array:
    if not _is_signed(a):
        return _floordiv(a, b)
    quotient, remainder = _floordiv(a, b), _mod(a, b)
    return quotient + ((remainder != 0) & ((np.asarray(a) < 0) != (np.asarray(b) < 0)))


def _trem(a: Array, b: Array) -> Array:
    return np.where(np.equal(b, 0), np.zeros_like(a), a - _tdiv(a, b) * b)


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    def shift(a: Array, b: Array) -> Array:
        a, b = np.asarray(a), np.asarray(b)
        bits = a.dtype.itemsize * 8
        out = (b < 0) | (b >= bits)
        safe = np.where(out, 0, b).astype(a.dtype)
        inside = np.left_shift(a, safe) if left else np.right_shift(a, safe)
        far = np.zeros_like(a) if left or a.dtype.kind == "u" else np.where(a < 0, -1, 0)
        return np.where(out, far, inside).astype(a.dtype)

    return shift


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1 / (1 + e), e / (1 + e)).astype(np.asarray(x).dtype)


def _by_element(function: Callable[[float], float]) -> Callable[[Array], Array]:
    slow = np.frompyfunc(function, 1, 1)

    def apply(x: Array) -> Array:
        return np.asarray(slow(np.asarray(x, np.float64))).astype(np.asarray(x).dtype)

    return apply


def _fma(a: Array, b: Array, c: Array) -> Array:
    """One rounding: exact for f32 operands up to double rounding in f64; f64 uses math.fma's
    meaning by splitting the product (Dekker 1971) and adding with one compensation step."""
    a = np.asarray(a)
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + np.asarray(c, np.float64)).astype(np.float32)
    product = a * b
    error = _product_error(a, np.asarray(b), product)
    total = product + c
    bb = total - product
    low = (product - (total - bb)) + (c - bb) + error
    return np.where(np.isfinite(total) & np.isfinite(low), total + low, total)


def _product_error(a: Array, b: Array, product: Array) -> Array:
    def halves(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    (ah, al), (bh, bl) = halves(a), halves(b)
    return al * bl - (((product - ah * bh) - al * bh) - ah * bl)


PHILOX_M = (0xD2511F53, 0xCD9E8D57)
PHILOX_W = (0x9E3779B9, 0xBB67AE85)


def _philox(seed: Array, counter: Array) -> Array:
    """First word of Philox4x32-10 (Salmon et al., SC 2011): key = seed, counter = (counter, 0)."""
    low = np.uint64(0xFFFFFFFF)
    seed = np.asarray(seed).astype(np.uint64)
    counter = np.asarray(counter).astype(np.uint64)
    seed, counter = np.broadcast_arrays(seed, counter)
    k0, k1 = seed & low, seed >> np.uint64(32)
    c0, c1 = counter & low, counter >> np.uint64(32)
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(PHILOX_M[0]), c2 * np.uint64(PHILOX_M[1])
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & low,
        )
        k0 = (k0 + np.uint64(PHILOX_W[0])) & low
        k1 = (k1 + np.uint64(PHILOX_W[1])) & low
    return c0.astype(np.uint32)


def _rand(seed: Array, counter: Array) -> Array:
    """Uniform on [0, 1): the top 24 bits of `philox`, so that every value is an exact f32."""
    return (_philox(seed, counter) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _round(x: Array) -> Array:
    return np.rint(x)


_TABLE = (
    # arithmetic
    OpDef("add", 2, "same", NUMBER, np.add, "+", True, True, doc="wraps on integers"),
    OpDef("sub", 2, "same", NUMBER, np.subtract, "-", doc="wraps on integers"),
    OpDef("mul", 2, "same", NUMBER, np.multiply, "*", True, True, doc="wraps on integers"),
    OpDef("div", 2, "same", FLOAT, np.divide, "/"),
    OpDef("neg", 1, "same", NUMBER, np.negative, "-", doc="wraps on integers"),
    OpDef("fma", 3, "same", FLOAT, _fma, doc="a*b + c with one rounding"),
    OpDef("floordiv", 2, "same", INTEGER, _floordiv, "//", doc="rounds down; x // 0 is 0"),
    OpDef("mod", 2, "same", INTEGER, _mod, "%", doc="sign of the divisor; x % 0 is 0"),
    OpDef("cdiv", 2, "same", INTEGER, _cdiv, doc="rounds up; cdiv(x, 0) is 0"),
    OpDef("tdiv", 2, "same", INTEGER, _tdiv, doc="rounds to zero; tdiv(x, 0) is 0"),
    OpDef("trem", 2, "same", INTEGER, _trem, doc="sign of the dividend; trem(x, 0) is 0"),
    OpDef("max", 2, "same", NUMBER, np.maximum, None, True, True, True, "NaN if either is"),
    OpDef("min", 2, "same", NUMBER, np.minimum, None, True, True, True, "NaN if either is"),
    OpDef("abs", 1, "same", NUMBER, np.abs, doc="wraps on the least integer"),
    OpDef("sign", 1, "same", NUMBER, np.sign, doc="-1, 0 or 1; NaN of NaN"),
    # comparison and logic
    OpDef("eq", 2, "compare", ANY, np.equal, "==", True),
    OpDef("ne", 2, "compare", ANY, np.not_equal, "!=", True),
    OpDef("lt", 2, "compare", NUMBER, np.less, "<"),
    OpDef("le", 2, "compare", NUMBER, np.less_equal, "<="),
    OpDef("gt", 2, "compare", NUMBER, np.greater, ">"),
    OpDef("ge", 2, "compare", NUMBER, np.greater_equal, ">="),
    OpDef("and", 2, "same", BOOL, np.logical_and, "and", True, True, True),
    OpDef("or", 2, "same", BOOL, np.logical_or, "or", True, True, True),
    OpDef("not", 1, "same", BOOL, np.logical_not, "not"),
    OpDef("select", 3, "select", ANY, np.where, doc="select(c, a, b): a where c holds, else b"),
    # bits
    OpDef("bit_and", 2, "same", INTEGER, np.bitwise_and, "&", True, True, True, doc="bitwise"),
    OpDef("bit_or", 2, "same", INTEGER, np.bitwise_or, "|", True, True, True, doc="bitwise"),
    OpDef("bit_xor", 2, "same", INTEGER, np.bitwise_xor, "^", True, True, doc="bitwise"),
    OpDef("bit_not", 1, "same", INTEGER, np.invert, "~", doc="bitwise"),
    OpDef("shl", 2, "shift", INTEGER, _shift(True), "<<", doc="0 once all bits are out"),
    OpDef("shr", 2, "shift", INTEGER, _shift(False), ">>", doc="arithmetic on signed integers"),
    # rounding
    OpDef("floor", 1, "same", FLOAT, np.floor, doc="rounds down"),
    OpDef("ceil", 1, "same", FLOAT, np.ceil, doc="rounds up"),
    OpDef("round", 1, "same", FLOAT, _round, doc="ties to even"),
    OpDef("trunc", 1, "same", FLOAT, np.trunc, doc="rounds to zero"),
    # exponentials
    OpDef("exp", 1, "same", FLOAT, np.exp),
    OpDef("exp2", 1, "same", FLOAT, np.exp2, doc="2 to the power x"),
    OpDef("expm1", 1, "same", FLOAT, np.expm1, doc="exp(x) - 1, accurate near 0"),
    OpDef("log", 1, "same", FLOAT, np.log, doc="natural"),
    OpDef("log2", 1, "same", FLOAT, np.log2, doc="to the base 2"),
    OpDef("log1p", 1, "same", FLOAT, np.log1p, doc="log(1 + x), accurate near 0"),
    OpDef("sqrt", 1, "same", FLOAT, np.sqrt),
    OpDef("rsqrt", 1, "same", FLOAT, lambda x: 1 / np.sqrt(x), doc="1 / sqrt(x)"),
    OpDef("recip", 1, "same", FLOAT, lambda x: 1 / x, doc="1 / x"),
    OpDef("pow", 2, "same", FLOAT, np.power, doc="a to the power b"),
    # trigonometry
    OpDef("sin", 1, "same", FLOAT, np.sin),
    OpDef("cos", 1, "same", FLOAT, np.cos),
    OpDef("tan", 1, "same", FLOAT, np.tan),
    OpDef("asin", 1, "same", FLOAT, np.arcsin),
    OpDef("acos", 1, "same", FLOAT, np.arccos),
    OpDef("atan", 1, "same", FLOAT, np.arctan),
    OpDef("atan2", 2, "same", FLOAT, np.arctan2, doc="angle of the point (b, a)"),
    OpDef("sinh", 1, "same", FLOAT, np.sinh),
    OpDef("cosh", 1, "same", FLOAT, np.cosh),
    OpDef("tanh", 1, "same", FLOAT, np.tanh),
    # special functions
    OpDef("erf", 1, "same", FLOAT, _by_element(math.erf), doc="the error function"),
    OpDef("sigmoid", 1, "same", FLOAT, _sigmoid, doc="1 / (1 + exp(-x))"),
    # tests
    OpDef("isnan", 1, "test", FLOAT, np.isnan),
    OpDef("isinf", 1, "test", FLOAT, np.isinf),
    # random numbers
    OpDef(
        "philox", 2, "philox", INTEGER, _philox, doc="32 random bits of (seed: u64, counter: i64)"
    ),
    OpDef("rand", 2, "rand", INTEGER, _rand, doc="uniform on [0, 1) of (seed: u64, counter: i64)"),
)
OPS: dict[str, OpDef] = {op.name: op for op in _TABLE}


def result_dtype(name: str, dtypes: Sequence[DType]) -> DType:
    """The dtype of `name` applied to operands of `dtypes`; DTypeError where the op has none."""
    d = OPS[name]
    if len(dtypes) != d.arity:
        raise DTypeError(f"`{name}` takes {d.arity} operands, not {len(dtypes)}")
    if d.rule in ("philox", "rand"):
        if tuple(dtypes) != (u64, i64):
            raise DTypeError(
                f"`{name}` takes a seed of u64 and a counter of i64, not {_list(dtypes)}"
            )
        return u32 if d.rule == "philox" else f32
    checked = dtypes[1:] if d.rule == "select" else dtypes
    if d.rule == "select" and dtypes[0] != bool_:
        raise DTypeError(f"the condition of `select` is a bool, not {dtypes[0]}")
    if any(t != checked[0] for t in checked) and d.rule != "shift":
        raise DTypeError(
            f"the operands of `{d.infix or name}` have different dtypes: {_list(checked)}"
        )
    if any(t.kind not in d.kinds for t in checked):
        raise DTypeError(f"`{d.infix or name}` is not defined on {_list(dict.fromkeys(checked))}")
    return bool_ if d.rule in ("compare", "test") else checked[0]


def _list(dtypes: Sequence[DType] | dict[DType, None]) -> str:
    return ", ".join(str(t) for t in dtypes)


def op(name: str, *args: Expr) -> Op:
    """An op applied to typed operands; DTypeError where the dtypes do not fit."""
    return Op(name, args, result_dtype(name, [a.dtype for a in args]))


GREATEST_F8E4M3 = 448.0
"""It has no infinity: this is what `max` and `min` begin with."""


def identity(update: str, dtype: DType) -> Const:
    """The neutral value of an update op (`add`, `mul`, `max`, `min`, `and`, `or`) in `dtype`."""
    if update in ("and", "or"):
        return Const(update == "and", bool_)
    if update in ("add", "mul"):
        value = 0 if update == "add" else 1
        return Const(float(value) if dtype.is_float else value, dtype)
    if dtype.is_float:
        greatest = GREATEST_F8E4M3 if dtype == f8e4m3 else math.inf
        return Const(-greatest if update == "max" else greatest, dtype)
    low, high = dtype.limits()
    return Const(low if update == "max" else high, dtype)


def compute(name: str, args: Sequence[Array], dtype: DType) -> Array:
    """Evaluate an op on arrays of the operands' dtypes, rounding the result to `dtype`.

    Narrow floats are computed in f32 and rounded once; that is exact rounding for the arithmetic
    ops (Figueroa 1995: 24 >= 2*11 + 2 bits). f32 functions whose NumPy result may differ from the
    correctly rounded one by some ulp are computed in f64 and rounded.
    """
    wide = [_widen(np.asarray(a), name) for a in args]
    with np.errstate(all="ignore"):
        result = OPS[name].numpy(*wide)
        return np.asarray(result).astype(dtype.numpy, copy=False)


EXACT_IN_F32 = {"add", "sub", "mul", "div", "neg", "abs", "sign", "max", "min", "sqrt", "select",
                 "floor", "ceil", "round", "trunc", "fma", "isnan", "isinf",
                 "eq", "ne", "lt", "le", "gt", "ge"}  # fmt: skip


def _widen(a: Array, name: str) -> Array:
    if a.dtype == np.float64 or a.dtype.kind in "iub":
        return a
    exact = name in EXACT_IN_F32
    return a.astype(np.float32 if exact else np.float64, copy=False)
