"""Operators over windows: pooling and its gradients, padding with a constant, unfold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from kir.dtypes import DType, i64
from kir.frontends.torch.dims import Dim, Index
from kir.frontends.torch.scatters import scattered
from kir.frontends.torch.table import Structural, number, wide_of
from kir.frontends.torch.values import REDUCED, Value, cast, padded, pointwise
from kir.ir import Axis, Const, Expr, Reduce, Var, const
from kir.ops import identity, op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def spread(values: Any, rank: int) -> list[int]:
    """One number for each dim of space, of those that torch gives."""
    listed = [values] if isinstance(values, int) else list(values)
    return listed if len(listed) == rank else [listed[0]] * rank


def moved(index: Expr, stride: int, tap: Expr, dilation: int, padding: int) -> Expr:
    """index * stride + tap * dilation - padding."""
    e = index if stride == 1 else op("mul", index, const(stride))
    e = op("add", e, tap if dilation == 1 else op("mul", tap, const(dilation)))
    return op("sub", e, const(padding)) if padding else e


def window(x: Value, lead: Sequence[Index], place: Sequence[Expr], fill: Expr) -> Expr:
    """A read that may be beyond the edges, where it finds `fill`."""
    return padded(x, [*lead, *((e,) for e in place)], fill)


def _spaced(low: Lowering, x: Value, rank: int, shape: Sequence[int]) -> tuple[Value, list[Dim]]:
    """`x`, readable, and the dims of a result: the last `rank` are space and kept whole."""
    for d in x.dims[-rank:]:
        low.whole(d)
    x, dims = low.readable(x), list(low.dims(shape))
    for k, d in enumerate(dims):
        if k < len(dims) - rank:
            low.walk_together(d, x.dims[k])
        else:
            low.whole(d)
    return x, dims


def _taps(flat: Expr, sizes: Sequence[int]) -> list[Expr]:
    """A number of a tap, by dims."""
    found: list[Expr] = []
    for n in reversed(sizes[1:]):
        found.append(op("mod", flat, const(n)))
        flat = op("floordiv", flat, const(n))
    return [flat, *reversed(found)]


def _flat(place: Sequence[Expr], dims: Sequence[Dim]) -> Expr:
    total = place[0]
    for e, d in zip(place[1:], dims[1:], strict=True):
        total = op("add", op("mul", total, const(d.size)), e)
    return total


Place = Callable[[int, Expr, Expr], Expr]
"""Of a dim of space, the index of a result and that of a tap: where it reads."""


def _greatest(
    low: Lowering, x: Value, rank: int, sizes: Sequence[int], place: Place,
    inside: Callable[[int, Expr, Expr], Expr | None] = lambda k, i, t: None,
) -> tuple[Value, Value]:  # fmt: skip
    """The greatest of each window and where it is in space, flat; the first of equal ones."""
    x, dims = _spaced(low, x, rank, low.out.shape)
    lowest = identity("max", x.dtype)

    def parts(indices: Sequence[Index], tap: Sequence[Expr]) -> tuple[list[Expr], list[Expr]]:
        own = [d.joined(i) for d, i in zip(dims[-rank:], indices[-rank:], strict=True)]
        where = [inside(k, i, t) for k, (i, t) in enumerate(zip(own, tap, strict=True))]
        places = [place(k, i, t) for k, (i, t) in enumerate(zip(own, tap, strict=True))]
        return places, [c for c in where if c is not None]

    def greatest(indices: Sequence[Index]) -> Expr:
        axes = [Axis(f"a{low.names.next()}", const(n)) for n in sizes]
        places, where = parts(indices, [Var(a.name) for a in axes])
        read = window(x, indices[:-rank], places, lowest)
        return Reduce("max", tuple(axes), tuple(where), read)

    def first(indices: Sequence[Index]) -> Expr:
        axis = Axis(f"a{low.names.next()}", const(prod(sizes)))
        places, where = parts(indices, _taps(Var(axis.name), sizes))
        inner = padded_where(x, places)
        read = window(x, indices[:-rank], places, lowest)
        return Reduce("argmax", (axis,), (*where, *inner), read)

    best = low.keep(Value(dims, i64, first, REDUCED))

    def where_is(indices: Sequence[Index]) -> Expr:
        places, _ = parts(indices, _taps(best.at(indices), sizes))
        return _flat(places, x.dims[-rank:])

    return low.keep(Value(dims, x.dtype, greatest, REDUCED)), Value(dims, i64, where_is)


def padded_where(x: Value, places: Sequence[Expr]) -> list[Expr]:
    """That places are within the last dims of `x`: what is beyond them is never an argmax."""
    found: list[Expr] = []
    for d, e in zip(x.dims[-len(places) :], places, strict=True):
        found += [op("ge", e, const(0)), op("lt", e, const(d.size))]
    return found


def max_pool(rank: int) -> Structural:
    def both(
        low: Lowering, x: Value, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil: bool = False,
    ) -> tuple[Value, Value]:  # fmt: skip
        sizes, pads = spread(size, rank), spread(padding, rank)
        strides, steps = spread(stride, rank) if stride else sizes, spread(dilation, rank)
        return _greatest(
            low, x, rank, sizes, lambda k, i, t: moved(i, strides[k], t, steps[k], pads[k])
        )

    return both


def _begin(index: Expr, extent: int, size: int) -> Expr:
    """Where the window of an adaptive pool begins: floor(index * extent / size)."""
    if extent % size == 0:
        return op("mul", index, const(extent // size))
    return op("floordiv", op("mul", index, const(extent)), const(size))


def _width(index: Expr, extent: int, size: int) -> Expr:
    """How wide it is: up to ceil((index + 1) * extent / size)."""
    if extent % size == 0:
        return const(extent // size)
    after = op("add", op("mul", index, const(extent)), const(extent + size - 1))
    return op("sub", op("floordiv", after, const(size)), _begin(index, extent, size))


def _widest(extent: int, size: int) -> int:
    return max((-(-(k + 1) * extent // size) - k * extent // size for k in range(size)), default=1)


def adaptive_max_pool(rank: int) -> Structural:
    def both(low: Lowering, x: Value, size: Sequence[int]) -> tuple[Value, Value]:
        extents, shape = x.shape[-rank:], low.out.shape[-rank:]
        sizes = [_widest(n, m) for n, m in zip(extents, shape, strict=True)]

        def inside(k: int, i: Expr, t: Expr) -> Expr | None:
            if extents[k] % shape[k] == 0:
                return None
            return op("lt", t, _width(i, extents[k], shape[k]))

        return _greatest(
            low, x, rank, sizes,
            lambda k, i, t: op("add", _begin(i, extents[k], shape[k]), t), inside,
        )  # fmt: skip

    return both


def adaptive_avg_pool(rank: int) -> Structural:
    def mean(low: Lowering, x: Value, size: Sequence[int]) -> Value:
        extents, shape = x.shape[-rank:], low.out.shape[-rank:]
        dtype, wide = low.out.dtype, wide_of(low.out.dtype)
        x, dims = _spaced(low, x, rank, low.out.shape)
        zero = Const(0.0 if x.dtype.is_float else 0, x.dtype)

        def own(indices: Sequence[Index]) -> list[Expr]:
            return [d.joined(i) for d, i in zip(dims[-rank:], indices[-rank:], strict=True)]

        def total(indices: Sequence[Index]) -> Expr:
            axes = [Axis(f"a{low.names.next()}", const(_widest(n, m)))
                    for n, m in zip(extents, shape, strict=True)]  # fmt: skip
            places, where = [], []
            for i, a, n, m in zip(own(indices), axes, extents, shape, strict=True):
                places.append(op("add", _begin(i, n, m), Var(a.name)))
                if n % m:
                    where.append(op("lt", Var(a.name), _width(i, n, m)))
            read = window(x, indices[:-rank], places, zero)
            return Reduce("sum", tuple(axes), tuple(where), cast(read, wide))

        summed = low.keep(Value(dims, wide, total, REDUCED))

        def divided(indices: Sequence[Index]) -> Expr:
            count: Expr = const(1)
            for i, n, m in zip(own(indices), extents, shape, strict=True):
                count = op("mul", count, _width(i, n, m))
            return cast(op("div", summed.at(indices), cast(count, wide)), dtype)

        return Value(dims, dtype, divided)

    return mean


def adaptive_avg_pool_backward(rank: int) -> Structural:
    """Each place gathers from the windows that it is in: of place h these are those of an adaptive
    pool the other way round, floor(h * m / n) up to ceil((h + 1) * m / n)."""

    def gathered(low: Lowering, gradient: Value, x: Value) -> Value:
        sizes, extents = gradient.shape[-rank:], x.shape[-rank:]
        dtype, wide = low.out.dtype, wide_of(low.out.dtype)
        source, inner = _spaced(low, gradient, rank, gradient.shape)

        def share(indices: Sequence[Index]) -> Expr:
            count: Expr = const(1)
            for d, i, n, m in zip(inner[-rank:], indices[-rank:], extents, sizes, strict=True):
                count = op("mul", count, _width(d.joined(i), n, m))
            return op("div", cast(source.at(indices), wide), cast(count, wide))

        shares = low.keep(Value(inner, wide, share))
        shares, dims = _spaced(low, shares, rank, low.out.shape)

        def total(indices: Sequence[Index]) -> Expr:
            axes, places, where = [], [], []
            for d, index, n, m in zip(dims[-rank:], indices[-rank:], extents, sizes, strict=True):
                h = d.joined(index)
                if n % m == 0:
                    places.append(op("floordiv", h, const(n // m)))
                    continue
                axes.append(Axis(f"a{low.names.next()}", const(_widest(m, n))))
                places.append(op("add", _begin(h, m, n), Var(axes[-1].name)))
                where.append(op("lt", Var(axes[-1].name), _width(h, m, n)))
            read = window(shares, indices[:-rank], places, Const(0.0, wide))
            return cast(Reduce("sum", tuple(axes), tuple(where), read) if axes else read, dtype)

        return Value(dims, dtype, total, REDUCED)

    return gathered


def avg_pool(rank: int) -> Structural:
    def mean(
        low: Lowering, x: Value, size: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
        count_padding: bool = True, divisor: int | None = None,
    ) -> Value:  # fmt: skip
        sizes, pads = spread(size, rank), spread(padding, rank)
        strides = spread(stride, rank) if stride else sizes
        dtype, wide = low.out.dtype, wide_of(low.out.dtype)
        x, dims = _spaced(low, x, rank, low.out.shape)
        zero = Const(0.0 if x.dtype.is_float else 0, x.dtype)

        def total(indices: Sequence[Index]) -> Expr:
            axes = [Axis(f"a{low.names.next()}", const(n)) for n in sizes]
            place = [
                moved(d.joined(i), s, Var(a.name), 1, p)
                for d, i, s, a, p in zip(
                    dims[-rank:], indices[-rank:], strides, axes, pads, strict=True
                )
            ]
            read = window(x, indices[:-rank], place, zero)
            return Reduce("sum", tuple(axes), (), cast(read, wide))

        summed = low.keep(Value(dims, wide, total, REDUCED))

        def divided(indices: Sequence[Index]) -> Expr:
            own = [d.joined(i) for d, i in zip(dims[-rank:], indices[-rank:], strict=True)]
            forms = list(zip(x.shape[-rank:], sizes, strides, pads, strict=True))
            count = _divisor(own, forms, count_padding, divisor)
            return cast(
                op("div" if wide.is_float else "tdiv", summed.at(indices), cast(count, wide)), dtype
            )

        return Value(dims, dtype, divided)

    return mean


def avg_pool_backward(rank: int) -> Structural:
    """Each place gathers from the windows that it is in."""

    def spread_back(
        low: Lowering, gradient: Value, x: Value, size: Any, stride: Any, padding: Any,
        ceil: bool, count_padding: bool, divisor: int | None,
    ) -> Value:  # fmt: skip
        sizes, pads = spread(size, rank), spread(padding, rank)
        strides = spread(stride, rank) if stride else sizes
        dtype, wide = low.out.dtype, wide_of(low.out.dtype)
        forms = list(zip(x.shape[-rank:], sizes, strides, pads, strict=True))
        source, inner = _spaced(low, gradient, rank, gradient.shape)

        def share(indices: Sequence[Index]) -> Expr:
            own = [d.joined(i) for d, i in zip(inner[-rank:], indices[-rank:], strict=True)]
            count = cast(_divisor(own, forms, count_padding, divisor), wide)
            return op("div", cast(source.at(indices), wide), count)

        shares = low.keep(Value(inner, wide, share))
        shares, dims = _spaced(low, shares, rank, low.out.shape)

        def total(indices: Sequence[Index]) -> Expr:
            axes = [Axis(f"a{low.names.next()}", const(n)) for n in sizes]
            place, where = [], []
            for d, i, s, a, p in zip(
                dims[-rank:], indices[-rank:], strides, axes, pads, strict=True
            ):
                q = op("sub", op("add", d.joined(i), const(p)), Var(a.name))
                if s > 1:
                    where.append(op("eq", op("mod", q, const(s)), const(0)))
                    q = op("floordiv", q, const(s))
                place.append(q)
            read = window(shares, indices[:-rank], place, Const(0.0, wide))
            return cast(Reduce("sum", tuple(axes), tuple(where), read), dtype)

        return low.keep(Value(dims, dtype, total, REDUCED))

    return spread_back


def _divisor(
    own: Sequence[Expr], forms: Sequence[tuple[int, int, int, int]], count_padding: bool,
    divisor: int | None,
) -> Expr:  # fmt: skip
    """How many elements of a window count, of dims of (extent, size, stride, padding)."""
    if divisor is not None:
        return const(divisor)
    count: Expr = const(1)
    for index, (extent, size, stride, padding) in zip(own, forms, strict=True):
        begin: Expr = op("sub", op("mul", index, const(stride)), const(padding))
        end = op("min", op("add", begin, const(size)), const(extent + padding))
        if not count_padding:
            begin, end = op("max", begin, const(0)), op("min", end, const(extent))
        count = op("mul", count, op("sub", end, begin))
    return count


def max_pool_backward(rank: int, given: int) -> Structural:
    """Each gradient is added where its window had the greatest; `given` arguments stand between
    the input and the indices."""

    def add_back(low: Lowering, gradient: Value, x: Value, *rest: Any) -> Value:
        return unpooled(low, gradient, rest[given], x.shape, rank, "add")

    return add_back


def unpooled(
    low: Lowering, x: Value, indices: Value, shape: Sequence[int], rank: int, how: str | None
) -> Value:
    """The elements of `x` at flat indices of space in zeros of a shape."""
    lead = x.shape[:-rank]
    count = prod(x.shape[-rank:])
    dtype, wide = x.dtype, wide_of(x.dtype)
    zeros = Value(low.dims([*lead, prod(shape[-rank:])]), wide,
                  lambda _: Const(0.0 if dtype.is_float else 0, wide))  # fmt: skip
    flat = low.viewed(low.readable(x), [*lead, count])
    places = low.viewed(low.readable(indices), [*lead, count])
    found = low.viewed(scattered(low, zeros, len(lead), places, flat, how), shape)
    return pointwise(lambda e: cast(e, dtype), [found], dtype)


def max_unpool(rank: int) -> Structural:
    def placed(low: Lowering, x: Value, indices: Value, *rest: Any) -> Value:
        return unpooled(low, x, indices, low.out.shape, rank, None)

    return placed


def constant_pad_nd(low: Lowering, x: Value, pads: Sequence[int], value: Any = 0) -> Value:
    """`pads` come in pairs, the last axis first; negative ones crop."""
    before = [0] * len(x.dims)
    for k in range(len(pads) // 2):
        before[len(x.dims) - 1 - k] = pads[2 * k]
    changed = [k for k, n in enumerate(low.out.shape) if n != x.dims[k].size]
    changed += [k for k, b in enumerate(before) if b and k not in changed]
    for k in changed:
        low.whole(x.dims[k])
    x, dims = low.readable(x), list(low.dims(low.out.shape))
    for k in range(len(dims)):
        if k in changed:
            low.whole(dims[k])
        else:
            dims[k] = x.dims[k]
    dtype: DType = x.dtype
    fill = number_of(dtype, value)

    def at(indices: Sequence[Index]) -> Expr:
        place = [
            (op("sub", dims[k].joined(i), const(before[k])),) if k in changed else i
            for k, i in enumerate(indices)
        ]
        return padded(x, place, fill)

    return Value(dims, dtype, at)


def number_of(dtype: DType, value: Any) -> Const:
    if dtype.is_bool:
        return Const(bool(value), dtype)
    return number(Const(0.0 if dtype.is_float else 0, dtype), value)


def unfold(low: Lowering, x: Value, axis: int, size: int, step: int) -> Value:
    """Windows along an axis; their elements are a new last axis."""
    if not x.dims:
        new = low.dims([size])
        return x.seen(new, lambda indices: x.at([]))
    axis %= len(x.dims)
    old = x.dims[axis]
    low.whole(old)
    starts, taps = low.dims([low.out.shape[axis], size])

    def at(indices: Sequence[Index]) -> Expr:
        e = moved(starts.joined(indices[axis]), step, taps.joined(indices[-1]), 1, 0)
        here = (e,) if old.size > 1 else ()
        return x.at([*indices[:axis], here, *indices[axis + 1 : -1]])

    return x.seen([*x.dims[:axis], starts, *x.dims[axis + 1 :], taps], at)


WINDOWS: dict[str, Structural] = {
    "max_pool2d_with_indices.default": max_pool(2),
    "max_pool3d_with_indices.default": max_pool(3),
    "max_pool2d_with_indices_backward.default": max_pool_backward(2, 5),
    "max_pool3d_with_indices_backward.default": max_pool_backward(3, 5),
    "avg_pool2d.default": avg_pool(2),
    "avg_pool3d.default": avg_pool(3),
    "avg_pool2d_backward.default": avg_pool_backward(2),
    "avg_pool3d_backward.default": avg_pool_backward(3),
    "_adaptive_avg_pool2d.default": adaptive_avg_pool(2),
    "_adaptive_avg_pool3d.default": adaptive_avg_pool(3),
    "_adaptive_avg_pool2d_backward.default": adaptive_avg_pool_backward(2),
    "_adaptive_avg_pool3d_backward.default": adaptive_avg_pool_backward(3),
    "adaptive_max_pool2d.default": adaptive_max_pool(2),
    "adaptive_max_pool3d.default": adaptive_max_pool(3),
    "adaptive_max_pool2d_backward.default": max_pool_backward(2, 0),
    "adaptive_max_pool3d_backward.default": max_pool_backward(3, 0),
    "max_unpool2d.default": max_unpool(2),
    "max_unpool3d.default": max_unpool(3),
    "constant_pad_nd.default": constant_pad_nd,
    "unfold.default": unfold,
}
