"""Norms of differences, and sums of products of three tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kir.dtypes import DTYPES, DType, i64
from kir.frontends.torch.dims import Index
from kir.frontends.torch.gathers import index_select
from kir.frontends.torch.structural import sum_over
from kir.frontends.torch.table import Structural, number, wide_of
from kir.frontends.torch.values import HEAVY, Value, cast, inserted, pointwise, reduced
from kir.ir import Const, Expr, const
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering

f64 = DTYPES["f64"]


def distance(low: Lowering, a: Value, b: Value, p: float, dtype: DType) -> Value:
    """The p-norm of a - b over the last axis, which goes; of 0, how many differ."""
    wide, axis = wide_of(dtype), max(len(a.dims), len(b.dims)) - 1

    def apart(x: Expr, y: Expr) -> Expr:
        e = op("abs", op("sub", cast(x, wide), cast(y, wide)))
        if p == 0:
            return cast(op("ne", e, number(e, 0)), wide)
        if p in (1, math.inf):
            return e
        return op("mul", e, e) if p == 2 else op("pow", e, number(e, p))

    parts = pointwise(apart, [a, b], wide, heavy=p not in (0, 1, 2, math.inf))
    if p == math.inf and parts.shape[axis]:
        return reduced("max", parts, [axis], False, low.names, wide, dtype)
    total = low.keep(reduced("sum", parts, [axis], False, low.names, wide, wide))

    def root(e: Expr) -> Expr:
        if p == 2:
            e = op("sqrt", e)
        elif p not in (0, 1, math.inf):
            e = op("pow", e, number(e, 1 / p))
        return cast(e, dtype)

    return pointwise(root, [total], dtype)


def cdist(low: Lowering, a: Value, b: Value, p: float, mode: int | None = None) -> Value:
    """[..., P, M] and [..., R, M] give [..., P, R]."""
    rows = inserted(a, len(a.dims) - 1)
    columns = inserted(b, len(b.dims) - 2)
    return distance(low, rows, columns, p, low.out.dtype)


def pdist(low: Lowering, x: Value, p: float = 2.0) -> Value:
    """Of each two rows."""
    count = x.shape[0]
    total = count * (count - 1) // 2
    if not total:
        dtype = low.out.dtype
        return Value(low.dims([0]), dtype, lambda _: Const(0.0, dtype))
    first, second = (low.keep(_pairs(low, count, total, k)) for k in (0, 1))
    rows = [index_select(low, x, 0, v) for v in (first, second)]
    return distance(low, rows[0], rows[1], p, low.out.dtype)


def _pairs(low: Lowering, count: int, total: int, which: int) -> Value:
    """Of the pairs i < j < count in order, the i or the j of each. Row i begins at the pair
    i (2 count - i - 1) / 2, of which the root below is a whole number, exactly."""
    (along,) = low.dims([total])
    low.whole(along)

    def at(indices: Sequence[Index]) -> Expr:
        k = along.joined(indices[0]) if total > 1 else const(0)
        square = op("sub", Const((count - 0.5) ** 2, f64), op("mul", Const(2.0, f64), cast(k, f64)))
        i = cast(op("floor", op("sub", Const(count - 0.5, f64), op("sqrt", square))), i64)
        if which == 0:
            return i
        begin = op("tdiv", op("mul", i, op("sub", const(2 * count - 1), i)), const(2))
        return op("add", op("add", op("sub", k, begin), i), const(1))

    return Value([along], i64, at, HEAVY)


def trilinear(
    low: Lowering, a: Value, b: Value, c: Value, first: Sequence[int], second: Sequence[int],
    third: Sequence[int], summed: Sequence[int], unroll: int = 1,
) -> Value:  # fmt: skip
    """The sum over axes of the products of three tensors, of which each has axes inserted."""
    dtype = low.out.dtype
    wide = wide_of(dtype)
    spread = []
    for v, axes in ((a, first), (b, second), (c, third)):
        for k in sorted(axes):
            v = inserted(v, k)
        spread.append(v)

    def product(x: Expr, y: Expr, z: Expr) -> Expr:
        return op("mul", op("mul", cast(x, wide), cast(y, wide)), cast(z, wide))

    return sum_over(low, pointwise(product, spread, wide), list(summed), dtype)


DISTANCES: dict[str, Structural] = {
    "_cdist_forward.default": cdist,
    "_pdist_forward.default": pdist,
    "_trilinear.default": trilinear,
}
