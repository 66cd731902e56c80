"""Operators that write where an index says, and those that run along an axis: they are statements,
not expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from kir.dtypes import DType, bool_, i64
from kir.errors import UnsupportedError
from kir.frontends.torch.dims import Dim, Index
from kir.frontends.torch.gathers import from_either_end
from kir.frontends.torch.table import Structural, added, number, wide_of
from kir.frontends.torch.values import (
    CHEAP,
    HEAVY,
    REDUCED,
    Value,
    aligned,
    carried,
    cast,
    fresh,
    held,
    index_of,
    permuted,
    pointwise,
    reduced,
)
from kir.ir import Axis, Const, Define, Expr, Loop, Read, Reduce, Stmt, Store, Var, const
from kir.ops import identity, op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def literal(dtype: DType, value: Any) -> Const:
    if dtype.is_bool:
        return Const(bool(value), dtype)
    return Const(float(value) if dtype.is_float else int(value), dtype)


def written(
    low: Lowering, base: Value, source: Value, place: Callable[[Sequence[Index]], list[Index]],
    how: str | None,
) -> Value:  # fmt: skip
    """A copy of `base` in which, for each index of `source` in order, the element at `place` is
    updated by `how` (None: replaced)."""
    source = source if source.cost == CHEAP else low.keep(source)
    base = base if base.cost == CHEAP else low.keep(base)
    dims, dtype = base.dims, base.dtype

    def build(name: str) -> tuple[Stmt, ...]:
        axes = [low.names.axes(d) for d in dims]
        first = Define(name, tuple(a for found in axes for a in found),
                       base.at([index_of(a) for a in axes]))  # fmt: skip
        loops = [low.names.axes(d) for d in source.dims]
        here = [index_of(a) for a in loops]
        target = tuple(p for index in place(here) for p in index)
        body: Stmt = Store(name, target, cast(source.at(here), dtype), how)
        for axis in reversed([a for found in loops for a in found]):
            body = Loop("for", axis, (), (body,))
        return (first, body) if 0 not in source.shape else (first,)

    return low.made(dims, dtype, build)


def scattered(
    low: Lowering, base: Value, axis: int, indices: Value, source: Value, how: str | None
) -> Value:
    """base[..., indices[i], ...] (how)= source[i]; all have one rank, and `indices` the shape of
    `source`, no larger than `base` in the other axes."""
    indices = indices if indices.cost == CHEAP else low.keep(indices)
    low.whole(base.dims[axis])
    for k, d in enumerate(indices.dims):
        low.walk_together(source.dims[k], d)
        if k != axis and d.size != base.dims[k].size:
            low.whole(base.dims[k])

    def place(here: Sequence[Index]) -> list[Index]:
        found: list[Index] = []
        own = [carried(d, s, i) for d, s, i in zip(indices.dims, source.dims, here, strict=True)]
        for k, (d, i) in enumerate(zip(base.dims, here, strict=True)):
            e = held(indices.at(own), d.size) if k == axis else source.dims[k].joined(i)
            found.append(d.split(e) if d.size != 1 else ())
        return found

    return written(low, base, source, place, how)


UPDATES = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max",
           "amin": "min", "mean": "add", None: None}  # fmt: skip


def _scatter(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value | None, value: Any,
    how: str | None, include: bool = True,
) -> Value:  # fmt: skip
    if not x.dims:
        x, scalar = low.viewed(x, [1]), True
    else:
        scalar = False
    if not indices.dims:
        indices = low.viewed(indices, [1])
    if source is not None and not source.dims:
        source = low.viewed(source, [1])
    axis %= len(x.dims)
    dtype = x.dtype
    if 0 in indices.shape:
        return low.viewed(x, []) if scalar else x
    if source is None:
        constant = literal(dtype, value)
        source = Value(fresh(indices.shape), dtype, lambda _: constant)
    else:
        source = _cropped(source, indices.shape)
    found = _reduced(low, x, axis, indices, source, how, include)
    return low.viewed(found, []) if scalar else found


def _reduced(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, how: str | None,
    include: bool,
) -> Value:  # fmt: skip
    dtype = x.dtype
    if dtype.is_bool and how is not None:
        return _as_integers(low, x, axis, indices, source, how, include)
    if how is None:
        return scattered(low, x, axis, indices, source, None)
    wide, update = wide_of(dtype), UPDATES[how]
    base = pointwise(lambda e: cast(e, wide), [x], wide)
    if include and how != "mean":
        made = scattered(low, base, axis, indices, source, update)
        return pointwise(lambda e: cast(e, dtype), [made], dtype)
    ones = Value(fresh(indices.shape), i64, lambda _: const(1))
    start = const(1 if include else 0)
    counts = scattered(low, Value(fresh(x.shape), i64, lambda _: start), axis, indices, ones, "add")
    if not include:
        neutral = identity(update or "add", wide)
        base = pointwise(
            lambda n, e: op("select", op("gt", n, const(0)), neutral, e), [counts, base], wide
        )
    made = scattered(low, base, axis, indices, source, update)

    def element(e: Expr, n: Expr) -> Expr:
        if how == "mean":
            n = cast(op("max", n, const(1)), wide)
            e = op("div" if wide.is_float else "floordiv", e, n)
        return cast(e, dtype)

    return pointwise(element, [made, counts], dtype)


def _as_integers(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, how: str, include: bool
) -> Value:
    wide = [pointwise(lambda e: cast(e, i64), [v], i64) for v in (x, source)]
    made = _reduced(low, wide[0], axis, indices, wide[1], how, include)
    return pointwise(lambda e: cast(e, bool_), [made], bool_)


def _cropped(v: Value, shape: Sequence[int]) -> Value:
    from kir.frontends.torch.values import sliced

    for k, n in enumerate(shape):
        v = sliced(v, k, 0, 1, n)
    return v


def scatter_src(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, reduce: str | None = None
) -> Value:
    return _scatter(low, x, axis, indices, source, None, reduce)


def scatter_value(
    low: Lowering, x: Value, axis: int, indices: Value, value: Any, reduce: str | None = None
) -> Value:
    return _scatter(low, x, axis, indices, None, value, reduce)


def scatter_add(low: Lowering, x: Value, axis: int, indices: Value, source: Value) -> Value:
    return _scatter(low, x, axis, indices, source, None, "add")


def scatter_reduce(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, reduce: str,
    include_self: bool = True,
) -> Value:  # fmt: skip
    return _scatter(low, x, axis, indices, source, None, reduce, include_self)


def _along(low: Lowering, indices: Value, axis: int, shape: Sequence[int]) -> Value:
    """A list of indices, along an axis of a shape."""
    dims = list(fresh(shape))
    if indices.dims:
        dims[axis] = indices.dims[0]

    def at(place: Sequence[Index]) -> Expr:
        return indices.at([place[axis]] if indices.dims else [])

    return indices.seen(dims, at)


def index_add(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, alpha: Any = 1
) -> Value:
    if not x.dims:
        one = low.viewed(source, [])
        return pointwise(lambda e, s: added(e, s, alpha), [x, one], x.dtype)
    axis %= len(x.dims)
    if alpha != 1 and not x.dtype.is_bool:
        source = pointwise(lambda e: op("mul", e, number(e, alpha)), [source], x.dtype)
    return _scatter(low, x, axis, _along(low, indices, axis, source.shape), source, None, "add")


def index_reduce(
    low: Lowering, x: Value, axis: int, indices: Value, source: Value, reduce: str,
    include_self: bool = True,
) -> Value:  # fmt: skip
    axis %= max(len(x.dims), 1)
    source = source if source.dims else low.viewed(source, [1])
    along = _along(low, indices, axis, source.shape)
    return _scatter(low, x, axis, along, source, None, reduce, include_self)


def index_copy(low: Lowering, x: Value, axis: int, indices: Value, source: Value) -> Value:
    if not x.dims:
        return low.viewed(source, [])
    axis %= len(x.dims)
    return _scatter(low, x, axis, _along(low, indices, axis, source.shape), source, None, None)


def index_fill(low: Lowering, x: Value, axis: int, indices: Value, value: Any) -> Value:
    if not x.dims:
        if isinstance(value, Value):
            return low.viewed(value, [])
        return _scatter(low, x, 0, _along(low, indices, 0, [1]), None, value, None)
    axis %= len(x.dims)
    shape = list(x.shape)
    shape[axis] = indices.shape[0] if indices.dims else 1
    if isinstance(value, Value):
        spread = Value(fresh(shape), x.dtype, lambda _: value.at([]))
        return _scatter(low, x, axis, _along(low, indices, axis, shape), spread, None, None)
    return _scatter(low, x, axis, _along(low, indices, axis, shape), None, value, None)


def index_put(
    low: Lowering, x: Value, indices: Sequence[Value | None], values: Value,
    accumulate: bool = False, *unsafe: bool,
) -> Value:  # fmt: skip
    """x[i, :, j] (+)= values, with tensors of indices, broadcast against one another."""
    given = [(k, v) for k, v in enumerate(indices) if v is not None]
    if any(v.dtype.is_bool for _, v in given):
        return _masked_put(low, x, given, values, accumulate)
    axes = [k for k, _ in given]
    kept = [v if v.cost == CHEAP else low.keep(v) for _, v in given]
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    start = axes[0] if together else 0
    spread = pointwise(lambda *e: e[0], kept, i64)
    rest = [k for k in range(len(x.dims)) if k not in axes]
    shape = [x.shape[k] for k in rest]
    shape[start:start] = spread.shape
    rank = len(spread.dims)
    for k in range(len(x.dims)):
        low.whole(x.dims[k])
    dims = list(fresh(shape))
    for mine, theirs in zip(spread.dims, dims[start : start + rank], strict=True):
        low.walk_together(mine, theirs)
    source = Value(dims, values.dtype, lambda i: values.at(aligned(values, dims, i)))
    chosen = dict(zip(axes, kept, strict=True))

    def place(here: Sequence[Index]) -> list[Index]:
        middle, own = dims[start : start + rank], here[start : start + rank]
        left = iter(zip([*dims[:start], *dims[start + rank :]],
                        [*here[:start], *here[start + rank :]], strict=True))  # fmt: skip
        found: list[Index] = []
        for k, d in enumerate(x.dims):
            if k in chosen:
                e = from_either_end(chosen[k].at(aligned(chosen[k], middle, own)), d.size)
            else:
                other, i = next(left)
                e = other.joined(i)
            found.append(d.split(e) if d.size != 1 else ())
        return found

    values = values if values.cost == CHEAP else low.keep(values)
    dtype, wide = x.dtype, wide_of(x.dtype)
    if not accumulate:
        return written(low, x, source, place, None)
    wide = i64 if dtype.is_bool else wide
    base = pointwise(lambda e: cast(e, wide), [x], wide)
    return pointwise(lambda e: cast(e, dtype), [written(low, base, source, place, "add")], dtype)


def put(low: Lowering, x: Value, indices: Value, source: Value, accumulate: bool = False) -> Value:
    """By places in the order of the elements of `x`."""
    total, count = prod(x.shape), prod(indices.shape)
    if not count:
        return x
    flat, places, values = (
        low.viewed(v, [n]) for v, n in ((x, total), (indices, count), (source, count))
    )
    return low.viewed(index_put(low, flat, [places], values, accumulate), x.shape)


def nonzero_static(low: Lowering, x: Value, *, size: int, fill_value: int = -1) -> Value:
    """The places of the first `size` elements that are not 0, in order; then `fill_value`."""
    total, rank = prod(x.shape), len(x.dims)
    fill = const(fill_value)
    if not total or not rank or not size:
        if total and size and not rank:
            raise UnsupportedError("nonzero_static of one number is not compiled")
        return Value(low.dims([size, rank]), i64, lambda _: fill)
    flags = low.keep(pointwise(lambda e: cast(op("ne", e, literal(e.dtype, 0)), i64), [x], i64))
    flat = low.viewed(flags, [total])
    counts = scanned(low, flat, 0, i64, const(0), lambda past, e, _: op("add", past, e))

    def target(flag: Expr, count: Expr) -> Expr:
        """The place after the last takes those that are not wanted."""
        wanted = op("and", op("ne", flag, const(0)), op("le", count, const(size)))
        return op("select", wanted, op("sub", count, const(1)), const(size))

    targets = low.keep(pointwise(target, [flat, counts], i64))
    (along,) = targets.dims
    places = Value([along], i64, lambda i: along.joined(i[0]) if total > 1 else const(0))
    start = Value(low.dims([size + 1]), i64, lambda _: fill)
    found = scattered(low, start, 0, targets, places, None)
    dims = low.dims([size, rank])
    for d in dims:
        low.whole(d)
    strides = [prod(x.shape[k + 1 :]) for k in range(rank)]

    def at(indices: Sequence[Index]) -> Expr:
        row = dims[0].joined(indices[0]) if size > 1 else const(0)
        place = found.at([(row,)])
        axis = dims[1].joined(indices[1]) if rank > 1 else const(0)
        e: Expr = const(0)
        for k, (stride, n) in enumerate(zip(strides, x.shape, strict=True)):
            here = op("mod", op("floordiv", place, const(stride)), const(n))
            e = op("select", op("eq", axis, const(k)), here, e)
        filled = op("ge", row, counts.at([(const(total - 1),) if total > 1 else ()]))
        return op("select", filled, fill, e)

    return Value(dims, i64, at, HEAVY)


def _number(dtype: DType, value: Any) -> Value:
    constant = literal(dtype, value)
    return Value((), dtype, lambda _: constant)


def histc(low: Lowering, x: Value, bins: int = 100, least: Any = 0, most: Any = 0) -> Value:
    """How many elements are in each of `bins` of one width, from `least` to `most`, both in; these
    are those of the elements where they are equal, and 1 farther apart each where those are. NaN
    where an edge is not finite, of which eager makes an error."""
    dtype = low.out.dtype
    if not x.dtype.is_float or x.dtype.bits < 32:
        raise UnsupportedError(f"histc of {x.dtype} is not compiled")
    total = prod(x.shape)
    dims = low.dims([bins])
    low.whole(dims[0])
    if not total:
        return Value(dims, dtype, lambda _: literal(dtype, 0))
    flat = low.viewed(low.readable(x), [total])
    edges = [_number(dtype, v) for v in (least, most)]
    if least == most:
        edges = [low.keep(reduced(name, flat, [0], False, low.names)) for name in ("min", "max")]
        first, last = edges
        for k, step in ((0, -1.0), (1, 1.0)):

            def apart(a: Expr, b: Expr, k: int = k, step: float = step) -> Expr:
                own = b if k else a
                return op("select", op("eq", a, b), op("add", own, literal(dtype, step)), own)

            edges[k] = low.keep(pointwise(apart, [first, last], dtype))

    def element(e: Expr, a: Expr, b: Expr) -> Expr:
        part = op("div", op("mul", op("sub", e, a), literal(dtype, bins)), op("sub", b, a))
        inside = op("and", op("ge", e, a), op("le", e, b))
        held_ = op("select", inside, part, literal(dtype, -1))
        return op("min", cast(op("trunc", held_), i64), const(bins - 1))

    which = low.keep(pointwise(element, [flat, *edges], i64))

    def at(indices: Sequence[Index]) -> Expr:
        own = dims[0].joined(indices[0]) if bins > 1 else const(0)
        here = low.names.axes(which.dims[0])
        same = op("eq", which.at([index_of(here)]), own)
        count = cast(same, i64)
        total = cast(Reduce("sum", tuple(here), (), count) if here else count, dtype)
        a, b = (v.at([]) for v in edges)
        return op("select", op("isnan", op("sub", op("sub", b, a), op("sub", b, a))),
                  literal(dtype, math.nan), total)  # fmt: skip

    return Value(dims, dtype, at, REDUCED)


def _masked_put(
    low: Lowering, x: Value, given: Sequence[tuple[int, Value]], values: Value, accumulate: bool
) -> Value:
    """Where one mask holds. Of `values` the axis of the places that it holds at has one element:
    how many these are is in the data."""
    k, mask = given[0]
    lead = len(x.dims) - len(mask.dims) - k
    places = len(values.dims) - 1 - lead
    counted = places >= 0 and values.shape[places] != 1
    if len(given) != 1 or counted or (accumulate and x.dtype.is_bool):
        raise UnsupportedError("a mask gives a shape that depends on data")
    if places >= 0:  # one axis for all of the mask's
        ahead, behind = values.shape[:places], values.shape[places + 1 :]
        values = low.viewed(values, [*ahead, *[1] * len(mask.dims), *behind])
    spread = low.viewed(mask, [*mask.shape, *[1] * lead])

    def element(e: Expr, m: Expr, v: Expr) -> Expr:
        return op("select", m, op("add", e, v) if accumulate else v, e)

    return pointwise(element, [x, spread, values], x.dtype)


def embedding_dense_backward(
    low: Lowering, gradient: Value, indices: Value, rows: int, padding: int, scaled: bool
) -> Value:
    """Rows of gradients added up by index; that of `padding` stays 0."""
    if scaled:
        raise UnsupportedError("gradients of an embedding scaled by frequency are not compiled")
    count = 1
    for n in indices.shape:
        count *= n
    dtype, wide = gradient.dtype, wide_of(gradient.dtype)
    width = gradient.shape[-1]
    flat = low.viewed(low.readable(gradient), [count, width])
    places = low.viewed(low.readable(indices), [count])
    zeros = Value(low.dims([rows, width]), wide, lambda _: literal(wide, 0))
    made = scattered(low, zeros, 0, _along(low, places, 0, [count, width]), flat, "add") if (
        count) else zeros  # fmt: skip
    whole = made.dims[0]

    def element(place: Sequence[Index]) -> Expr:
        e = cast(made.at(place), dtype)
        if padding < 0:
            return e
        return op("select", op("eq", whole.joined(place[0]), const(padding)), literal(dtype, 0), e)

    return Value(made.dims, dtype, element)


# --- along an axis ---------------------------------------------------------------------------

Step = Callable[[Expr, Expr, Sequence[Index]], Expr]


def scanned(
    low: Lowering, x: Value, axis: int, dtype: DType, start: Const,
    step: Callable[[Expr, Expr, Expr], Expr],
) -> Value:  # fmt: skip
    """y[t] = step(y[t - 1], x[t], t) along an axis; before the first is `start`."""
    low.whole(x.dims[axis])
    x = x if x.cost == CHEAP else low.keep(x)
    dims = list(x.dims)

    def build(name: str) -> tuple[Stmt, ...]:
        axes = [low.names.axes(d) for d in dims]
        index = [index_of(a) for a in axes]
        placed: list[Axis | Var] = [a for found in axes for a in found]
        if not axes[axis]:
            only = step(start, x.at(index), const(0))
            return (Define(name, tuple(a for found in axes for a in found), only),)
        (time,) = axes[axis]
        now = Var(time.name)
        placed[placed.index(time)] = now
        before = [(op("sub", now, const(1)),) if k == axis else i for k, i in enumerate(index)]
        past = Read(name, tuple(p for i in before for p in i), dtype, start)
        define = Define(name, tuple(placed), step(past, x.at(index), now))
        return (Loop("for", time, (), (define,)),)

    return low.made(dims, dtype, build)


def _scan(name: str, start: Callable[[DType], Const]) -> Structural:
    def scan(low: Lowering, x: Value, axis: int, **options: Any) -> Value:
        dtype = low.out.dtype
        wide = wide_of(dtype)
        if not x.dims:
            return pointwise(lambda e: cast(e, dtype), [x], dtype)
        made = scanned(
            low, x, axis % len(x.dims), wide, start(wide),
            lambda past, e, _: op(name, past, cast(e, wide)),
        )  # fmt: skip
        return pointwise(lambda e: cast(e, dtype), [made], dtype)

    return scan


def _best_so_far(name: str) -> Structural:
    """cummax, cummin: values, and where each is: the last of equal ones; NaN beats all."""

    def both(low: Lowering, x: Value, axis: int) -> tuple[Value, Value]:
        if not x.dims:
            return x, Value((), i64, lambda _: const(0))
        axis %= len(x.dims)
        dtype = x.dtype
        if dtype.is_bool:
            small = pointwise(lambda e: cast(e, i64), [x], i64)
            best, where = both(low, small, axis)
            return pointwise(lambda e: cast(e, bool_), [best], bool_), where
        best = scanned(low, x, axis, dtype, identity(name, dtype), lambda p, e, _: op(name, p, e))
        equal = pointwise(
            lambda b, e: op("or", op("eq", b, e), op("isnan", e)) if dtype.is_float else op(
                "eq", b, e), [best, x], bool_)  # fmt: skip
        where = scanned(low, equal, axis, i64, const(0), lambda p, e, t: op("select", e, t, p))
        return best, where

    return both


def logcumsumexp(low: Lowering, x: Value, axis: int) -> Value:
    """log(exp(y[t - 1]) + exp(x[t])), from the greater of the two."""
    dtype, wide = low.out.dtype, wide_of(low.out.dtype)
    if not x.dims:
        return x

    def step(past: Expr, e: Expr, _: Expr) -> Expr:
        e = cast(e, wide)
        top, bottom = op("max", past, e), op("min", past, e)
        same = op("eq", past, e)  # of two infinities the difference is NaN
        apart = op("select", same, number(e, 0), op("sub", bottom, top))
        grown = op("add", top, op("log1p", op("exp", apart)))
        return op("select", op("isinf", top), top, grown)

    made = scanned(low, x, axis % len(x.dims), wide, identity("max", wide), step)
    return pointwise(lambda e: cast(e, dtype), [made], dtype)


def by_axis(low: Lowering, v: Value, axis: int) -> Value:
    """With an axis moved to the end."""
    rank = len(v.dims)
    return permuted(v, [*[k for k in range(rank) if k != axis], axis])


def _zero(dtype: DType) -> Const:
    return identity("add", dtype)


def whole_dims(low: Lowering, dims: Sequence[Dim]) -> None:
    for d in dims:
        low.whole(d)


SCATTERS: dict[str, Structural] = {
    "scatter.src": scatter_src,
    "scatter.value": scatter_value,
    "scatter.reduce": scatter_src,
    "scatter.value_reduce": scatter_value,
    "scatter_add.default": scatter_add,
    "scatter_reduce.two": scatter_reduce,
    "index_add.default": index_add,
    "index_reduce.default": index_reduce,
    "index_copy.default": index_copy,
    "index_fill.int_Scalar": index_fill,
    "index_fill.int_Tensor": index_fill,
    "index_put.default": index_put,
    "put.default": put,
    "nonzero_static.default": nonzero_static,
    "histc.default": histc,
    "_unsafe_index_put.default": index_put,
    "embedding_dense_backward.default": embedding_dense_backward,
    "cumsum.default": _scan("add", _zero),
    "cumprod.default": _scan("mul", lambda dtype: identity("mul", dtype)),
    "cummax.default": _best_so_far("max"),
    "cummin.default": _best_so_far("min"),
    "logcumsumexp.default": logcumsumexp,
}
