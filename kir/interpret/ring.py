"""The domain of exact equivalence: floats are elements of finite fields, nothing is rounded.

Two kernels that are equal by the laws of the real numbers used here agree bit for bit. Two that
are not agree, in an element, with a chance of about the degree of the difference over 2^32
(Schwartz 1980, Zippel 1979), as in Mirage (Wu et al., OSDI 2025). The laws: those of a field
for + - * / fma recip; exp(a + b) = exp(a) exp(b), exp2(x log2(e)) = exp(x), and what is made of exp
(sigmoid, tanh, sinh, cosh, expm1); sqrt(a b) = sqrt(a) sqrt(b), rsqrt = 1/sqrt; log(x) = log2(x)
ln(2), log1p(x) = log(1 + x), tan = sin/cos; pow to a small whole exponent is a product; max, min
and comparisons are those of a fixed total order in which small dyadic fractions are where they are
in the reals, and in which x < y as -y < -x (of other machine numbers, which compare otherwise once
a tensor held them, comparisons are lost); floor and its like round fixed-point numbers; casts
between floats do nothing. All other functions (`HASHED`) are arbitrary ones, the same wherever they
occur. What does not hold: that sums and positive products keep the order (no order of a finite
field does), that |a b| = |a| |b|, and laws of logarithms.

A value has one plane where it is a machine number that no tensor had a part in: an integer, or an
exact dyadic fraction in f64. Other integers and booleans have (value, code); floats have (element
of each field of the tower in use, code). The first element decides comparisons and is the result.
The bits of a code are below. Infinities and NaN follow IEEE 754; -0.0 is 0. Where the sign of a
finite factor of an infinity matters and is not known, the outcome is NaN and *lost*: nothing is
said of it, nor of what the fields above a third nested exp would be.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np

from kir.dtypes import DTYPES, DType, f8e4m3, f64, i64, u64
from kir.interpret import field
from kir.interpret.codes import (
    KIND,
    LOST,
    MINUS,
    NAN,
    NOTHING,
    PLUS,
    SCALE,
    SIGNED,
    SPECIAL,
    UNKNOWN_SIGN,
    all_lost,
    exactly,
    infinity,
    is_known,
    is_nan,
    is_placed,
    is_zero,
    kinds,
    order,
    residues,
)
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
from kir.interpret.elements import Elements
from kir.ops import GREATEST_F8E4M3, OPS, compute

EXACT_TESTS = ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf")
LAWFUL = ("add", "sub", "mul", "div", "neg", "fma", "max", "min", "abs", "sign", "exp",
          "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "recip", "tan", "sinh", "cosh",
          "tanh", "sigmoid", "floor", "ceil", "round", "trunc")  # fmt: skip
"""Float ops that have laws, or are made of such; all others are `HASHED`."""
_EXACT_ON_FLOATS = ("neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "trunc")
_UNORDERED = ("eq", "ne", "isnan", "isinf", "neg")
"""Those of both that the order of elements has no part in."""


class Ring(Elements, Domain):
    """Values of the domain are those of `Elements`, and machine numbers."""

    budget: ClassVar[int] = 1 << 18

    # --- making values -----------------------------------------------------------------------

    def lift(self, array: Array, dtype: DType) -> Value:
        array = np.asarray(array, dtype.numpy)
        return (array.astype(np.float64) + 0.0 if dtype.is_float else array,)

    def constant(self, value: int | float | bool, dtype: DType) -> Value:
        if dtype == f8e4m3 and abs(value) == GREATEST_F8E4M3:  # beyond every element here
            return (np.asarray(math.copysign(math.inf, value)),)
        if not dtype.is_float or value == 0 or value != value:
            return self.lift(np.asarray(value).astype(dtype.numpy), dtype)
        key = (float(value), dtype)
        if key not in self.constants:
            exact = self.lift(np.asarray(value).astype(dtype.numpy), dtype)
            self.constants[key] = self.logarithmic(float(exact[0]), dtype) or exact
        return self.constants[key]

    def logarithmic(self, value: float, dtype: DType) -> Value | None:
        """A simple multiple of log2(e) or ln 2, which one element stands for in all dtypes."""
        if dtype.mantissa < 8:
            return None
        for real, elements in ((1 / math.log(2), self.log2e), (math.log(2), self.ln2)):
            ratio = value / real
            if not math.isfinite(ratio) or not ratio:
                continue
            fraction, exponent = math.frexp(ratio)
            bits = dtype.mantissa // 3
            simple = math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)
            if abs(ratio / simple - 1) <= 1.01 * 2.0 ** -min(dtype.mantissa, 51):
                factor = Fraction(simple)
                found = [
                    np.asarray(np.uint64(field.of_fraction(factor, q) * e % q))
                    for e, q in zip(elements, self.primes, strict=True)
                ]
                return (*found, NOTHING if simple > 0 else UNKNOWN_SIGN)
        return None

    def poison(self, shape: tuple[int, ...], dtype: DType) -> Value:
        if not dtype.is_float:
            return poisoned(shape, dtype), np.zeros(shape, np.uint8)
        zeros = (np.zeros(shape, np.uint64) for _ in self.primes)
        return *zeros, np.full(shape, NAN, np.uint8)

    def draw(self, array: Array, dtype: DType, seed: int, name: str) -> Value:
        """An input: random elements for the finite floats of `array`, all else as it is."""
        if not dtype.is_float:
            return array, NOTHING
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        wide = array.astype(np.float64)
        special = ~np.isfinite(wide)
        made = tuple(rng.integers(1, q, array.shape, np.uint64) for q in self.primes)
        if not special.any():
            return *made, UNKNOWN_SIGN
        code = np.where(special, kinds(wide), np.uint8(SIGNED))
        return self.cleared(made, code)

    def stored(self, value: Value, dtype: DType) -> Value:
        """With all planes, as tensors have them."""
        if len(value) > 1:
            return value
        (v,) = value
        return self.embed(v) if dtype.is_float else (v, NOTHING)

    # --- ops ---------------------------------------------------------------------------------

    def op(self, name: str, args: Sequence[Value], dtypes: Sequence[DType], dtype: DType) -> Value:
        with np.errstate(all="ignore"):
            if all(len(a) == 1 for a in args):
                found = self.known(name, [a[0] for a in args], dtypes, dtype)
                if found is not None:
                    return found
            if name == "select":
                return self.choose(args[0], args[1], args[2], dtype)
            if dtypes[0].is_float:
                if name in EXACT_TESTS:
                    return self.test(name, [self.stored(a, dtypes[0]) for a in args])
                return self.float_op(name, args, dtype)
            return self.machine(name, args, dtype)

    def known(
        self, name: str, args: list[Array], dtypes: Sequence[DType], dtype: DType
    ) -> Value | None:
        """An op on machine numbers, where no float is rounded; else None."""
        if name == "select":
            return (np.where(*args),)
        if not dtypes[0].is_float:
            found = np.asarray(compute(name, args, dtype))
            return (found.astype(np.float64) if dtype.is_float else found,)
        if name in EXACT_TESTS or name in _EXACT_ON_FLOATS:
            found = np.asarray(OPS[name].numpy(*args)) + (0.0 if dtype.is_float else False)
            if name in _UNORDERED or all(is_placed(a).all() for a in args):
                return (found,)
            lost = ~np.logical_and.reduce(np.broadcast_arrays(*map(is_placed, args)))
            if dtype.is_float:
                return self.unknown((found,), lost)
            return found, all_lost(lost) & np.uint8(LOST)
        made = exactly(name, args)
        return None if made is None else (made + 0.0,)

    def machine(self, name: str, args: Sequence[Value], dtype: DType) -> Value:
        """Integers and booleans, as they are; what depends on something lost is lost."""
        v = np.asarray(compute(name, [a[0] for a in args], dtype))
        codes = [a[1] for a in args if len(a) > 1]
        code = codes[0] if len(codes) == 1 else codes[0] | codes[1]
        if not code.any():
            if dtype.is_float:  # `rand`, whose values are multiples of 2^-24
                return self.embed(v.astype(np.float64))
            return v, NOTHING
        if dtype.is_float:
            found = self.embed(v.astype(np.float64))
            return *residues(found), found[-1] | all_lost(code)
        if name in ("and", "or"):
            settled = [
                (a[0] == (name == "or")) & (True if len(a) == 1 else a[1] == 0) for a in args
            ]
            code = np.where(settled[0] | settled[1], np.uint8(0), code)
        return v, code

    def choose(self, c: Value, a: Value, b: Value, dtype: DType) -> Value:
        a, b = self.stored(a, dtype), self.stored(b, dtype)
        made = tuple(np.where(c[0], x, y) for x, y in zip(a, b, strict=True))
        if len(c) == 1 or not c[1].any():
            return made
        return *made[:-1], made[-1] | all_lost(c[1])

    def test(self, name: str, args: Sequence[Value]) -> Value:
        """Comparisons: in the order of the first field."""
        code = args[0][-1] if len(args) == 1 else args[0][-1] | args[1][-1]
        lost = code & np.uint8(LOST)
        if len(args) == 1:
            kind = args[0][-1] & np.uint8(KIND)
            infinite = (kind == PLUS) | (kind == MINUS)
            return kind == NAN if name == "isnan" else infinite, lost
        keys = [order(a) for a in args]
        found = np.asarray(OPS[name].numpy(*keys))
        if code.max(initial=0) >= SPECIAL:
            nan = is_nan(args[0]) | is_nan(args[1])
            found = np.where(nan, name == "ne", found)
        return found, lost

    def float_op(self, name: str, args: Sequence[Value], dtype: DType) -> Value:
        if name == "pow":
            return self.pow(self.stored(args[0], dtype), self.stored(args[1], dtype))
        if name == "mul":
            for k in (0, 1):  # so that the sign of an infinity times a constant is known
                v = args[k]
                if is_known(v) and v[0].ndim == 0 and v[0] < 0:
                    positive = self.embed(-v[0])
                    return self.neg(self.mul(positive, self.stored(args[1 - k], dtype)))
        values = [self.stored(a, dtype) for a in args]
        if name not in LAWFUL:
            return self.hashed(name, values)
        method: Callable[..., Value] = getattr(self, name)
        return method(*values)

    # --- casts -------------------------------------------------------------------------------

    def cast(self, value: Value, source: DType, dtype: DType) -> Value:
        with np.errstate(all="ignore"):
            if source.is_float:
                return self.from_float(value, dtype)
            if not dtype.is_float:
                return cast_array(value[0], source, dtype), *value[1:]
            return self.from_integer(value)

    def from_integer(self, value: Value) -> Value:
        v = value[0]
        if len(value) == 1 and (v.dtype.itemsize < 8 or (np.abs(v) < 1 << 53).all()):
            return (v.astype(np.float64),)
        below = v < 0 if v.dtype.kind == "i" else np.zeros(v.shape, np.bool_)
        code = np.where(below, np.uint8(SIGNED), np.uint8(0))
        if len(value) > 1:
            code = code | all_lost(value[1])
        return *(field.of_integers(v, q) for q in self.primes), code

    def from_float(self, value: Value, dtype: DType) -> Value:
        if dtype.is_float:
            return value
        if is_known(value):
            found = cast_array(value[0], f64, dtype)
            placed = is_placed(value[0]) | dtype.is_bool
            return (found,) if placed.all() else (found, all_lost(~placed) & np.uint8(LOST))
        lost = value[-1] & np.uint8(LOST)
        if dtype.is_bool:
            return ~is_zero(value), lost
        near = order(value)
        small = np.abs(near) < 1 << 2 * SCALE
        some = self.hash("integer", [value[0]], 0).astype(np.int64) % 128
        whole = np.where(small, np.where(small, near, 0) / (1 << SCALE), some)
        ends = np.where(is_nan(value), np.nan, infinity(value) * np.inf)
        special = value[-1] >= SPECIAL
        return cast_array(np.where(special, ends, whole), f64, dtype), lost

    def bitcast(self, value: Value, source: DType, dtype: DType) -> Value:
        if source.is_float:
            value, source = self.bits(value, source)
        found = bitcast_array(value[0], dtype)
        if not dtype.is_float:
            return found, *value[1:]
        wide = found.astype(np.float64) + 0.0
        if len(value) == 1:
            return (wide,)
        made = self.embed(wide)
        return *residues(made), made[-1] | all_lost(value[1])

    def bits(self, value: Value, source: DType) -> tuple[Value, DType]:
        """Floats as unsigned integers. Small dyadic fractions have their own bits, wherever they
        come from; those of other elements are arbitrary, and those of known numbers are kept but
        lost, since the same number out of a tensor has others."""
        words = DTYPES[f"u{source.bits}"]
        all_planes = self.stored(value, source)
        near = order(all_planes)
        exact = near / (1 << SCALE)
        narrow = exact.astype(source.numpy)
        small = (np.abs(near) < 1 << 2 * SCALE) & (all_planes[-1] < SPECIAL)
        small &= narrow.astype(np.float64) == exact
        if is_known(value):
            own = bitcast_array(value[0].astype(source.numpy), words)
            return (own, np.where(small, np.uint8(0), np.uint8(LOST))), words
        code = all_planes[-1]
        kind = (code & np.uint8(KIND)).astype(np.uint64)
        other = field.digest([all_planes[0], kind], self.salt)
        made = np.where(small, bitcast_array(narrow, words), cast_array(other, u64, words))
        return (made, code & np.uint8(LOST)), words

    # --- many at once ------------------------------------------------------------------------

    def reduce(self, op: str, terms: Value, axes: int, count: int, dtype: DType) -> Value:
        terms = self.stored(terms, dtype)
        shape = terms[0].shape
        flat = (-1, *shape[axes:])
        return self.combine(
            op, tuple(np.broadcast_to(t, shape).reshape(flat) for t in terms), dtype
        )

    def accumulate(self, op: str, start: Value, terms: Value, dtype: DType) -> Value:
        terms = self.stored(terms, dtype)
        first = terms[0]
        total = self.combine(op, tuple(np.broadcast_to(t, first.shape) for t in terms), dtype)
        return self.op(op, [start, total], [dtype, dtype], dtype)

    def combine(self, op: str, v: Value, dtype: DType) -> Value:
        """All along the first axis, which is not empty; all planes have one shape."""
        with np.errstate(all="ignore"):
            if not dtype.is_float:
                total = np.asarray(UFUNCS[op].reduce(v[0], axis=0)).astype(v[0].dtype, copy=False)
                return total, np.bitwise_or.reduce(v[1], axis=0)
            if op in ("max", "min"):
                return self.best(v, 1 if op == "max" else -1)[0]
            code = np.bitwise_or.reduce(v[-1], axis=0)
            if op == "add":
                made = [np.add.reduce(x, axis=0) % q for x, q in zip(v[:-1], self.moduli)]
                if v[-1].max(initial=0) < SPECIAL:
                    return *made, code
                infinite = infinity(v)
                plus, minus = (np.asarray((s * infinite > 0).any(axis=0)) for s in (1, -1))
                nan = np.asarray(is_nan(v).any(axis=0)) | (plus & minus)
                return self.marked(made, code, nan, plus, minus)
            if v[-1].max(initial=0) < SPECIAL:
                made = [field.product(x, q) for x, q in zip(v[:-1], self.primes, strict=True)]
                return *made, code
            while v[0].shape[0] > 1:
                half = v[0].shape[0] // 2
                low, high = (tuple(p[k : k + half] for p in v) for k in (0, half))
                made_half = self.mul(low, high)
                rest = tuple(p[2 * half :] for p in v)
                v = tuple(np.concatenate(pair) for pair in zip(made_half, rest, strict=True))
            return tuple(p[0] for p in v)

    def best(self, v: Value, sign: int) -> tuple[Value, Array]:
        """The greatest (least) along the first axis, and its first place; NaN is beyond all."""
        keys = sign * order(v)
        if v[-1].max(initial=0) >= SPECIAL:
            keys = np.where(is_nan(v), np.int64(1 << 50), keys)
        place = keys.argmax(axis=0)
        found = tuple(np.take_along_axis(p, place[None], axis=0)[0] for p in v)
        return self.decided(found, np.bitwise_or.reduce(v[-1], axis=0)), place

    def argument(self, name: str, value: Value, active: Value, dtype: DType) -> Value:
        maybe = active[1] if len(active) > 1 else NOTHING
        if is_known(value) or not dtype.is_float:
            v = value[0]
            index, _ = first_best(name, v, active[0], f64 if dtype.is_float else dtype)
            codes = [maybe, *(c for c in value[1:])]
            if dtype.is_float and not is_placed(v).all():
                codes.append(all_lost(~is_placed(v)) & np.uint8(LOST))
        else:
            keys = (1 if name == "argmax" else -1) * order(value)
            keys = np.where(is_nan(value), np.int64(1 << 50), keys)
            keys = np.where(active[0], keys, np.int64(-(1 << 50)))
            some = np.broadcast_to(active[0], keys.shape).any(axis=0)
            index = np.where(some, keys.argmax(axis=0), -1).astype(np.int64)
            codes = [maybe, value[-1] & np.uint8(LOST)]
        if len(active) == len(value) == 1 and len(codes) == 1:
            return (index,)
        shape = np.broadcast_shapes(value[0].shape, active[0].shape)
        lost = np.zeros(index.shape, np.uint8)
        for c in codes:
            if c.any():
                lost = lost | np.bitwise_or.reduce(np.broadcast_to(c, shape), axis=0)
        return index, lost

    def scatter(
        self, op: str | None, memory: Value, places: Array, values: Value, dtype: DType
    ) -> None:
        values = self.stored(values, dtype)
        values = tuple(np.broadcast_to(v, values[0].shape) for v in values)
        if op is None:
            for m, v in zip(memory, values, strict=True):
                m[places] = v
            return
        sort = np.argsort(places, kind="stable")
        ordered = places[sort]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        counts = np.diff(np.append(starts, ordered.size))
        for k in range(int(counts.max())):  # the k-th of those that meet at one place
            here = sort[starts[counts > k] + k]
            at = places[here]
            old = tuple(m[at] for m in memory)
            new = self.op(op, [old, tuple(v[here] for v in values)], [dtype, dtype], dtype)
            for m, n in zip(memory, new, strict=True):
                m[at] = n

    def doubt(self, value: Value) -> Array | None:
        if len(value) == 1 or not value[-1].any():
            return None
        found = (value[-1] & np.uint8(LOST)) > 0
        return np.asarray(found) if found.any() else None

    def unknown(self, value: Value, where: Array) -> Value:
        if len(value) == 1:
            v = value[0]
            value = self.stored(value, f64 if v.dtype == np.float64 else i64)
        return *value[:-1], value[-1] | all_lost(where)
