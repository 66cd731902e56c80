"""The domain of the oracle: f64 values with a bound on what any computation as written may give.

    |computed - value| <= bound     for an implementation that rounds each op to its dtype, sums
                                    in any order, and uses functions as good as `rules.ROUNDINGS`

Integers and booleans are exact as written, with bound 0, unless they come from a comparison, a
rounding or a cast whose outcome the bound of a float leaves open: then their bound is > 0. A bound
of inf says that nothing can be said. A value that is NaN or infinite with a finite bound must come
out just so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np

from kir.dtypes import DType, f8e4m3, f32, f64
from kir.interpret.contract import contract, significand, widens
from kir.interpret.domain import (
    UFUNCS,
    Array,
    Domain,
    Value,
    bitcast_array,
    cast_array,
    first_best,
    poisoned,
)
from kir.interpret.rules import ROUNDINGS, RULES, OpError, own_error, relative
from kir.ops import compute

EXACT: Array = np.zeros(())
U64 = f64.unit_roundoff


@dataclass(frozen=True)
class Bounded:
    """One output of the oracle: f64 values (integers exact), and bounds >= 0, inf for no claim."""

    value: np.ndarray[Any, Any]
    bound: np.ndarray[Any, Any]
    dtype: DType

    def accepts(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Where the elements of `array`, of the output's shape, are as near as they must be."""
        return np.asarray(self.errors(array) <= 1.0)

    def errors(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Each element's error as a multiple of its bound: at most 1 where it is accepted."""
        if self.dtype.is_float:
            got, want = array.astype(np.float64), self.value
        else:
            got, want = array, self.value
        with np.errstate(all="ignore"):
            same = (got == want) | (_isnan(got) & _isnan(want))
            error = np.abs(got.astype(np.float64) - want.astype(np.float64))
            ratio = np.where(error <= self.bound, error / self.bound, np.inf)
            finite = np.isfinite(error) & (self.bound > 0)
            ratio = np.where(finite, error / np.where(finite, self.bound, 1.0), np.inf)
        free = np.isinf(self.bound)
        return np.where(same | free, 0.0, ratio)

    def worst(self, array: np.ndarray[Any, Any]) -> float:
        """The greatest error as a multiple of its bound; 0 for an empty array."""
        return float(self.errors(array).max(initial=0.0))


def _isnan(a: Array) -> Array:
    return np.isnan(a) if a.dtype.kind == "f" else np.zeros(a.shape, np.bool_)


@cache
def float_limits(dtype: DType) -> tuple[float, float, float]:
    """The greatest finite value, the magnitude from which rounding overflows, and the smallest
    subnormal of a float type."""
    import ml_dtypes

    info = ml_dtypes.finfo(dtype.numpy) if dtype.bits < 32 else np.finfo(dtype.numpy)
    greatest, subnormal = float(info.max), float(info.smallest_subnormal)
    spacing = 2.0 ** (math.floor(math.log2(greatest)) - dtype.mantissa + 1)
    return greatest, greatest + spacing / 2, subnormal


def gamma(count: int | Array, unit: float) -> Any:
    """(1 + unit)**count - 1: the growth of `count` roundings."""
    return np.expm1(np.asarray(count, np.float64) * math.log1p(unit))


@dataclass(frozen=True)
class WithBounds(Domain):
    """Two planes: (value, bound). With `contraction`, a product may stay unrounded on its way into
    a sum, as in `fma` and in matrix units: then nothing is said where it overflows."""

    contracts: ClassVar[bool] = True
    contraction: bool = False
    errors: Mapping[str, OpError] = field(default_factory=dict)
    """Of ops that something else stands in for."""
    loose: bool = False
    """Whether nothing is said of what leaves the range of a type narrower than f32 on its way: a
    rewrite chose that type, and the spec need not overflow there."""
    overflows: bool = False
    """Whether nothing is said of integers made of floats that are not finite."""

    def kept(self, found: Value, dtype: DType, *operands: Array) -> Value:
        """`found`, without a bound where it left the range of a narrow type."""
        if not self.loose or not dtype.is_float or dtype.bits >= 32:
            return found
        v, e = found
        left = ~np.isfinite(v)
        for a in operands:
            ends = np.isinf(a) & np.isnan(v) if dtype == f8e4m3 else np.zeros((), np.bool_)
            left = left & (np.isfinite(a) | ends)
        return v, np.where(left, np.inf, e)

    def lift(self, array: Array, dtype: DType) -> Value:
        return _wide(np.asarray(array, dtype.numpy), dtype), EXACT

    def poison(self, shape: tuple[int, ...], dtype: DType) -> Value:
        return _wide(poisoned(shape, dtype), dtype), np.full(shape, np.inf)

    def op(self, name: str, args: Sequence[Value], dtypes: Sequence[DType], dtype: DType) -> Value:
        with np.errstate(all="ignore"):
            if name == "select":
                return _select(args[0], args[1], args[2])
            if dtype.is_float and name in RULES:
                v, e = _float_op(name, args, dtype, self.errors.get(name))
                if self.contraction and name == "mul":
                    made = np.isfinite(args[0][0]) & np.isfinite(args[1][0]) & ~np.isfinite(v)
                    e = np.where(made, np.inf, e)
                return self.kept((v, e), dtype, *(a[0] for a in args))
            if dtype.is_bool and dtypes[0].is_float:
                return _compare(name, args)
            return _exact_op(name, args, dtype)

    def cast(self, value: Value, source: DType, dtype: DType) -> Value:
        with np.errstate(all="ignore"):
            found = _cast(value, source, dtype)
            if self.overflows and source.is_float and not dtype.is_float:
                return found[0], np.where(np.isfinite(value[0]), found[1], np.inf)
            return self.kept(found, dtype, value[0]) if source.is_float else found

    def bitcast(self, value: Value, source: DType, dtype: DType) -> Value:
        v, e = value
        if not source.is_float:
            return _wide(bitcast_array(v, dtype), dtype), _open(e > 0, e)
        stored = cast_array(v, f64, source)
        known = (stored.astype(np.float64) == v) | np.isnan(v)
        bits = _wide(bitcast_array(stored, dtype), dtype)
        return bits, np.where(known & (e == 0), 0.0, np.inf)

    def reduce(self, op: str, terms: Value, axes: int, count: int, dtype: DType) -> Value:
        v, e = terms
        flat = v.reshape(-1, *v.shape[axes:])
        if e.ndim:
            e = np.broadcast_to(e, v.shape).reshape(flat.shape)
        with np.errstate(all="ignore"):
            found = _combine(op, flat, e, max(count - 1, 0), dtype)
            return self.kept(found, dtype, _all_finite(flat))

    def accumulate(self, op: str, start: Value, terms: Value, dtype: DType) -> Value:
        t, te = terms
        shape = np.broadcast_shapes(start[0].shape, t.shape[1:])
        n = t.shape[0]
        every = np.concatenate([np.broadcast_to(start[0], (1, *shape)), _spread(t, n, shape)])
        bounds = np.concatenate([np.broadcast_to(start[1], (1, *shape)), _spread(te, n, shape)])
        with np.errstate(all="ignore"):
            found = _combine(op, every, bounds, n, dtype)
            return self.kept(found, dtype, _all_finite(every))

    def contract(
        self,
        a: Value,
        b: Value,
        lead: tuple[int, ...],
        count: int,
        made: DType,
        dtype: DType,
        start: Value | None = None,
    ) -> Value | None:
        with np.errstate(all="ignore"):
            return _contract(a, b, lead, count, made, dtype, start)

    def argument(self, name: str, value: Value, active: Value, dtype: DType) -> Value:
        (v, e), (on, maybe) = value, active
        index, best = first_best(name, v, on, f64 if dtype.is_float else dtype)
        if not e.any() and not maybe.any():
            return index, EXACT
        shape = np.broadcast_shapes(v.shape, on.shape)
        e = np.broadcast_to(e, shape).astype(np.float64)
        sign = 1.0 if name == "argmax" else -1.0
        places = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        best_e = np.where(places == index, e, 0.0).sum(axis=0)
        with np.errstate(all="ignore"):
            reach = sign * v + e >= sign * best - best_e
            rival = (reach & ((e > 0) | (best_e > 0))) | np.isinf(e) | np.isinf(best_e)
        rival = np.where(maybe > 0, True, rival & on) & (places != index)
        far = np.where(rival, np.abs(places - index), 0).max(axis=0)
        return index, far.astype(np.float64)

    def scatter(
        self, op: str | None, memory: Value, places: Array, values: Value, dtype: DType
    ) -> None:
        (m, me), (v, e) = memory, values
        e = np.broadcast_to(e, v.shape)
        if op is None:
            m[places], me[places] = v, e
            return
        with np.errstate(all="ignore"):
            old = m.copy()
            UFUNCS[op].at(m, places, v)
            if not dtype.is_float:
                me[places[(e > 0) | (me[places] > 0)]] = np.inf
            elif op in ("max", "min"):
                np.maximum.at(me, places, e)
            else:
                _scatter_bound(op, old, memory, places, v, e, dtype)

    def doubt(self, value: Value) -> Array | None:
        if not value[1].any():
            return None
        return np.asarray(value[1] > 0)

    def unknown(self, value: Value, where: Array) -> Value:
        return value[0], np.where(where, np.inf, value[1])


def _all_finite(terms: Array) -> Array:
    """0 where all along the first axis are finite, else NaN."""
    if terms.dtype.kind != "f":
        return np.zeros(terms.shape[1:])
    return np.where(np.isfinite(terms).all(axis=0), 0.0, np.nan)


def _wide(array: Array, dtype: DType) -> Array:
    return array.astype(np.float64) if dtype.is_float else array


def _spread(a: Array, n: int, shape: tuple[int, ...]) -> Array:
    if not a.ndim:
        return np.broadcast_to(a, (n, *shape))
    lead = (a.shape[0], *(1,) * (len(shape) + 1 - a.ndim), *a.shape[1:])
    return np.broadcast_to(a.reshape(lead), (n, *shape))


def _open(unsure: Array, like: Array) -> Array:
    """Bounds: inf where `unsure`, else 0."""
    return np.where(unsure, np.inf, 0.0) if like.any() else EXACT


def finish(
    v: Array, e: Array, own: Array, wild: Array, dtype: DType, correct: bool = True
) -> Value:
    """Round to `dtype`: add the op's own error, and settle overflow, NaN and infinities.

    `e` is what the operands imply, `own` what the op adds, `wild` where nothing can be said. An
    op that rounds correctly (`correct`) adds nothing where the result is representable.
    """
    _, threshold, subnormal = float_limits(dtype)
    size = np.abs(v)
    if dtype == f64:
        added = 2 * own + e * dtype.unit_roundoff + subnormal
    else:
        exact = correct & (e == 0) & (v.astype(np.float32 if dtype == f32 else dtype.numpy) == v)
        added = np.where(exact, 0.0, own + e * dtype.unit_roundoff + U64 * size + subnormal)
    bound = e + np.where((own > 0) | (e > 0), added, 0.0)
    finite = np.isfinite(v)
    if dtype != f64:
        over = finite & (size - bound > threshold)
        unsure = finite & ~over & (size + bound >= threshold)
        v = np.where(over, np.nan if dtype == f8e4m3 else np.copysign(np.inf, v), v)
        wild = wild | unsure
        finite = finite & ~over
        if dtype == f8e4m3:
            v = np.where(np.isinf(v), np.nan, v)
    bound = np.where(finite, np.where(np.isnan(bound), np.inf, bound), 0.0)
    return v, np.where(wild, np.inf, bound)


def _float_op(
    name: str, args: Sequence[Value], dtype: DType, extra: OpError | None = None
) -> Value:
    v, e, hazard = RULES[name](*(p for a in args for p in a))
    wild = hazard
    for _, bound in args:
        if bound.any():
            wild = wild | np.isinf(bound)
    values = [a[0] for a in args]
    own = own_error(name, values, v, dtype.unit_roundoff, extra)
    if name in ("add", "sub", "fma") and dtype != f64:
        e = e + _lost(name, values, np.asarray(v))
    correct = ROUNDINGS[name] == 1.0 and extra is None
    if correct or own.any():
        return finish(np.asarray(v), np.asarray(e), own, wild, dtype, correct)
    e = np.where(np.isfinite(v), np.where(np.isnan(e), np.inf, e), 0.0)
    return np.asarray(v), np.where(wild, np.inf, e)


def _lost(name: str, args: Sequence[Array], v: Array) -> Array:
    """What f64 rounded away of a sum (Knuth's two-sum), so that 1 + 1e-30 is not taken for exact;
    the product of a `fma` of narrower numbers is exact in f64."""
    a, b = (args[0] * args[1], args[2]) if name == "fma" else (args[0], args[1])
    b = -b if name == "sub" else b
    part = v - a
    rest = (a - (v - part)) + (b - part)
    return np.where(np.isfinite(rest), np.abs(rest), 0.0)


def _select(c: Value, a: Value, b: Value) -> Value:
    (cv, ce), (av, ae), (bv, be) = c, a, b
    v = np.where(cv, av, bv)
    if not (ae.any() or be.any() or ce.any()):
        return v, EXACT
    e = np.where(cv, ae, be)
    if not ce.any():
        return v, e
    same = (av == bv) | (_isnan(av) & _isnan(bv))
    gap = np.abs(av.astype(np.float64) - bv.astype(np.float64))
    gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
    return v, np.where(ce > 0, np.maximum(ae, be) + gap, e)


def _compare(name: str, args: Sequence[Value]) -> Value:
    """Comparisons and tests of floats: in doubt where the operands' bounds overlap."""
    v = np.asarray(compute(name, [a[0] for a in args], f64)).astype(np.bool_)
    total = args[0][1] if len(args) == 1 else args[0][1] + args[1][1]
    if not total.any():
        return v, EXACT
    if len(args) == 1:
        return v, np.where(np.isinf(total), 1.0, 0.0)
    gap = np.abs(args[0][0] - args[1][0])
    unsure = (total > 0) & ((gap <= total) | np.isinf(total))
    return v, np.where(unsure, 1.0, 0.0)


def _exact_op(name: str, args: Sequence[Value], dtype: DType) -> Value:
    """Ops on integers and booleans (and `rand`): as written, with doubts passed on."""
    v = _wide(np.asarray(compute(name, [a[0] for a in args], dtype)), dtype)
    bounds = [a[1] for a in args]
    if not any(b.any() for b in bounds):
        return v, EXACT
    if name in ("and", "or"):
        (a, ea), (b, eb) = args
        settled = (~a & (ea == 0)) | (~b & (eb == 0)) if name == "and" else (
            (a & (ea == 0)) | (b & (eb == 0))
        )  # fmt: skip
        return v, np.where(~settled & ((ea > 0) | (eb > 0)), 1.0, 0.0)
    if dtype.is_bool:
        if name == "not":
            return v, bounds[0]
        total = bounds[0] + bounds[1]
        gap = np.abs(args[0][0].astype(np.float64) - args[1][0].astype(np.float64))
        return v, np.where((total > 0) & ((gap <= total) | np.isinf(total)), 1.0, 0.0)
    if name in ("add", "sub", "max", "min"):
        bound = bounds[0] + bounds[1]
    elif name in ("neg", "abs"):
        bound = bounds[0]
    elif name == "mul":
        wide = [np.abs(a[0].astype(np.float64)) for a in args]
        bound = wide[0] * bounds[1] + wide[1] * bounds[0] + bounds[0] * bounds[1]
    else:
        return v, _open(np.asarray(sum(bounds) > 0), np.ones(1))
    low, high = dtype.limits()
    near = v.astype(np.float64)
    wraps = (bound > 0) & ((near + bound > high) | (near - bound < low))
    return v, np.where(wraps | np.isnan(bound), np.inf, bound)


def _cast(value: Value, source: DType, dtype: DType) -> Value:
    v, e = value
    if dtype.is_bool:
        unsure = (e > 0) & ((np.abs(v.astype(np.float64)) <= e) | np.isinf(e))
        return cast_array(v, f64 if source.is_float else source, dtype), np.where(unsure, 1.0, 0.0)
    if source.is_float and dtype.is_integer:
        return _to_integer(v, e, dtype)
    if dtype.is_float:
        wide = v.astype(np.float64)
        if widens(source, dtype) or source == dtype:
            return wide, e
        own = relative(dtype.unit_roundoff, np.abs(wide))
        wild = np.isinf(e) if e.any() else np.zeros((), np.bool_)
        found, bound = finish(wide, e, own, wild, dtype)
        if not e.any():  # a known number has one nearest, or two at the same distance
            nearest = cast_array(v, f64 if source.is_float else source, dtype).astype(np.float64)
            least = float_limits(dtype)[2] * 2.0 ** (dtype.mantissa - 1)  # that is not subnormal
            known = np.isfinite(nearest) & (np.abs(nearest) >= least)
            error = np.abs(nearest - wide) + U64 * np.abs(wide)
            bound = np.where(known, np.minimum(bound, error), bound)
        return found, bound
    exact = cast_array(v, source, dtype)
    if not e.any():
        return exact, EXACT
    wide = v.astype(np.float64)
    low, high = dtype.limits()
    wraps = (e > 0) & ((wide + e > high) | (wide - e < low))
    return exact, np.where(wraps, np.inf, e)


def _to_integer(v: Array, e: Array, dtype: DType) -> Value:
    low, high = (float(x) for x in dtype.limits())
    found = cast_array(v, f64, dtype)
    if not e.any():
        return found, EXACT
    middle = np.clip(np.trunc(v), low, high)
    ends = np.clip(np.trunc(v - e), low, high), np.clip(np.trunc(v + e), low, high)
    bound = np.maximum(ends[1] - middle, middle - ends[0])
    return found, np.where(np.isinf(e), np.inf, np.where(np.isnan(v), 0.0, bound))


def _combine(op: str, v: Array, e: Array, roundings: int, dtype: DType) -> Value:
    """All of the first axis under `op`, in any order; `e` has the shape of `v` or is 0-d."""
    if not dtype.is_float:
        kind = v.dtype
        total = UFUNCS[op].reduce(v, axis=0)
        total = np.asarray(total).astype(kind, copy=False)
        if not e.any():
            return total, EXACT
        return total, np.where((np.broadcast_to(e, v.shape) > 0).any(axis=0), np.inf, 0.0)
    if op in ("max", "min"):
        return _combine_extreme(op, v, e)
    wild = np.asarray(np.isinf(e).any(axis=0) if e.ndim else np.False_)
    if op == "add":
        total = np.add.reduce(v, axis=0) + 0.0
        size = np.add.reduce(_finite_size(v), axis=0)
        errors = np.add.reduce(e, axis=0) if e.ndim else v.shape[0] * e
        return finish_sum(total, size, np.asarray(errors), wild, roundings, dtype)
    total = np.multiply.reduce(v, axis=0)
    size = np.abs(v)
    upper = np.multiply.reduce(size + e, axis=0) * (1 + gamma(roundings, dtype.unit_roundoff))
    return finish_product(total, size, upper, wild, roundings, dtype)


def _finite_size(v: Array) -> Array:
    size = np.abs(v)
    return size if np.isfinite(size).all() else np.where(np.isfinite(size), size, 0.0)


def finish_sum(
    total: Array, size: Array, errors: Array, wild: Array, roundings: int | Array, dtype: DType
) -> Value:
    """A sum of terms, the finite ones of magnitude `size` in all, and of bounds `errors` in all.

    Where partial sums may overflow in some order, also beside an infinite term of the other sign,
    nothing can be said.
    """
    growth = gamma(roundings, dtype.unit_roundoff) + gamma(roundings, U64)
    _, threshold, _ = float_limits(dtype)
    bound = errors + growth * (size + errors)
    one_sign = np.abs(total) >= size * (1 - 1e-9)
    may_overflow = ~np.isnan(total) & (size + bound >= threshold)
    surely = one_sign & (np.abs(total) - bound > threshold) & np.isfinite(total)
    total = np.where(surely, np.copysign(np.inf, total), total)
    if dtype == f8e4m3:
        total = np.where(np.isinf(total), np.nan, total)
    bound = np.where(np.isfinite(total), np.where(np.isnan(bound), np.inf, bound), 0.0)
    return total, np.where(wild | (may_overflow & ~surely), np.inf, bound)


def finish_product(
    total: Array, size: Array, upper: Array, wild: Array, roundings: int | Array, dtype: DType
) -> Value:
    """A product of factors of magnitude `size`, whose magnitude is at most `upper` as computed.

    Partial products may overflow or underflow in some order; then nothing can be said.
    """
    greatest, _, subnormal = float_limits(dtype)
    large = np.multiply.reduce(np.maximum(size, 1.0), axis=0)
    small = np.multiply.reduce(np.where(size > 0, np.minimum(size, 1.0), 1.0), axis=0)
    overflows = (large > greatest / 2) & np.isfinite(size).all(axis=0)
    underflows = small < subnormal * 2.0**dtype.mantissa  # to 0, which an infinity makes NaN
    ranges = overflows | (underflows & ~np.isnan(total))
    bound = upper - np.abs(total) + (np.abs(total) * 4 * U64 + subnormal) * np.sign(roundings)
    finite = np.isfinite(total)
    bound = np.where(finite, np.where(np.isnan(bound), np.inf, np.maximum(bound, 0.0)), 0.0)
    return total, np.where(wild | ranges, np.inf, bound)


def _contract(
    a: Value,
    b: Value,
    lead: tuple[int, ...],
    count: int,
    made: DType,
    dtype: DType,
    start: Value | None = None,
) -> Value | None:
    """None where a product may overflow, or where a factor is infinite, NaN or unknown.

    The bound is that of `finish_sum` over products that went through `finish`, or, where some
    of the products are exact, a greater one.
    """
    av, ae = np.broadcast_arrays(*a)
    bv, be = np.broadcast_arrays(*b)
    size_a, size_b = np.abs(av), np.abs(bv)
    unit = made.unit_roundoff
    greatest, threshold, subnormal = float_limits(made)
    top = [s.max(initial=0.0) + e.max(initial=0.0) for s, e in ((size_a, ae), (size_b, be))]
    most = top[0] * top[1] * (1 + 2 * unit + 2 * U64) + subnormal
    if not (most < threshold and most < greatest and most * count < float_limits(f64)[0]):
        return None
    size = contract(size_a, size_b, lead)
    errors: Array = np.zeros(())
    if ae.any():
        errors = errors + contract(ae, size_b + be, lead)
    if be.any():
        errors = errors + contract(size_a, be, lead)
    if errors.any() or not _exact_products(av, bv, made):
        some_a, some_b = ((s + e > 0).astype(np.float64) for s, e in ((size_a, ae), (size_b, be)))
        own = 2 * unit if made == f64 else unit + U64
        least = contract(some_a, some_b, lead) * subnormal
        errors = errors * (1 + unit) + own * size + least
    slack = 1 + 4 * gamma(count + 2, U64)  # for the roundings of these sums themselves
    total = contract(av, bv, lead) + 0.0
    wild: Array = np.zeros((), np.bool_)
    if start is not None:
        first, known = start
        if not np.isfinite(first).all():
            return None
        wild = np.isinf(known)
        total, size = total + first, size + np.abs(first)
        errors, count = errors + np.where(wild, 0.0, known), count + 1
    return finish_sum(total, size * slack, errors * slack, wild, max(count - 1, 0), dtype)


def _exact_products(a: Array, b: Array, dtype: DType) -> bool:
    """Whether all products of an element of `a` and one of `b` are numbers of `dtype`."""
    if dtype == f64:
        return False
    (width_a, low_a), (width_b, low_b) = significand(a), significand(b)
    fits = low_a + low_b >= math.log2(float_limits(dtype)[2])
    return fits and width_a + width_b <= dtype.mantissa


def _combine_extreme(op: str, v: Array, e: Array) -> Value:
    f = UFUNCS[op]
    total = f.reduce(v, axis=0)
    if not e.any():
        return total, EXACT
    low, high = f.reduce(v - e, axis=0), f.reduce(v + e, axis=0)
    bound = np.where(np.isfinite(total), np.maximum(high - total, total - low), 0.0)
    wild = np.isinf(np.broadcast_to(e, v.shape)).any(axis=0)
    return total, np.where(wild | np.isnan(bound), np.inf, bound)


def _scatter_bound(
    op: str, old: Array, memory: Value, places: Array, v: Array, e: Array, dtype: DType
) -> None:
    """The bounds of float sums and products, target by target."""
    m, me = memory
    count = np.zeros(m.shape)
    np.add.at(count, places, 1.0)
    hit = count > 0
    loose: Array = np.asarray(np.isinf(me))
    np.logical_or.at(loose, places, np.isinf(e))
    if op == "add":
        size, errors = _finite_size(old), me.copy()
        np.add.at(size, places, _finite_size(v))
        np.add.at(errors, places, e)
        total, bound = finish_sum(m, size, errors, loose, count, dtype)
    else:
        upper = np.abs(old) + me
        np.multiply.at(upper, places, np.abs(v) + e)
        upper = upper * (1 + gamma(count, dtype.unit_roundoff))
        size = np.abs(old)[None]
        total, bound = finish_product(m, size, upper, loose, count, dtype)
    m[hit], me[hit] = total[hit], bound[hit]
