"""What values are: the evaluator is one, and a domain says what it computes with.

A value is a tuple of arrays, its *planes*, that are moved about alike (read, stored, masked,
broadcast). The first plane is the value that decides: indices and masks come from it.
`AsWritten` has one plane, in the dtype as written; `kir.interpret.bounded` has a second one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from kir.dtypes import DType, bool_, i64
from kir.ir import ARG_REDUCTIONS, UPDATE_OPS
from kir.ops import EXACT_IN_F32, OPS, compute, identity

Array = np.ndarray[Any, Any]
Value = tuple[Array, ...]

UFUNCS: dict[str, Any] = {name: OPS[name].numpy for name in UPDATE_OPS}


class Domain(ABC):
    """Arithmetic on values. Arrays broadcast as NumPy's do; new axes stand in front."""

    contracts: ClassVar[bool] = False
    """Whether `contract` may find anything."""
    budget: ClassVar[int] = 1 << 22
    """Most elements that one temporary should have."""

    @abstractmethod
    def lift(self, array: Array, dtype: DType) -> Value:
        """An exact value of `dtype`: an input, a constant, an index."""

    @abstractmethod
    def poison(self, shape: tuple[int, ...], dtype: DType) -> Value:
        """Fresh memory that was never written."""

    @abstractmethod
    def op(
        self, name: str, args: Sequence[Value], dtypes: Sequence[DType], dtype: DType
    ) -> Value: ...

    @abstractmethod
    def cast(self, value: Value, source: DType, dtype: DType) -> Value: ...

    @abstractmethod
    def bitcast(self, value: Value, source: DType, dtype: DType) -> Value: ...

    @abstractmethod
    def reduce(self, op: str, terms: Value, axes: int, count: int, dtype: DType) -> Value:
        """Combine over the first `axes` axes in any order; `count` terms in the whole reduction,
        of which these may be a part."""

    @abstractmethod
    def accumulate(self, op: str, start: Value, terms: Value, dtype: DType) -> Value:
        """`start op terms[0] op terms[1] ...` in this order, along the first axis of `terms`."""

    @abstractmethod
    def argument(self, name: str, value: Value, active: Value, dtype: DType) -> Value:
        """First index along the first axis of the greatest (least) active value; -1 for none."""

    @abstractmethod
    def scatter(
        self, op: str | None, memory: Value, places: Array, values: Value, dtype: DType
    ) -> None:
        """`memory[places[n]] op= values[n]` for n in order; all are flat."""

    @abstractmethod
    def doubt(self, value: Value) -> Array | None:
        """Where an index or a condition may come out otherwise; None for nowhere."""

    @abstractmethod
    def unknown(self, value: Value, where: Array) -> Value:
        """`value`, of which nothing can be said `where`."""

    def stored(self, value: Value, dtype: DType) -> Value:
        """`value` with all the planes that a tensor of `dtype` has."""
        return value

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
        """A sum in `dtype` of products `a * b` in `made`, which `dtype` holds exactly, over the
        first axes, of sizes `lead`; `count` terms in the whole sum, of which these may be a part.
        The factors have all axes of the frame, of size 1 where they do not depend on them. With
        `start` that is one more term of the sum. None where it takes the single products to
        tell."""
        return None

    def constant(self, value: int | float | bool, dtype: DType) -> Value:
        return self.lift(np.asarray(value).astype(dtype.numpy), dtype)

    def identity(self, op: str, dtype: DType) -> Value:
        """The value that `op` leaves alone: -0.0 for a float sum, for x + 0.0 loses a sign."""
        value = identity(op, dtype).value
        return self.constant(-0.0 if op == "add" and dtype.is_float else value, dtype)

    def select(self, condition: Value, a: Value, b: Value, dtype: DType) -> Value:
        return self.op("select", [condition, a, b], [bool_, dtype, dtype], dtype)

    def both(self, a: Value, b: Value) -> Value:
        return self.op("and", [a, b], [bool_, bool_], bool_)


def cast_array(a: Array, source: DType, dtype: DType) -> Array:
    """Convert: floats to nearest even; to integers truncating, saturating, NaN to 0."""
    with np.errstate(all="ignore"):
        if dtype.is_bool:
            return np.asarray(a != np.zeros((), a.dtype))
        if source.is_float and dtype.is_integer:
            return _float_to_integer(a, dtype)
        if dtype.is_float and dtype.bits <= 16 and source.bits >= 32:
            a = _sticky(a, source)
        return a.astype(dtype.numpy)


def _float_to_integer(a: Array, dtype: DType) -> Array:
    wide = np.trunc(a.astype(np.float64))
    low, high = dtype.limits()
    over, under = wide >= float(high), wide <= float(low)
    safe = np.where(over | under | np.isnan(wide), 0.0, wide).astype(dtype.numpy)
    limits = np.asarray(high, dtype.numpy), np.asarray(low, dtype.numpy)
    return np.where(over, limits[0], np.where(under, limits[1], safe))


def _sticky(a: Array, source: DType) -> Array:
    """`a` in f32, rounded to odd, so that rounding it again to 16 or 8 bits rounds only once."""
    if source.is_integer:
        low = np.asarray(4095, a.dtype)
        lost = (a & low) != 0
        big = np.abs(a.astype(np.float64)) >= 2.0**40
        kept = (a & ~low) | np.where(lost, np.asarray(4096, a.dtype), np.asarray(0, a.dtype))
        a = np.where(big, kept, a).astype(np.float64)
    if a.dtype == np.float32:
        return a
    near = a.astype(np.float32)
    back = near.astype(np.float64)
    inexact = (back != a) & np.isfinite(back)
    even = (near.view(np.int32) & 1) == 0
    toward = np.where(back < a, np.float32(np.inf), np.float32(-np.inf))
    other = np.nextafter(near, toward).astype(np.float32)
    return np.where(inexact & even, other, near)


