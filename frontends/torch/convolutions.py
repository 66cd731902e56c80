"""Convolutions, transposed convolutions, and the gradients of both: sums of products over windows.

`weight` is `[O, C/groups, *window]` for `x: [N, C, *space]`; a transposed convolution has that of
the convolution of which it is the gradient, `[C, O/groups, *window]`. All are gathers: each
element is one sum, in the dtype of `wide_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kir.errors import UnsupportedError
from kir.frontends.torch.dims import Dim, Index
from kir.frontends.torch.structural import sum_over
from kir.frontends.torch.table import Structural, wide_of
from kir.frontends.torch.values import PRODUCT, At, Value, cast, index_of, pointwise
from kir.frontends.torch.windows import moved, spread, window
from kir.ir import Axis, Const, Expr, Reduce, const
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


@dataclass(frozen=True)
class Windows:
    """Of a convolution: one number for each dim of space."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


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
    dtype, shape = low.out.dtype, low.out.shape
    form = _form(x, shape, stride, padding, dilation, groups)
    wide = wide_of(dtype)
    dims = _prepared(low, x, weight, shape)
    made = _transposed if transposed else _correlated
    at = made(low, low.readable(x), weight, dims, form)
    if bias is None:
        return Value(dims, dtype, lambda i: cast(at(i), dtype), PRODUCT)
    total = low.keep(Value(dims, wide, at, PRODUCT))
    spread_bias = Value(dims, bias.dtype, lambda i: bias.at([_within(bias.dims[0], dims[1].joined(
        i[1]))]))  # fmt: skip
    return pointwise(
        lambda t, b: cast(op("add", t, cast(b, wide)), dtype), [total, spread_bias], dtype
    )


def convolution_backward(
    low: Lowering,
    gradient: Value,
    x: Value,
    weight: Value,
    bias: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Value | None, Value | None, Value | None]:
    form = _form(x, x.shape, stride, padding, dilation, groups)
    found: list[Value | None] = [None, None, None]
    gradient = low.readable(gradient)
    dtype = gradient.dtype
    if wanted[0]:
        dims = _prepared(low, gradient, weight, x.shape)
        made = _correlated if transposed else _transposed
        at = made(low, gradient, weight, dims, form)
        found[0] = low.keep(Value(dims, dtype, lambda i: cast(at(i), dtype), PRODUCT))
    if wanted[1]:
        small, big = (x, gradient) if transposed else (gradient, x)
        found[1] = _weights(low, small, low.readable(big), weight, form)
    if wanted[2]:
        axes = [0, *range(2, len(gradient.dims))]
        found[2] = low.keep(sum_over(low, gradient, axes, dtype))
    return found[0], found[1], found[2]


def _form(
    x: Value, shape: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
) -> Windows:
    rank = len(shape) - 2
    if len(x.dims) != rank + 2 or rank < 1:
        raise UnsupportedError("an unbatched convolution is not compiled")
    return Windows(spread(stride, rank), spread(padding, rank), spread(dilation, rank), groups)


def _prepared(low: Lowering, x: Value, weight: Value, shape: Sequence[int]) -> tuple[Dim, ...]:
    """The dims of the result; all but the batch's are kept whole."""
    dims = low.dims(shape)
    low.walk_together(dims[0], x.dims[0])
    for d in (*x.dims[1:], *weight.dims, *dims[1:]):
        low.whole(d)
    return dims


def _within(dim: Dim, e: Expr) -> Index:
    return (e,) if dim.size > 1 else ()


def _axes(low: Lowering, dims: Sequence[Dim]) -> tuple[list[Axis], list[Expr]]:
    """Axes over dims, and the index of each."""
    made = [low.names.axes(d) for d in dims]
    places = [d.joined(index_of(a)) for d, a in zip(dims, made, strict=True)]
    return [a for axes in made for a in axes], places


def _zero(v: Value) -> Const:
    return Const(0.0 if v.dtype.is_float else 0, v.dtype)


