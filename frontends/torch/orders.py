"""Operators that put elements in order: by rank, which counts what comes before each element, so
that equal elements keep their order and NaN is greatest. The work is the square of the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import DTYPES, i64
from kir.frontends.torch.dims import Index
from kir.frontends.torch.scatters import scattered
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import (
    CHEAP,
    REDUCED,
    Value,
    cast,
    fresh,
    held,
    index_of,
    pointwise,
    reduced,
    selected,
    sliced,
)
from kir.ir import Const, Expr, Reduce, const
from kir.ops import identity, op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def _comparable(low: Lowering, x: Value) -> Value:
    """A bool has no order here: an i8 instead."""
    if x.dtype.is_bool:
        i8 = DTYPES["i8"]
        return low.keep(pointwise(lambda e: cast(e, i8), [x], i8))
    return x if x.cost == CHEAP else low.keep(x)


def _less(a: Expr, b: Expr) -> Expr:
    """NaN is greater than all else."""
    if not a.dtype.is_float:
        return op("lt", a, b)
    return op("or", op("lt", a, b), op("and", op("isnan", b), op("not", op("isnan", a))))


def ranks(low: Lowering, x: Value, axis: int, descending: bool) -> Value:
    """How many elements of the axis come before each."""
    low.whole(x.dims[axis])
    size = x.dims[axis].size
    x = _comparable(low, x)

    def at(indices: Sequence[Index]) -> Expr:
        if size <= 1:
            return const(0)
        (other,) = low.names.axes(x.dims[axis])
        there = x.at([*indices[:axis], index_of([other]), *indices[axis + 1 :]])
        here = x.at(indices)
        before = _less(here, there) if descending else _less(there, here)
        after = _less(there, here) if descending else _less(here, there)
        place, own = index_of([other])[0], indices[axis][0]
        earlier = op("and", op("not", after), op("lt", place, own))
        return Reduce("sum", (other,), (), cast(op("or", before, earlier), i64))

    return low.keep(Value(x.dims, i64, at, REDUCED))


def order(low: Lowering, x: Value, axis: int, descending: bool) -> Value:
    """The index of each element of the sorted axis."""
    found = ranks(low, x, axis, descending)
    dims = fresh(x.shape)
    for mine, theirs in zip(dims, x.dims, strict=True):
        low.walk_together(mine, theirs)
    zeros = Value(dims, i64, lambda _: const(0))
    places = Value(x.dims, i64, lambda i: x.dims[axis].joined(i[axis]))
    return scattered(low, zeros, axis, found, places, None)


def picked(low: Lowering, x: Value, axis: int, places: Value) -> Value:
    """Elements at indices of one axis."""
    x = x if x.cost == CHEAP else low.keep(x)
    size = x.dims[axis].size

    def at(indices: Sequence[Index]) -> Expr:
        here: Index = () if size == 1 else (held(places.at(indices), size),)
        return x.at([*indices[:axis], here, *indices[axis + 1 :]])

    return Value(places.dims, x.dtype, at)


def _sorted(
    low: Lowering, x: Value, axis: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    if not x.dims:
        return x, Value((), i64, lambda _: const(0))
    axis %= len(x.dims)
    places = order(low, x, axis, descending)
    return picked(low, x, axis, places), places


def stable(
    low: Lowering, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    return _sorted(low, x, dim, descending)


def topk(
    low: Lowering, x: Value, k: int, axis: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[Value, Value]:
    if not x.dims:
        return _sorted(low, x)
    axis %= len(x.dims)
    places = sliced(order(low, x, axis, largest), axis, 0, 1, k)
    return picked(low, x, axis, places), places


def kthvalue(
    low: Lowering, x: Value, k: int, axis: int = -1, keep: bool = False
) -> tuple[Value, Value]:
    if not x.dims:
        return _sorted(low, x)
    axis %= len(x.dims)
    places = low.keep(sliced(order(low, x, axis, False), axis, k - 1, 1, 1))
    return _one(low, x, axis, places, keep)


def _one(low: Lowering, x: Value, axis: int, places: Value, keep: bool) -> tuple[Value, Value]:
    """The elements at places of an axis that has one."""
    value = picked(low, x, axis, places)
    if keep:
        return value, places
    return selected(value, axis, 0), selected(places, axis, 0)


def median(skip_nan: bool) -> Structural:
    """The lower of the middle two; of a NaN the first, unless they are skipped."""

    def both(low: Lowering, x: Value, axis: int, keep: bool = False) -> tuple[Value, Value]:
        if not x.dims:
            return _sorted(low, x)
        axis %= len(x.dims)
        x = x if x.cost == CHEAP else low.keep(x)
        size, floats = x.dims[axis].size, x.dtype.is_float
        places = order(low, x, axis, False)
        if not floats:
            return _one(low, x, axis, sliced(places, axis, (size - 1) // 2, 1, 1), keep)
        known = pointwise(lambda e: cast(op("not", op("isnan", e)), i64), [x], i64)
        count = low.keep(reduced("sum", known, [axis], True, low.names))
        first = _first_nan(low, x, axis)

        def at(indices: Sequence[Index]) -> Expr:
            n = count.at(indices)
            middle = op("floordiv", op("max", op("sub", n, const(1)), const(0)), const(2))
            here: Index = (held(middle, size),) if size > 1 else ()
            found = places.at([*indices[:axis], here, *indices[axis + 1 :]])
            if skip_nan:
                return op("select", op("eq", n, const(0)), const(0), found)
            return op("select", op("lt", n, const(size)), first.at(indices), found)

        return _one(low, x, axis, low.keep(Value(count.dims, i64, at)), keep)

    return both


def _first_nan(low: Lowering, x: Value, axis: int) -> Value:
    missing = low.keep(pointwise(lambda e: cast(op("isnan", e), i64), [x], i64))
    return low.keep(reduced("argmax", missing, [axis], True, low.names, i64, i64))


def median_of_all(skip_nan: bool) -> Structural:
    inner = median(skip_nan)

    def one(low: Lowering, x: Value) -> Value:
        count = 1
        for d in x.dims:
            count *= d.size
        if count == 0:
            nan = Const(float("nan"), x.dtype) if x.dtype.is_float else identity("min", x.dtype)
            return Value((), x.dtype, lambda _: nan)
        made: Any = inner(low, low.viewed(low.readable(x), [count]), 0)
        first: Value = made[0]
        return first

    return one


def mode(low: Lowering, x: Value, axis: int = -1, keep: bool = False) -> tuple[Value, Value]:
    """The least of the most frequent elements, and the last place that has it."""
    if not x.dims:
        return _sorted(low, x)
    axis %= len(x.dims)
    low.whole(x.dims[axis])
    dtype, size = x.dtype, x.dims[axis].size
    x = _comparable(low, x)

    def counted(indices: Sequence[Index]) -> Expr:
        if size <= 1:
            return const(1)
        (other,) = low.names.axes(x.dims[axis])
        there = x.at([*indices[:axis], index_of([other]), *indices[axis + 1 :]])
        return Reduce("sum", (other,), (), cast(op("eq", there, x.at(indices)), i64))

    count = low.keep(Value(x.dims, i64, counted, REDUCED))
    most = low.keep(reduced("max", count, [axis], True, low.names))
    greatest = identity("min", x.dtype)
    left = pointwise(lambda e, n, m: op("select", op("eq", n, m), e, greatest), [x, count, most],
                     x.dtype)  # fmt: skip
    least = low.keep(reduced("min", left, [axis], True, low.names))
    places = Value(x.dims, i64, lambda i: x.dims[axis].joined(i[axis]))
    where = pointwise(lambda e, v, k: op("select", op("eq", e, v), k, const(0)), [x, least, places],
                      i64)  # fmt: skip
    last = low.keep(reduced("max", where, [axis], True, low.names))
    value = pointwise(lambda e: cast(e, dtype), [least], dtype)
    if keep:
        return value, last
    return selected(value, axis, 0), selected(last, axis, 0)


def searchsorted(
    low: Lowering, ordered: Value, x: Any, out_int32: bool = False, right: bool = False,
    side: str | None = None, sorter: Value | None = None,
) -> Value:  # fmt: skip
    """How many elements of a sorted row are before each of `x`; of equal ones all, from `right`."""
    right = right or side == "right"
    dtype = low.out.dtype
    if not isinstance(x, Value):
        number = x
        kind = ordered.dtype
        x = Value((), kind, lambda _: Const(float(number) if kind.is_float else int(number), kind))
    axis = len(ordered.dims) - 1
    if sorter is not None:
        ordered = low.keep(picked(low, ordered, axis, sorter))
    wide = ordered.dtype if ordered.dtype.bits >= x.dtype.bits else x.dtype
    if ordered.dtype.is_float != x.dtype.is_float:
        wide = DTYPES["f64"]
    row = ordered.dims[-1]
    for a, b in zip(ordered.dims[:-1], x.dims, strict=False):
        low.walk_together(a, b)
    low.whole(row)

    def at(indices: Sequence[Index]) -> Expr:
        axes = low.names.axes(row)
        lead = list(indices[:-1]) if len(ordered.dims) > 1 else []
        there = cast(ordered.at([*lead, index_of(axes)]), wide)
        own = cast(x.at(indices), wide)
        before = op("not", op("gt" if right else "ge", there, own))
        counted = cast(before, i64)
        return cast(Reduce("sum", axes, (), counted) if axes else counted, dtype)

    return Value(x.dims, dtype, at, REDUCED)


def bucketize(
    low: Lowering, x: Any, bounds: Value, out_int32: bool = False, right: bool = False
) -> Value:
    return searchsorted(low, bounds, x, out_int32, right)


ORDERS: dict[str, Structural] = {
    "sort.default": _sorted,
    "sort.stable": stable,
    "topk.default": topk,
    "kthvalue.default": kthvalue,
    "median.dim": median(False),
    "nanmedian.dim": median(True),
    "median.default": median_of_all(False),
    "nanmedian.default": median_of_all(True),
    "mode.default": mode,
    "searchsorted.Tensor": searchsorted,
    "searchsorted.Scalar": searchsorted,
    "bucketize.Tensor": bucketize,
    "bucketize.Scalar": bucketize,
}