def poisoned(shape: tuple[int, ...], dtype: DType) -> Array:
    """Memory that shows where it was not written: NaN, or 0xA5 in every byte; True for bool."""
    if dtype.is_float:
        return np.full(shape, math.nan, np.float64).astype(dtype.numpy)
    if dtype.is_bool:
        return np.ones(shape, np.bool_)
    return np.full((*shape, dtype.bytes), 0xA5, np.uint8).view(dtype.numpy).reshape(shape)


@cache
def _direct(name: str, operand: DType, dtype: DType) -> Callable[..., Array] | None:
    """The function that computes an op as it is, where NumPy's own gives `dtype`; it is called with
    floating-point errors ignored. None where operands are widened, or the result is rounded."""
    if name == "select":
        return np.where
    f = OPS[name].numpy
    native = operand.numpy.isbuiltin == 1 and dtype.numpy.isbuiltin == 1
    widened = operand.is_float and (
        operand.bits < 32 or (operand.bits < 64 and name not in EXACT_IN_F32)
    )
    return f if native and not widened and isinstance(f, np.ufunc) else None


class AsWritten(Domain):
    """One plane: every operation rounded to its dtype, as the kernel is written."""

    def lift(self, array: Array, dtype: DType) -> Value:
        return (np.asarray(array, dtype.numpy),)

    def poison(self, shape: tuple[int, ...], dtype: DType) -> Value:
        return (poisoned(shape, dtype),)

    def op(self, name: str, args: Sequence[Value], dtypes: Sequence[DType], dtype: DType) -> Value:
        direct = _direct(name, dtypes[0], dtype)
        if direct is not None:
            return (direct(*(a[0] for a in args)),)
        with np.errstate(all="ignore"):
            return (np.asarray(compute(name, [a[0] for a in args], dtype)),)

    def cast(self, value: Value, source: DType, dtype: DType) -> Value:
        return (cast_array(value[0], source, dtype),)

    def bitcast(self, value: Value, source: DType, dtype: DType) -> Value:
        return (bitcast_array(value[0], dtype),)

    def reduce(self, op: str, terms: Value, axes: int, count: int, dtype: DType) -> Value:
        return (reduce_array(op, terms[0], axes, dtype),)

    def accumulate(self, op: str, start: Value, terms: Value, dtype: DType) -> Value:
        (t,), (s,) = terms, start
        if dtype.is_float and op in ("add", "mul"):
            shape = np.broadcast_shapes(s.shape, t.shape[1:])
            every = np.empty((t.shape[0] + 1, *shape), dtype.numpy)
            every[0], every[1:] = (
                s,
                t.reshape(t.shape[0], *(1,) * (len(shape) + 1 - t.ndim), *t.shape[1:]),
            )
            with np.errstate(all="ignore"):
                return (UFUNCS[op].accumulate(every, axis=0)[-1],)
        total = reduce_array(op, t, 1, dtype)
        with np.errstate(all="ignore"):
            return (np.asarray(UFUNCS[op](s, total)).astype(dtype.numpy, copy=False),)

    def argument(self, name: str, value: Value, active: Value, dtype: DType) -> Value:
        return (first_best(name, value[0], active[0], dtype)[0],)

    def scatter(
        self, op: str | None, memory: Value, places: Array, values: Value, dtype: DType
    ) -> None:
        if op is None:
            memory[0][places] = values[0]
        else:
            with np.errstate(all="ignore"):
                UFUNCS[op].at(memory[0], places, values[0])

    def doubt(self, value: Value) -> Array | None:
        return None

    def unknown(self, value: Value, where: Array) -> Value:
        return value


def bitcast_array(a: Array, dtype: DType) -> Array:
    contiguous = np.ascontiguousarray(a)
    return contiguous.view(dtype.numpy).reshape(a.shape)


def reduce_array(op: str, terms: Array, axes: int, dtype: DType) -> Array:
    """Combine the first `axes` axes in `dtype`, every step rounded to it."""
    flat = terms.reshape(-1, *terms.shape[axes:]) if axes != 1 else terms
    with np.errstate(all="ignore"):
        if dtype.is_float and dtype.bits < 32 and op in ("add", "mul"):
            total = UFUNCS[op].accumulate(flat, axis=0)[-1]  # rounds each step; reduce may not
        elif op in ("and", "or"):
            total = UFUNCS[op].reduce(flat, axis=0)
        elif op in ("add", "mul"):
            total = UFUNCS[op].reduce(terms, axis=tuple(range(axes)), dtype=dtype.numpy)
        else:
            total = UFUNCS[op].reduce(flat, axis=0)
    return np.asarray(total)


def first_best(name: str, value: Array, active: Array, dtype: DType) -> tuple[Array, Array]:
    """The arg-reduction's index (i64, -1 for none) and the best value, along the first axis."""
    op = ARG_REDUCTIONS[name]
    shape = np.broadcast_shapes(value.shape, active.shape)
    value, active = np.broadcast_to(value, shape), np.broadcast_to(active, shape)
    neutral = np.asarray(identity(op, dtype).value).astype(value.dtype)
    best = reduce_array(op, np.where(active, value, neutral), 1, dtype)
    hit = value == best
    if dtype.is_float:
        wide = value.astype(np.float64)
        hit = hit | (np.isnan(wide) & np.isnan(best.astype(np.float64)))
    hit = hit & active
    index = np.where(hit.any(axis=0), hit.argmax(axis=0), -1)
    return index.astype(i64.numpy), best