def _correlated(low: Lowering, x: Value, weight: Value, dims: Sequence[Dim], form: Windows) -> At:
    """y[n, o, p] = sum(c, r) x[n, group * C/groups + c, q] * w[o, c, r], with
    q = p*stride + r*dilation - padding."""
    wide, channels = wide_of(x.dtype), weight.dims[1].size
    outs = max(weight.dims[0].size // form.groups, 1)

    def at(indices: Sequence[Index]) -> Expr:
        axes, tap = _axes(low, weight.dims[1:])
        out = dims[1].joined(indices[1])
        channel = tap[0]
        if form.groups > 1:
            group = op("floordiv", out, const(outs)) if outs > 1 else out
            channel = op("add", op("mul", group, const(channels)), channel)
        place = [
            moved(d.joined(i), s, r, a, p)
            for d, i, s, r, a, p in zip(
                dims[2:], indices[2:], form.stride, tap[1:], form.dilation, form.padding,
                strict=True,
            )
        ]  # fmt: skip
        read = window(x, [indices[0], _within(x.dims[1], channel)], place, _zero(x))
        taps = [_within(d, t) for d, t in zip(weight.dims[1:], tap, strict=True)]
        w = weight.at([_within(weight.dims[0], out), *taps])
        return _sum(axes, (), op("mul", cast(read, wide), cast(w, wide)))

    return at


def _transposed(low: Lowering, x: Value, weight: Value, dims: Sequence[Dim], form: Windows) -> At:
    """y[n, o, p] = sum(c, r where stride divides q) x[n, c, q / stride] * w[c, o, r], with
    q = p + padding - r*dilation; c and o within a group."""
    wide, outs = wide_of(x.dtype), weight.dims[1].size
    channels = weight.dims[0].size // form.groups

    def at(indices: Sequence[Index]) -> Expr:
        inner, (within,) = _axes(low, [Dim(channels)])
        axes, tap = _axes(low, weight.dims[2:])
        out = dims[1].joined(indices[1])
        channel = within
        if form.groups > 1:
            group = op("floordiv", out, const(outs)) if outs > 1 else out
            channel = op("add", op("mul", group, const(channels)), within)
            out = op("mod", out, const(outs)) if outs > 1 else const(0)
        conditions: list[Expr] = []
        place: list[Expr] = []
        for d, i, s, r, a, p in zip(
            dims[2:], indices[2:], form.stride, tap, form.dilation, form.padding, strict=True
        ):
            q = op("sub", op("add", d.joined(i), const(p)), op("mul", r, const(a)))
            if s > 1:
                conditions.append(op("eq", op("mod", q, const(s)), const(0)))
                q = op("floordiv", q, const(s))
            place.append(q)
        read = window(x, [indices[0], _within(x.dims[1], channel)], place, _zero(x))
        taps = [_within(d, t) for d, t in zip(weight.dims[2:], tap, strict=True)]
        w = weight.at([_within(weight.dims[0], channel), _within(weight.dims[1], out), *taps])
        product = op("mul", cast(read, wide), cast(w, wide))
        return _sum([*inner, *axes], conditions, product)

    return at


def _weights(low: Lowering, small: Value, big: Value, weight: Value, form: Windows) -> Value:
    """w[o, c, r] = sum(n, p) small[n, o, p] * big[n, group * C/groups + c, q], with
    q = p*stride + r*dilation - padding."""
    wide, channels = wide_of(big.dtype), weight.dims[1].size
    outs = max(weight.dims[0].size // form.groups, 1)
    dims = low.dims(weight.shape)
    for d in (*dims, *small.dims[1:], *big.dims[1:]):
        low.whole(d)
    low.walk_together(small.dims[0], big.dims[0])

    def at(indices: Sequence[Index]) -> Expr:
        batch = low.names.axes(small.dims[0])
        axes, space = _axes(low, small.dims[2:])
        out, channel = (d.joined(i) for d, i in zip(dims[:2], indices[:2], strict=True))
        if form.groups > 1:
            group = op("floordiv", out, const(outs)) if outs > 1 else out
            channel = op("add", op("mul", group, const(channels)), channel)
        place = [
            moved(q, s, d.joined(i), a, p)
            for q, s, d, i, a, p in zip(
                space, form.stride, dims[2:], indices[2:], form.dilation, form.padding, strict=True
            )
        ]
        lead = index_of(batch)
        read = window(big, [lead, _within(big.dims[1], channel)], place, _zero(big))
        places = [_within(d, e) for d, e in zip(small.dims[2:], space, strict=True)]
        other = small.at([lead, _within(small.dims[1], out), *places])
        return _sum([*batch, *axes], (), op("mul", cast(other, wide), cast(read, wide)))

    return low.keep(Value(dims, weight.dtype, lambda i: cast(at(i), weight.dtype), PRODUCT))


def _sum(axes: Sequence[Axis], where: Sequence[Expr], body: Expr) -> Expr:
    if not axes and not where:
        return body
    bound = list(axes) or [Axis("a", const(1))]
    return Reduce("sum", tuple(bound), tuple(where), body)


CONVOLUTIONS: dict[str, Structural] = {
    "convolution.default": convolution,
    "convolution_backward.default": convolution_backward,
}
