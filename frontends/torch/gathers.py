"""Operators that read where an index says, or along an axis in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import i64
from kir.errors import UnsupportedError
from kir.frontends.torch.dims import Index
from kir.frontends.torch.structural import amax, amin, argmax, argmin
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import (
    CHEAP,
    HEAVY,
    Value,
    aligned,
    cast,
    expanded,
    fresh,
    held,
    pointwise,
)
from kir.ir import Expr, const
from kir.ops import identity, op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def flip(low: Lowering, x: Value, axes: Sequence[int]) -> Value:
    listed = [a % len(x.dims) for a in axes] if x.dims else []
    dims = [fresh([d.size])[0] if k in listed else d for k, d in enumerate(x.dims)]

    def at(indices: Sequence[Index]) -> Expr:
        place = list(indices)
        for k in listed:
            if dims[k].size > 1:
                back = op("sub", const(dims[k].size - 1), dims[k].joined(indices[k]))
                place[k] = x.dims[k].split(back)
        return x.at(place)

    return x.seen(dims, at)


def diagonal(low: Lowering, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    a, b = a % len(x.dims), b % len(x.dims)
    size = low.out.shape[-1]
    rest = [k for k in range(len(x.dims)) if k not in (a, b)]
    new = fresh([size])[0]

    def at(indices: Sequence[Index]) -> Expr:
        place: list[Index] = [()] * len(x.dims)
        for k, i in zip(rest, indices[:-1], strict=True):
            place[k] = i
        along = new.joined(indices[-1]) if size > 1 else const(0)
        for k, start in ((a, max(-offset, 0)), (b, max(offset, 0))):
            if x.dims[k].size > 1:
                place[k] = x.dims[k].split(op("add", along, const(start)) if start else along)
        return x.at(place)

    return x.seen([*(x.dims[k] for k in rest), new], at)


def diagonal_scatter(
    low: Lowering, x: Value, source: Value, offset: int = 0, a: int = 0, b: int = 1
) -> Value:
    """A copy of `x` with `source` on a diagonal."""
    a, b = a % len(x.dims), b % len(x.dims)
    size = source.shape[-1]
    rest = [k for k in range(len(x.dims)) if k not in (a, b)]
    for d in (x.dims[a], x.dims[b], source.dims[-1]):
        low.whole(d)
    for k, d in zip(rest, source.dims, strict=False):
        low.walk_together(x.dims[k], d)
    source = source if source.cost == CHEAP else low.keep(source)

    def at(indices: Sequence[Index]) -> Expr:
        if not size:
            return x.at(indices)
        row, column = (x.dims[k].joined(indices[k]) for k in (a, b))
        on = op("eq", op("sub", column, row), const(offset))
        along = held(op("sub", row, const(max(-offset, 0))), size)
        inside = op("and", on, op("ge", row, const(max(-offset, 0))))
        place: list[Index] = [indices[k] for k in rest]
        place.append((along,) if size > 1 else ())
        return op("select", inside, cast(source.at(place), x.dtype), x.at(indices))

    return Value(x.dims, x.dtype, at, HEAVY)


def masked_scatter(low: Lowering, x: Value, mask: Value, source: Value) -> Value:
    """Where the mask holds, the elements of `source` in order."""
    from kir.frontends.torch.scatters import scanned

    shape = low.out.shape
    total = 1
    for n in shape:
        total *= n
    count = 1
    for n in source.shape:
        count *= n
    if not total or not count:
        return x
    x, mask = (expanded(v, shape) for v in (x, mask))
    flat = low.viewed(low.keep(pointwise(lambda m: cast(m, i64), [mask], i64)), [total])
    sums = scanned(low, flat, 0, i64, const(0), lambda past, e, _: op("add", past, e))
    places = low.viewed(sums, shape)
    values = low.viewed(low.readable(source), [count])
    low.whole(values.dims[0])

    def element(e: Expr, m: Expr, k: Expr) -> Expr:
        here: Index = (held(op("sub", k, const(1)), count),) if count > 1 else ()
        return op("select", m, values.at([here]), e)

    return pointwise(element, [x, mask, places], x.dtype)


def best(name: str) -> Structural:
    def both(low: Lowering, x: Value, axis: int, keep: bool = False) -> tuple[Value, Value]:
        value = (amax if name == "max" else amin)(low, x, [axis], keep)
        place = (argmax if name == "max" else argmin)(low, x, axis, keep)
        return low.keep(value), low.keep(place)

    return both


def from_either_end(e: Expr, size: int) -> Expr:
    """An index as torch takes it: a negative one counts from the end."""
    e = cast(e, i64)
    return held(op("select", op("lt", e, const(0)), op("add", e, const(size)), e), size)


def index_select(low: Lowering, x: Value, axis: int, indices: Value) -> Value:
    if not x.dims:
        return x
    axis %= len(x.dims)
    low.whole(x.dims[axis])
    new = indices.dims[0] if indices.dims else fresh([1])[0]

    def at(place: Sequence[Index]) -> Expr:
        row = held(indices.at([place[axis]] if indices.dims else []), x.dims[axis].size)
        chosen = x.dims[axis].split(row) if x.dims[axis].size != 1 else ()
        return x.at([*place[:axis], chosen, *place[axis + 1 :]])

    return x.seen([*x.dims[:axis], new, *x.dims[axis + 1 :]], at)


def index(low: Lowering, x: Value, indices: Sequence[Value | None]) -> Value:
    """`x[i, :, j]` with tensors of indices, broadcast against one another."""
    given = [(k, v) for k, v in enumerate(indices) if v is not None]
    if any(v.dtype.is_bool for _, v in given):
        raise UnsupportedError("a mask gives a shape that depends on data")
    axes = [k for k, _ in given]
    rank = max(len(v.dims) for _, v in given)
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    start = axes[0] if together else 0
    rest = [k for k in range(len(x.dims)) if k not in axes]
    shape = low.out.shape
    middle = fresh(shape[start : start + rank])
    for _, v in given:
        for mine, theirs in zip(v.dims, middle[rank - len(v.dims) :], strict=True):
            if mine.size == theirs.size:
                low.walk_together(theirs, mine)
    for k in axes:
        low.whole(x.dims[k])
    dims = [x.dims[k] for k in rest]
    dims[start:start] = middle

    def at(place: Sequence[Index]) -> Expr:
        here = place[start : start + rank]
        left = iter([*place[:start], *place[start + rank :]])
        found: list[Index] = []
        chosen = dict(given)
        for k, d in enumerate(x.dims):
            if k not in chosen:
                found.append(next(left))
                continue
            v = chosen[k]
            e = from_either_end(v.at(aligned(v, middle, here)), d.size)
            found.append(d.split(e) if d.size != 1 else ())
        return x.at(found)

    return x.seen(dims, at)


def gather(
    low: Lowering, x: Value, axis: int, indices: Value, sparse: bool = False, **_: Any
) -> Value:
    if not x.dims or 0 in indices.shape:  # of any rank, where there are none
        return x if not x.dims else Value(indices.dims, x.dtype, lambda _: identity("add", x.dtype))
    axis %= len(x.dims)
    for k, d in enumerate(x.dims):
        if k == axis or d.size != indices.dims[k].size:
            low.whole(d)
        else:
            low.walk_together(indices.dims[k], d)
    if not indices.dims:
        raise UnsupportedError("gather by one number is not compiled")

    def at(place: Sequence[Index]) -> Expr:
        e = held(indices.at(place), x.dims[axis].size)
        found: list[Index] = []
        for k, (d, i) in enumerate(zip(x.dims, place, strict=True)):
            along = e if k == axis else indices.dims[k].joined(i) if i else const(0)
            found.append(d.split(along) if d.size != 1 else ())
        return x.at(found)

    return Value(indices.dims, x.dtype, at)


GATHERS: dict[str, Structural] = {
    "flip.default": flip,
    "diagonal.default": diagonal,
    "diagonal_scatter.default": diagonal_scatter,
    "masked_scatter.default": masked_scatter,
    "max.dim": best("max"),
    "min.dim": best("min"),
    "index_select.default": index_select,
    "index.Tensor": index,
    "gather.default": gather,
}
