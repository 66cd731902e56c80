"""The operators that are not pointwise: views, reductions, products, softmax, norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import DType, f32, i64
from kir.frontends.torch.dims import Index
from kir.frontends.torch.table import Structural, axes_of, number, wide_of
from kir.frontends.torch.values import (
    HEAVY,
    Value,
    carried,
    cast,
    contracted,
    expanded,
    held,
    inserted,
    permuted,
    pointwise,
    reduced,
    selected,
    sliced,
)
from kir.ir import Const, Expr, const
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering

# --- views -----------------------------------------------------------------------------------


def view(low: Lowering, x: Value, shape: Sequence[int]) -> Value:
    total = 1
    for d in x.dims:
        total *= d.size
    known = 1
    for n in shape:
        known *= n if n != -1 else 1
    return low.viewed(x, [n if n != -1 else total // max(known, 1) for n in shape])


def permute(low: Lowering, x: Value, order: Sequence[int]) -> Value:
    return permuted(x, [d % len(x.dims) for d in order])


def transpose(low: Lowering, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.dims)))
    if order:
        a, b = a % len(order), b % len(order)
        order[a], order[b] = order[b], order[a]
    return permuted(x, order)


def t(low: Lowering, x: Value) -> Value:
    return permuted(x, list(reversed(range(len(x.dims)))))


def unsqueeze(low: Lowering, x: Value, axis: int) -> Value:
    return inserted(x, axis % (len(x.dims) + 1))


def squeeze(low: Lowering, x: Value, axes: Any = None) -> Value:
    for a in sorted(axes_of(axes, len(x.dims)), reverse=True):
        if x.dims and x.dims[a].size == 1:
            x = selected(x, a, 0)
    return x


def expand(low: Lowering, x: Value, shape: Sequence[int], implicit: bool = False) -> Value:
    lead = len(shape) - len(x.dims)
    return expanded(x, [x.dims[k - lead].size if n == -1 else n for k, n in enumerate(shape)])


def slice_(
    low: Lowering,
    x: Value,
    axis: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis %= len(x.dims)
    begin, stop, _ = slice(start, end, step).indices(x.dims[axis].size)
    return sliced(x, axis, begin, step, max(0, -(-(stop - begin) // step)))


def select(low: Lowering, x: Value, axis: int, place: int) -> Value:
    axis %= len(x.dims)
    return selected(x, axis, place % x.dims[axis].size)


def split_with_sizes(
    low: Lowering, x: Value, sizes: Sequence[int], axis: int = 0
) -> tuple[Value, ...]:
    found, start = [], 0
    for size in sizes:
        found.append(sliced(x, axis % len(x.dims), start, 1, size))
        start += size
    return tuple(found)


def split(low: Lowering, x: Value, size: int, axis: int = 0) -> tuple[Value, ...]:
    total = x.dims[axis % len(x.dims)].size
    sizes = [min(size, total - k) for k in range(0, total, max(size, 1))] or [total]
    return split_with_sizes(low, x, sizes, axis)


def unbind(low: Lowering, x: Value, axis: int = 0) -> tuple[Value, ...]:
    axis %= len(x.dims)
    return tuple(selected(x, axis, k) for k in range(x.dims[axis].size))


def alias(low: Lowering, x: Value, **options: Any) -> Value:
    return x


def to_copy(low: Lowering, x: Value, **options: Any) -> Value:
    dtype: DType = low.out.dtype
    return pointwise(lambda e: cast(e, dtype), [x], dtype)


def cat(low: Lowering, tensors: Sequence[Value], axis: int = 0) -> Value:
    """Each part is read only where the index is its own: elsewhere its index is held at 0."""
    dtype = low.out.dtype
    parts = [v for v in tensors if v.shape != (0,) or len(low.out.shape) == 1]
    rank = len(low.out.shape)
    axis %= rank
    dims = low.dims(low.out.shape)
    for v in parts:
        for k in range(rank):
            if k != axis:
                low.walk_together(dims[k], v.dims[k])

    def at(indices: Sequence[Index]) -> Expr:
        place, start = dims[axis].joined(indices[axis]), 0
        found: Expr = Const(0.0 if dtype.is_float else 0 if not dtype.is_bool else False, dtype)
        for v in parts:
            size = v.dims[axis].size
            if not size:
                continue
            here = op("sub", place, const(start))
            held = op("min", op("max", here, const(0)), const(size - 1))
            inner = [
                (() if size == 1 else v.dims[k].split(held))
                if k == axis
                else carried(v.dims[k], dims[k], indices[k])
                for k in range(rank)
            ]
            found = op("select", op("ge", place, const(start)), cast(v.at(inner), dtype), found)
            start += size
        return found

    return Value(dims, dtype, at, HEAVY)


# --- making ----------------------------------------------------------------------------------


def full(low: Lowering, shape: Sequence[int], value: Any, **options: Any) -> Value:
    dtype = low.out.dtype
    literal = bool(value) if dtype.is_bool else float(value) if dtype.is_float else int(value)
    return Value(low.dims(shape), dtype, lambda _: Const(literal, dtype))


def full_like(low: Lowering, x: Value, value: Any, **options: Any) -> Value:
    return full(low, x.shape, value)


def scalar_tensor(low: Lowering, value: Any, **options: Any) -> Value:
    return full(low, (), value)


def arange(low: Lowering, start: Any, end: Any, step: Any = 1, **options: Any) -> Value:
    dtype = low.out.dtype
    dims = low.dims(low.out.shape)

    def at(indices: Sequence[Index]) -> Expr:
        e = cast(dims[0].joined(indices[0]), dtype)
        like = Const(0.0 if dtype.is_float else 0, dtype)
        return op("add", op("mul", e, number(like, step)), number(like, start))

    return Value(dims, dtype, at)


# --- reductions ------------------------------------------------------------------------------


def sum_(low: Lowering, x: Value, axes: Any = None, keep: bool = False, **options: Any) -> Value:
    dtype = low.out.dtype
    wide = wide_of(dtype)
    return reduced("sum", x, axes_of(axes, len(x.dims)), keep, low.names, wide, dtype)


def sum_over(low: Lowering, x: Value, axes: Sequence[int], dtype: DType) -> Value:
    """Over axes, in the dtype in which torch sums."""
    return reduced("sum", x, axes, False, low.names, wide_of(dtype), dtype)


def mean(low: Lowering, x: Value, axes: Any = None, keep: bool = False, **options: Any) -> Value:
    dtype = low.out.dtype
    wide, listed = wide_of(dtype), axes_of(axes, len(x.dims))
    total = reduced("sum", x, listed, keep, low.names, wide, wide)
    count = 1
    for a in listed:
        count *= x.dims[a].size
    return pointwise(
        lambda e: cast(op("div", e, number(e, count)), dtype), [low.keep(total)], dtype
    )


def amax(low: Lowering, x: Value, axes: Any = None, keep: bool = False) -> Value:
    return reduced("max", x, axes_of(axes, len(x.dims)), keep, low.names)


def amin(low: Lowering, x: Value, axes: Any = None, keep: bool = False) -> Value:
    return reduced("min", x, axes_of(axes, len(x.dims)), keep, low.names)


def _best_of_all(name: str) -> Structural:
    def best(low: Lowering, x: Value) -> Value:
        if x.dtype.is_bool:
            return _truth("any" if name == "max" else "all", low, x, None, False)
        return reduced(name, x, list(range(len(x.dims))), False, low.names)

    return best


def prod_(low: Lowering, x: Value, axis: int | None = None, keep: bool = False, **_: Any) -> Value:
    dtype = low.out.dtype
    return reduced("prod", x, axes_of(axis, len(x.dims)), keep, low.names, wide_of(dtype), dtype)


def any_(low: Lowering, x: Value, axes: Any = None, keep: bool = False) -> Value:
    return _truth("any", low, x, axes, keep)


def all_(low: Lowering, x: Value, axes: Any = None, keep: bool = False) -> Value:
    return _truth("all", low, x, axes, keep)


def _truth(name: str, low: Lowering, x: Value, axes: Any, keep: bool) -> Value:
    from kir.dtypes import bool_

    found = reduced(name, x, axes_of(axes, len(x.dims)), keep, low.names, bool_, bool_)
    dtype = low.out.dtype
    return found if dtype.is_bool else pointwise(lambda e: cast(e, dtype), [found], dtype)


def var_mean(
    low: Lowering, x: Value, axes: Any = None, correction: Any = 1, keepdim: bool = False
) -> tuple[Value, Value]:
    listed = axes_of(axes, len(x.dims))
    wide = wide_of(x.dtype)
    count = 1
    for a in listed:
        count *= x.dims[a].size
    total = low.keep(reduced("sum", x, listed, True, low.names, wide, wide))
    middle = low.keep(pointwise(lambda e: op("div", e, number(e, count)), [total], wide))
    apart = pointwise(
        lambda e, m: op("mul", op("sub", cast(e, wide), m), op("sub", cast(e, wide), m)),
        [x, middle],
        wide,
    )
    squares = low.keep(reduced("sum", apart, listed, True, low.names, wide, wide))
    free = max(count - float(1 if correction is None else correction), 0.0)
    made = [
        pointwise(lambda e: cast(op("div", e, number(e, free)), x.dtype), [squares], x.dtype),
        pointwise(lambda e: cast(e, x.dtype), [middle], x.dtype),
    ]
    if not keepdim:
        made = [_without(v, listed) for v in made]
    return made[0], made[1]


def _without(v: Value, axes: Sequence[int]) -> Value:
    for a in sorted(axes, reverse=True):
        v = selected(v, a, 0)
    return v


def argmax(low: Lowering, x: Value, axis: int | None = None, keep: bool = False) -> Value:
    return _arg("argmax", low, x, axis, keep)


def argmin(low: Lowering, x: Value, axis: int | None = None, keep: bool = False) -> Value:
    return _arg("argmin", low, x, axis, keep)


def _arg(name: str, low: Lowering, x: Value, axis: int | None, keep: bool) -> Value:
    shape = low.out.shape
    if axis is None:
        total = 1
        for d in x.dims:
            total *= d.size
        x, axis = low.viewed(x, [total]), 0
    if not x.dims:
        return Value((), i64, lambda _: const(0))
    axis %= len(x.dims)
    low.whole(x.dims[axis])  # an arg-reduction has one axis
    found = reduced(name, x, [axis], keep, low.names, x.dtype, i64)
    return low.viewed(found, shape) if found.shape != tuple(shape) else found


# --- products --------------------------------------------------------------------------------


def mm(low: Lowering, a: Value, b: Value) -> Value:
    return contracted(
        low.factor(a), low.factor(b), 0, low.names, _sums(low.out.dtype), low.out.dtype
    )


def bmm(low: Lowering, a: Value, b: Value) -> Value:
    return contracted(
        low.factor(a), low.factor(b), 1, low.names, _sums(low.out.dtype), low.out.dtype
    )


def addmm(low: Lowering, bias: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    dtype = low.out.dtype
    wide = _sums(dtype)
    product = low.keep(contracted(low.factor(a), low.factor(b), 0, low.names, wide, wide))

    def element(c: Expr, p: Expr) -> Expr:
        p = p if alpha == 1 else op("mul", p, number(p, alpha))
        c = cast(c, wide)
        if beta == 0:  # what is not added may be a NaN
            return cast(p, dtype)
        c = c if beta == 1 else op("mul", c, number(c, beta))
        return cast(op("add", p, c), dtype)

    return pointwise(element, [bias, product], dtype)


def addbmm(
    low: Lowering, bias: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1
) -> Value:
    """The products of a batch, added up."""
    dtype = low.out.dtype
    wide = _sums(dtype)
    products = low.keep(contracted(low.factor(a), low.factor(b), 1, low.names, wide, wide))
    total = low.keep(reduced("sum", products, [0], False, low.names, wide, wide))

    def element(c: Expr, p: Expr) -> Expr:
        scaled = op("mul", p, number(p, alpha))
        if beta == 0:
            return cast(scaled, dtype)
        return cast(op("add", scaled, op("mul", cast(c, wide), number(p, beta))), dtype)

    return pointwise(element, [bias, total], dtype)


def _sums(dtype: DType) -> DType:
    return f32 if dtype.is_float and dtype.bits < 32 else dtype


# --- rows ------------------------------------------------------------------------------------


def softmax(low: Lowering, x: Value, axis: int, half: bool = False) -> Value:
    dtype, wide = low.out.dtype, wide_of(x.dtype)
    _, total, e = _exponentials(low, x, axis, wide)
    return pointwise(lambda n, s: cast(op("div", n, s), dtype), [e, total], dtype)


def log_softmax(low: Lowering, x: Value, axis: int, half: bool = False) -> Value:
    dtype, wide = low.out.dtype, wide_of(x.dtype)
    top, total, _ = _exponentials(low, x, axis, wide)
    return pointwise(
        lambda e, m, s: cast(op("sub", op("sub", cast(e, wide), m), op("log", s)), dtype),
        [x, top, total],
        dtype,
        heavy=True,
    )


def _exponentials(low: Lowering, x: Value, axis: int, wide: DType) -> tuple[Value, Value, Value]:
    axes = [axis % max(len(x.dims), 1)] if x.dims else []
    top = low.keep(reduced("max", x, axes, True, low.names, wide, wide))
    e = low.keep(
        pointwise(lambda v, m: op("exp", op("sub", cast(v, wide), m)), [x, top], wide, heavy=True)
    )
    return top, low.keep(reduced("sum", e, axes, True, low.names, wide, wide)), e


def native_layer_norm(
    low: Lowering,
    x: Value,
    shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Value, Value, Value]:
    rank = len(x.dims)
    axes = list(range(rank - len(shape), rank))
    wide = wide_of(x.dtype)
    variance, middle = (low.keep(v) for v in _moments(low, x, axes, wide))
    scale = low.keep(
        pointwise(lambda v: op("rsqrt", op("add", v, number(v, eps))), [variance], wide, heavy=True)
    )
    operands = [x, middle, scale] + [v for v in (weight, bias) if v is not None]

    def element(e: Expr, m: Expr, r: Expr, *rest: Expr) -> Expr:
        found = op("mul", op("sub", cast(e, wide), m), r)
        left = list(rest)
        if weight is not None:
            found = op("mul", found, cast(left.pop(0), wide))
        if bias is not None:
            found = op("add", found, cast(left.pop(0), wide))
        return cast(found, x.dtype)

    y = pointwise(element, operands, x.dtype)
    kept = low.outs[1].dtype
    saved = [pointwise(lambda e: cast(e, kept), [v], kept) for v in (middle, scale)]
    return y, saved[0], saved[1]


def _moments(low: Lowering, x: Value, axes: Sequence[int], wide: DType) -> tuple[Value, Value]:
    count = 1
    for a in axes:
        count *= x.dims[a].size
    total = low.keep(reduced("sum", x, axes, True, low.names, wide, wide))
    middle = low.keep(pointwise(lambda e: op("div", e, number(e, count)), [total], wide))

    def square(e: Expr, m: Expr) -> Expr:
        d = op("sub", cast(e, wide), m)
        return op("mul", d, d)

    squares = low.keep(
        reduced("sum", pointwise(square, [x, middle], wide), axes, True, low.names, wide, wide)
    )
    return pointwise(lambda e: op("div", e, number(e, count)), [squares], wide), middle


# --- gathers ---------------------------------------------------------------------------------


def embedding(low: Lowering, weight: Value, indices: Value, padding: int = -1, *rest: Any) -> Value:
    dims = [*indices.dims, weight.dims[1]]
    rows = weight.dims[0]
    low.whole(rows)

    def at(place: Sequence[Index]) -> Expr:
        row = held(indices.at(place[:-1]), rows.size)
        return weight.at([rows.split(row), place[-1]])

    return Value(dims, weight.dtype, at)


STRUCTURAL: dict[str, Structural] = {
    "view.default": view,
    "_unsafe_view.default": view,
    "reshape.default": view,
    "permute.default": permute,
    "transpose.int": transpose,
    "t.default": t,
    "unsqueeze.default": unsqueeze,
    "squeeze.default": squeeze,
    "squeeze.dim": squeeze,
    "squeeze.dims": squeeze,
    "expand.default": expand,
    "slice.Tensor": slice_,
    "select.int": select,
    "split.Tensor": split,
    "split_with_sizes.default": split_with_sizes,
    "unbind.int": unbind,
    "alias.default": alias,
    "detach.default": alias,
    "clone.default": alias,
    "contiguous.default": alias,
    "_to_copy.default": to_copy,
    "cat.default": cat,
    "full.default": full,
    "full_like.default": full_like,
    "scalar_tensor.default": scalar_tensor,
    "arange.start_step": arange,
    "sum.default": sum_,
    "sum.dim_IntList": sum_,
    "mean.default": mean,
    "mean.dim": mean,
    "amax.default": amax,
    "amin.default": amin,
    "any.default": any_,
    "any.dim": any_,
    "any.dims": any_,
    "all.default": all_,
    "all.dim": all_,
    "all.dims": all_,
    "var_mean.correction": var_mean,
    "argmax.default": argmax,
    "argmin.default": argmin,
    "mm.default": mm,
    "addbmm.default": addbmm,
    "max.default": _best_of_all("max"),
    "min.default": _best_of_all("min"),
    "prod.default": prod_,
    "prod.dim_int": prod_,
    "lift_fresh.default": alias,
    "lift_fresh_copy.default": alias,
    "lift.default": alias,
    "bmm.default": bmm,
    "addmm.default": addmm,
    "_softmax.default": softmax,
    "_log_softmax.default": log_softmax,
    "native_layer_norm.default": native_layer_norm,
    "embedding.default": embedding,
}
"""ATen's name -> the function."""
