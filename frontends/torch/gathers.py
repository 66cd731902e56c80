"""Operators that read where an index says, or along an axis in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import i64
from kir.errors import UnsupportedError
from kir.frontends.torch.dims import Index
from kir.frontends.torch.structural import amax, amin, argmax, argmin
from kir.frontends.torch.table import Structural
from kir.frontends.torch.values import Value, aligned, cast, fresh, held
from kir.ir import Expr, const
from kir.ops import op

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
        chosen = x.dims[axis].split(row) if x.dims[axis].size > 1 else ()
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
            found.append(d.split(e) if d.size > 1 else ())
        return x.at(found)

    return x.seen(dims, at)


def gather(
    low: Lowering, x: Value, axis: int, indices: Value, sparse: bool = False, **_: Any
) -> Value:
    if not x.dims:
        return x
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
            found.append(d.split(along) if d.size > 1 else ())
        return x.at(found)

    return Value(indices.dims, x.dtype, at)


GATHERS: dict[str, Structural] = {
    "flip.default": flip,
    "diagonal.default": diagonal,
    "max.dim": best("max"),
    "min.dim": best("min"),
    "index_select.default": index_select,
    "index.Tensor": index,
    "gather.default": gather,
}
