"""Operators over windows: convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import DType, i64
from kir.errors import UnsupportedError
from kir.frontends.torch.dims import Index
from kir.frontends.torch.table import Structural, number, wide_of
from kir.frontends.torch.values import PRODUCT, REDUCED, Value, cast, index_of, padded, pointwise
from kir.ir import Axis, Const, Expr, Reduce, Var, const
from kir.ops import identity, op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def convolution(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """`x: [N, C, *space]`, `weight: [O, C/groups, *window]`, `bias: [O]`."""
    dtype, rank = low.out.dtype, len(low.out.shape) - 2
    if len(x.dims) != rank + 2 or transposed:
        raise UnsupportedError("a transposed or unbatched convolution is not compiled")
    wide = wide_of(dtype)
    stride, padding, dilation = (_spread(v, rank) for v in (stride, padding, dilation))
    low.whole(x.dims[1])
    for d in (*x.dims[2:], *weight.dims):
        low.whole(d)
    x, dims = low.readable(x), low.dims(low.out.shape)
    low.walk_together(dims[0], x.dims[0])
    for d in dims[1:]:
        low.whole(d)
    channels, outs = weight.dims[1].size, weight.dims[0].size // groups

    def at(indices: Sequence[Index]) -> Expr:
        axes = [low.names.axes(d) for d in weight.dims[1:]]
        tap = [d.joined(index_of(a)) for d, a in zip(weight.dims[1:], axes, strict=True)]
        out = dims[1].joined(indices[1])
        channel = tap[0]
        if groups > 1:
            group = op("floordiv", out, const(outs)) if outs > 1 else out
            channel = op("add", op("mul", group, const(channels)), channel)
        place = [
            _moved(d.joined(i), s, r, a, p)
            for d, i, s, r, a, p in zip(
                dims[2:], indices[2:], stride, tap[1:], dilation, padding, strict=True
            )
        ]
        where = [indices[0], x.dims[1].split(channel) if x.dims[1].size > 1 else ()]
        read = _window(x, where, place, padding, Const(0.0 if x.dtype.is_float else 0, x.dtype))
        w = weight.at([indices[1], *(index_of(a) for a in axes)])
        product = op("mul", cast(read, wide), cast(w, wide))
        bound = tuple(a for found in axes for a in found)
        return cast(Reduce("sum", bound, (), product) if bound else product, wide)

    if bias is None:
        return Value(dims, dtype, lambda i: cast(at(i), dtype), PRODUCT)
    total = low.keep(Value(dims, wide, at, PRODUCT))
    spread = Value(dims, bias.dtype, lambda i: bias.at([bias.dims[0].split(
        dims[1].joined(i[1])) if bias.dims[0].size > 1 else ()]))  # fmt: skip
    return pointwise(lambda t, b: cast(op("add", t, cast(b, wide)), dtype), [total, spread], dtype)


def _spread(values: Sequence[int], rank: int) -> list[int]:
    return list(values) if len(values) == rank else [values[0]] * rank


def _moved(index: Expr, stride: int, tap: Expr, dilation: int, padding: int) -> Expr:
    """index * stride + tap * dilation - padding."""
    e = index if stride == 1 else op("mul", index, const(stride))
    e = op("add", e, tap if dilation == 1 else op("mul", tap, const(dilation)))
    return op("sub", e, const(padding)) if padding else e


def _window(
    x: Value, lead: Sequence[Index], place: Sequence[Expr], padding: Sequence[int], fill: Expr
) -> Expr:
    """A read that may be beyond the edges, where it finds `fill`."""
    dims = x.dims[len(lead) :]
    index = [(e,) if d.size > 1 else () for d, e in zip(dims, place, strict=True)]
    if any(d.size == 1 and p for d, p in zip(dims, padding, strict=True)):
        raise UnsupportedError("a window over a dim of 1 with padding is not compiled")
    return padded(x, [*lead, *index], fill)


def _pool_shape(
    low: Lowering, x: Value, size: Any, stride: Any, padding: Any, dilation: Any = 1
) -> tuple[int, list[int], list[int], list[int], list[int]]:
    rank = 2

    def many(v: Any) -> list[int]:
        return [v] * rank if isinstance(v, int) else _spread(list(v), rank)

    sizes = many(size)
    return rank, sizes, many(stride) if stride else sizes, many(padding), many(dilation)


def max_pool2d_with_indices(
    low: Lowering,
    x: Value,
    size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> tuple[Value, Value]:
    rank, sizes, strides, pads, steps = _pool_shape(low, x, size, stride, padding, dilation)
    for d in x.dims[-rank:]:
        low.whole(d)
    x, dims = low.readable(x), low.dims(low.out.shape)
    for k in range(len(dims)):
        if k < len(dims) - rank:
            low.walk_together(dims[k], x.dims[k])
        else:
            low.whole(dims[k])
    lowest = identity("max", x.dtype)

    def element(indices: Sequence[Index], tap: Sequence[Expr]) -> Expr:
        place = [
            _moved(d.joined(i), s, t, a, p)
            for d, i, s, t, a, p in zip(
                dims[-rank:], indices[-rank:], strides, tap, steps, pads, strict=True
            )
        ]
        return _window(x, indices[:-rank], place, pads, lowest)

    def greatest(indices: Sequence[Index]) -> Expr:
        axes = [Axis(f"i{low.names.next()}", const(n)) for n in sizes]
        return Reduce("max", tuple(axes), (), element(indices, [Var(a.name) for a in axes]))

    def where(indices: Sequence[Index]) -> Expr:
        axis = Axis(f"i{low.names.next()}", const(sizes[0] * sizes[1]))
        tap = _taps(Var(axis.name), sizes[1])
        best = Reduce("argmax", (axis,), (), element(indices, tap))
        row, column = (
            _moved(d.joined(i), s, t, a, p)
            for d, i, s, t, a, p in zip(
                dims[-rank:], indices[-rank:], strides, _taps(best, sizes[1]), steps, pads,
                strict=True,
            )
        )  # fmt: skip
        return op("add", op("mul", row, const(x.dims[-1].size)), column)

    return Value(dims, x.dtype, greatest, REDUCED), Value(dims, i64, where, REDUCED)


def _taps(flat: Expr, width: int) -> list[Expr]:
    return [op("floordiv", flat, const(width)), op("mod", flat, const(width))]


def avg_pool2d(
    low: Lowering,
    x: Value,
    size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Value:
    rank, sizes, strides, pads, _ = _pool_shape(low, x, size, stride, padding)
    dtype, wide = low.out.dtype, wide_of(low.out.dtype)
    for d in x.dims[-rank:]:
        low.whole(d)
    x, dims = low.readable(x), low.dims(low.out.shape)
    for k in range(len(dims)):
        if k < len(dims) - rank:
            low.walk_together(dims[k], x.dims[k])
        else:
            low.whole(dims[k])
    zero = Const(0.0 if x.dtype.is_float else 0, x.dtype)

    def total(indices: Sequence[Index]) -> Expr:
        axes = [Axis(f"i{low.names.next()}", const(n)) for n in sizes]
        place = [
            _moved(d.joined(i), s, Var(a.name), 1, p)
            for d, i, s, a, p in zip(
                dims[-rank:], indices[-rank:], strides, axes, pads, strict=True
            )
        ]
        read = _window(x, indices[:-rank], place, pads, zero)
        return Reduce("sum", tuple(axes), (), cast(read, wide))

    summed = low.keep(Value(dims, wide, total, REDUCED))

    def mean(indices: Sequence[Index]) -> Expr:
        e = summed.at(indices)
        if divisor is not None:
            return cast(op("div", e, number(e, divisor)), dtype)
        count: Expr = const(1)
        for k in range(rank):
            i = dims[k - rank].joined(indices[k - rank])
            count = op("mul", count, _counted(i, x.dims[k - rank].size, sizes[k], strides[k],
                                              pads[k], count_padding))  # fmt: skip
        return cast(op("div", e, cast(count, wide)), dtype)

    return Value(dims, dtype, mean)


def _counted(
    index: Expr, extent: int, size: int, stride: int, padding: int, count_padding: bool
) -> Expr:
    """How many elements of a window count, in one dim."""
    begin: Expr = op("sub", op("mul", index, const(stride)), const(padding))
    end = op("min", op("add", begin, const(size)), const(extent + padding))
    if not count_padding:
        begin, end = op("max", begin, const(0)), op("min", end, const(extent))
    return op("sub", end, begin)


def constant_pad_nd(low: Lowering, x: Value, pads: Sequence[int], value: Any = 0) -> Value:
    """`pads` come in pairs, the last axis first; negative ones crop."""
    before = [0] * len(x.dims)
    for k in range(len(pads) // 2):
        before[len(x.dims) - 1 - k] = pads[2 * k]
    changed = [k for k, n in enumerate(low.out.shape) if n != x.dims[k].size]
    changed += [k for k, b in enumerate(before) if b and k not in changed]
    if any(x.dims[k].size == 1 for k in changed):
        raise UnsupportedError("padding of a dim of 1 is not compiled")
    for k in changed:
        low.whole(x.dims[k])
    x, dims = low.readable(x), list(low.dims(low.out.shape))
    for k in range(len(dims)):
        if k in changed:
            low.whole(dims[k])
        else:
            dims[k] = x.dims[k]
    dtype: DType = x.dtype
    fill = Const(
        bool(value) if dtype.is_bool else float(value) if dtype.is_float else int(value), dtype
    )

    def at(indices: Sequence[Index]) -> Expr:
        place = [
            (op("sub", dims[k].joined(i), const(before[k])),) if k in changed else i
            for k, i in enumerate(indices)
        ]
        return padded(x, place, fill)

    return Value(dims, dtype, at)


WINDOWS: dict[str, Structural] = {
    "convolution.default": convolution,
    "max_pool2d_with_indices.default": max_pool2d_with_indices,
    "avg_pool2d.default": avg_pool2d,
    "constant_pad_nd.default": constant_pad_nd,
}
