"""torch's `prims`, which its own decompositions end in: no promotion, no broadcasting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kir.dtypes import DTYPES, bool_
from kir.errors import UnsupportedError
from kir.frontends.torch import structural
from kir.frontends.torch.dims import Index
from kir.frontends.torch.gathers import flip
from kir.frontends.torch.table import POINTWISE, Pointwise, Structural, number, wide_of
from kir.frontends.torch.values import (
    REDUCED,
    Value,
    cast,
    expanded,
    inserted,
    permuted,
    pointwise,
    reduced,
    selected,
    sliced,
)
from kir.ir import Bitcast, Const, Expr
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering


def _signbit(x: Expr) -> Expr:
    """Of a float its first bit: of -0.0 and of a NaN too."""
    if not x.dtype.is_float:
        return op("lt", x, number(x, 0)) if not x.dtype.is_bool else Const(False, bool_)
    bits = DTYPES[f"i{x.dtype.bits}"]
    return op("lt", Bitcast(x, bits), Const(0, bits))


def _nextafter(a: Expr, b: Expr) -> Expr:
    """The bits of a float, as an integer of its sign, go up by one for the next float."""
    bits = DTYPES[f"i{a.dtype.bits}"]
    own = Bitcast(a, bits)
    one, zero = Const(1, bits), number(a, 0)
    away = op("eq", op("gt", b, a), op("gt", a, zero))
    moved = Bitcast(op("add", own, op("select", away, one, op("neg", one))), a.dtype)
    least: Expr = Bitcast(one, a.dtype)
    least = op("select", op("gt", b, a), least, op("neg", least))
    found = op("select", op("eq", a, b), b, op("select", op("eq", a, zero), least, moved))
    missing = op("or", op("isnan", a), op("isnan", b))
    return op("select", missing, Const(float("nan"), a.dtype), found)


def _angle(x: Expr) -> Expr:
    turned = op("select", op("lt", x, number(x, 0)), number(x, math.pi), number(x, 0))
    return op("select", op("isnan", x), x, turned)


def _hypot(a: Expr, b: Expr) -> Expr:
    """In f64, where no square of an f32 overflows."""
    wide = DTYPES["f64"]
    x, y = cast(a, wide), cast(b, wide)
    root = cast(op("sqrt", op("add", op("mul", x, x), op("mul", y, y))), a.dtype)
    far = op("or", op("isinf", a), op("isinf", b))
    return op("select", far, Const(float("inf"), a.dtype), root)


def frexp(low: Lowering, x: Value) -> tuple[Value, Value]:
    """A mantissa in [1/2, 1) and the power of two, from the bits. A subnormal is multiplied by a
    power of two first. Zeros, infinities and NaN are their own mantissa, with the power 0."""
    dtype = x.dtype
    if dtype.bits < 32:
        raise UnsupportedError(f"frexp of {dtype} is not compiled")
    bits, i32 = DTYPES[f"i{dtype.bits}"], DTYPES["i32"]
    digits, bias = (23, 126) if dtype.bits == 32 else (52, 1022)
    mask = 2 * bias + 3

    def grown(e: Expr) -> Expr:
        small = op("lt", op("abs", e), number(e, 2.0 ** (1 - bias)))
        return op("select", small, op("mul", e, number(e, 2.0**64)), e)

    def power(e: Expr) -> Expr:
        field = op("bit_and", op("shr", Bitcast(e, bits), Const(digits, bits)), Const(mask, bits))
        return op("sub", field, Const(bias, bits))

    def plain(e: Expr) -> Expr:
        return op("or", op("eq", e, number(e, 0)), op("or", op("isinf", e), op("isnan", e)))

    big = low.keep(pointwise(grown, [x], dtype))

    def mantissa(e: Expr, g: Expr) -> Expr:
        kept = op("bit_and", Bitcast(g, bits), Const(~(mask << digits), bits))
        found = Bitcast(op("bit_or", kept, Const(bias << digits, bits)), dtype)
        return op("select", plain(e), e, found)

    def exponent(e: Expr, g: Expr) -> Expr:
        moved = op("select", op("eq", e, g), power(g), op("sub", power(g), Const(64, bits)))
        return cast(op("select", plain(e), Const(0, bits), moved), i32)

    return pointwise(mantissa, [x, big], dtype), pointwise(exponent, [x, big], i32)


def _divided(a: Expr, b: Expr) -> Expr:
    return op("div" if a.dtype.is_float else "tdiv", a, b)


def _shifted(name: str, a: Expr, b: Expr) -> Expr:
    return op(name, a, b)


def _same(name: str) -> Pointwise:
    """The row of ATen's, without promotion."""
    return replace(POINTWISE[name], kind="DEFAULT")


PRIM_POINTWISE: dict[str, Pointwise] = {
    **{
        f"prims.{name}.default": _same(f"{name}.default")
        for name in (
            "abs",
            "acos",
            "acosh",
            "asin",
            "asinh",
            "atan",
            "atanh",
            "cos",
            "cosh",
            "erf",
            "exp",
            "expm1",
            "exp2",
            "floor",
            "ceil",
            "log",
            "log1p",
            "log2",
            "log10",
            "neg",
            "reciprocal",
            "round",
            "sign",
            "sin",
            "sinh",
            "sqrt",
            "rsqrt",
            "tan",
            "tanh",
            "trunc",
            "bitwise_not",
            "atan2",
            "fmax",
            "fmin",
            "maximum",
            "minimum",
        )
    },
    **{
        f"prims.{name}.default": _same(f"{name}.Tensor")
        for name in ("add", "sub", "mul", "bitwise_and", "bitwise_or", "bitwise_xor")
    },
    **{
        f"prims.{name}.default": POINTWISE[f"{name}.Tensor"]
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    "prims.pow.default": POINTWISE["pow.Tensor_Tensor"],
    "prims.div.default": Pointwise(_divided, operands=2),
    "prims.where.default": POINTWISE["where.self"],
    "prims.signbit.default": Pointwise(_signbit, "SELF"),
    "signbit.default": Pointwise(_signbit, "SELF"),
    "prims.isfinite.default": Pointwise(
        lambda x: (
            op("not", op("or", op("isnan", x), op("isinf", x)))
            if x.dtype.is_float
            else Const(True, bool_)
        ),
        "BOOL_OF",
    ),
    "angle.default": Pointwise(_angle, "INT_TO_FLOAT"),
    "prims.nextafter.default": Pointwise(_nextafter, "SELF", operands=2),
    "prims.hypot.default": Pointwise(_hypot, heavy=True, operands=2),
    "prims.shift_left.default": Pointwise(lambda a, b: _shifted("shl", a, b), operands=2),
    "prims.shift_right_arithmetic.default": Pointwise(
        lambda a, b: _shifted("shr", a, b), operands=2
    ),
    "bitwise_left_shift.Tensor": Pointwise(lambda a, b: _shifted("shl", a, b), operands=2),
    "bitwise_right_shift.Tensor": Pointwise(lambda a, b: _shifted("shr", a, b), operands=2),
}


def convert(low: Lowering, x: Value, dtype: Any = None) -> Value:
    wanted = low.out.dtype
    return pointwise(lambda e: cast(e, wanted), [x], wanted)


def broadcast_in_dim(low: Lowering, x: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
    for k in range(len(shape)):
        if k not in dims:
            x = inserted(x, k)
    return expanded(x, shape)


def squeeze(low: Lowering, x: Value, axes: Sequence[int]) -> Value:
    for a in sorted(axes, reverse=True):
        x = selected(x, a, 0)
    return x


def expand_dims(low: Lowering, x: Value, axes: Sequence[int], ndim: Any = None) -> Value:
    for a in sorted(axes):
        x = inserted(x, a)
    return x


def regrouped(low: Lowering, x: Value, *rest: Any) -> Value:
    """Views that only regroup elements: the shape says how."""
    return low.viewed(x, low.out.shape)


def slice_(
    low: Lowering, x: Value, starts: Sequence[int], limits: Sequence[int],
    strides: Sequence[int] | None = None,
) -> Value:  # fmt: skip
    for k, start in enumerate(starts):
        x = sliced(x, k, start, strides[k] if strides else 1, low.out.shape[k])
    return x


def cat(low: Lowering, tensors: Sequence[Value], axis: int) -> Value:
    return structural.cat(low, tensors, axis)


def iota(low: Lowering, length: int, *, start: int = 0, step: int = 1, **options: Any) -> Value:
    return structural.arange(low, start, None, step)


def _reduction(name: str) -> Structural:
    def found(low: Lowering, x: Value, axes: Sequence[int] | None, **options: Any) -> Value:
        dtype = low.out.dtype
        if name == "sum" and x.dtype.is_bool:
            x = pointwise(lambda e: cast(e, dtype), [x], dtype)
        listed = list(range(len(x.dims))) if axes is None else list(axes)
        wide = wide_of(dtype)
        return reduced(name, x, listed, False, low.names, wide, dtype)

    return found


def var(low: Lowering, x: Value, axes: Sequence[int] | None, correction: Any = 1) -> Value:
    listed = list(range(len(x.dims))) if axes is None else list(axes)
    return structural.var_mean(low, x, listed, correction)[0]


def empty(low: Lowering, *rest: Any, **options: Any) -> Value:
    """Memory that nobody wrote: zeros."""
    return structural.full(low, low.out.shape, 0)


def permute(low: Lowering, x: Value, order: Sequence[int]) -> Value:
    return permuted(x, order)


def copy(low: Lowering, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """`source` as what `x` is."""
    dtype = x.dtype
    return pointwise(lambda e: cast(e, dtype), [expanded(source, x.shape)], dtype)


def as_strided(
    low: Lowering, x: Value, shape: Sequence[int], strides: Sequence[int], offset: int = 0
) -> Value:
    """Places of the memory under `x`, which has no gaps."""
    flat = _memory(low, x)
    dims = low.dims(shape)
    for d in dims:
        low.whole(d)
    whole = flat.dims[0]
    low.whole(whole)

    def at(indices: Sequence[Index]) -> Expr:
        e: Expr = Const(offset or 0, DTYPES["i64"])
        for d, i, s in zip(dims, indices, strides, strict=True):
            e = op("add", e, op("mul", d.joined(i), Const(s, DTYPES["i64"])))
        return flat.at([(e,) if whole.factors else ()])

    return flat.seen(dims, at)


def _memory(low: Lowering, x: Value) -> Value:
    meta = low.metas[0]
    if meta is None or not meta.dense:
        raise UnsupportedError("strides over memory with gaps are not compiled")
    total = 1
    for n in x.shape:
        total *= n
    return low.viewed(permuted(x, meta.order), [total])


def as_strided_scatter(
    low: Lowering, x: Value, source: Value, shape: Sequence[int], strides: Sequence[int],
    offset: int | None = 0,
) -> Value:  # fmt: skip
    """A copy of `x` with `source` at places of its memory."""
    from kir.frontends.torch.scatters import written

    flat, meta = _memory(low, x), low.metas[0]
    assert meta is not None
    whole = flat.dims[0]
    low.whole(whole)
    for d in source.dims:
        low.whole(d)

    def place(here: Sequence[Index]) -> list[Index]:
        e: Expr = Const(offset or 0, DTYPES["i64"])
        for d, i, s in zip(source.dims, here, strides, strict=True):
            e = op("add", e, op("mul", d.joined(i), Const(s, DTYPES["i64"])))
        return [(e,) if whole.size > 1 else ()]

    made = written(low, flat, source, place, None)
    ordered = low.viewed(made, [x.shape[d] for d in meta.order])
    return permuted(ordered, [meta.order.index(d) for d in range(len(meta.order))])


def slice_scatter(
    low: Lowering, x: Value, source: Value, axis: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    axis %= len(x.dims)
    size = x.dims[axis].size
    begin, _, _ = slice(start, end, step).indices(size)
    count = source.dims[axis].size
    if not count:
        return x
    low.whole(x.dims[axis])
    low.whole(source.dims[axis])
    for k, d in enumerate(x.dims):
        if k != axis:
            low.walk_together(d, source.dims[k])

    def at(indices: Sequence[Index]) -> Expr:
        i64 = DTYPES["i64"]
        e = x.dims[axis].joined(indices[axis])
        back = op("sub", e, Const(begin, i64))
        own = op("floordiv", back, Const(step, i64)) if step > 1 else back
        held = op("min", op("max", own, Const(0, i64)), Const(count - 1, i64))
        inside = op("and", op("ge", back, Const(0, i64)), op("lt", own, Const(count, i64)))
        if step > 1:
            inside = op("and", inside, op("eq", op("mod", back, Const(step, i64)), Const(0, i64)))
        place = [
            ((held,) if count > 1 else ()) if k == axis else
            (() if d.size == 1 else d.split(x.dims[k].joined(indices[k])))
            for k, d in enumerate(source.dims)
        ]  # fmt: skip
        return op("select", inside, cast(source.at(place), x.dtype), x.at(indices))

    return Value(x.dims, x.dtype, at, REDUCED)


def fmod(low: Lowering, a: Any, b: Any) -> Value:
    """The remainder with the sign of `a`, exactly: each step takes off what the quotient's 53 bits
    say, without rounding (the fused product has no more bits than the operands had)."""
    dtype = low.out.dtype
    x, y = (v if isinstance(v, Value) else _constant(dtype, v) for v in (a, b))
    if not dtype.is_float:
        return pointwise(lambda p, q: op("trem", cast(p, dtype), cast(q, dtype)), [x, y], dtype)
    if dtype.bits > 32:
        raise UnsupportedError("a remainder of f64 is not compiled")
    return pointwise(lambda e: cast(e, dtype), [_rest(low, x, y)], dtype)


def _constant(dtype: Any, value: Any) -> Value:
    kind = Const(float(value) if dtype.is_float else int(value), dtype)
    return Value((), dtype, lambda _: kind)


def _rest(low: Lowering, x: Value, y: Value) -> Value:
    """fmod in f64, of operands of at most 24 bits."""
    wide = DTYPES["f64"]
    steps = 1 if low.out.dtype.bits == 16 and low.out.dtype.name == "f16" else 6
    dividend, divisor = (pointwise(lambda e: cast(e, wide), [v], wide) for v in (x, y))

    def step(r: Expr, d: Expr) -> Expr:
        size = op("abs", d)
        less = op("fma", op("neg", op("trunc", op("div", r, size))), size, r)
        return op("select", op("lt", op("abs", r), size), r, less)

    left = dividend
    for _ in range(steps):
        left = low.keep(pointwise(step, [left, divisor], wide))

    def settled(r: Expr, d: Expr, n: Expr) -> Expr:
        """A quotient rounded up leaves the wrong sign."""
        size = op("abs", d)
        zero = number(r, 0)
        wrong = op("or", op("and", op("gt", n, zero), op("lt", r, zero)),
                   op("and", op("lt", n, zero), op("gt", r, zero)))  # fmt: skip
        r = op("select", wrong, op("add", r, op("select", op("gt", n, zero), size, op(
            "neg", size))), r)  # fmt: skip
        r = op("select", op("isinf", size), n, r)
        invalid = op("or", op("isinf", n), op("eq", size, zero))
        invalid = op("or", invalid, op("or", op("isnan", n), op("isnan", size)))
        r = op("select", invalid, Const(float("nan"), wide), r)
        return op("select", op("eq", r, zero), op("mul", n, zero), r)

    return low.keep(pointwise(settled, [left, divisor, dividend], wide))


def remainder(low: Lowering, a: Any, b: Any) -> Value:
    """The remainder with the sign of `b`."""
    dtype = low.out.dtype
    x, y = (v if isinstance(v, Value) else _constant(dtype, v) for v in (a, b))
    if not dtype.is_float:
        return pointwise(lambda p, q: op("mod", cast(p, dtype), cast(q, dtype)), [x, y], dtype)
    if dtype.bits > 32:
        raise UnsupportedError("a remainder of f64 is not compiled")
    rest = _rest(low, x, y)

    def element(r: Expr, d: Expr) -> Expr:
        d = cast(d, r.dtype)
        zero = number(r, 0)
        other = op("ne", op("lt", r, zero), op("lt", d, zero))
        return cast(op("select", op("and", op("ne", r, zero), other), op("add", r, d), r), dtype)

    return pointwise(element, [rest, y], dtype)


def divided(low: Lowering, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    """`div` with a rounding; `floor` of floats as Python's, from the remainder."""
    dtype = low.out.dtype
    x, y = (v if isinstance(v, Value) else _constant(dtype, v) for v in (a, b))
    wide = wide_of(dtype)

    def operand(v: Value, to: Any) -> Value:
        return pointwise(lambda e: cast(e, to), [v], to)

    if not dtype.is_float:
        name = "floordiv" if rounding_mode == "floor" else "tdiv"
        return pointwise(lambda p, q: op(name, p, q), [operand(x, dtype), operand(y, dtype)], dtype)
    if rounding_mode != "floor":
        whole = rounding_mode is not None
        return pointwise(
            lambda p, q: cast(op("trunc", op("div", p, q)) if whole else op("div", p, q), dtype),
            [operand(x, wide), operand(y, wide)], dtype,
        )  # fmt: skip
    if dtype.bits > 32:
        raise UnsupportedError("a floor of quotients of f64 is not compiled")
    rest = _rest(low, x, y)

    def element(n: Expr, d: Expr, r: Expr) -> Expr:
        zero = number(r, 0)
        n, d = cast(n, r.dtype), cast(d, r.dtype)
        other = op("and", op("ne", r, zero), op("ne", op("lt", r, zero), op("lt", d, zero)))
        whole = op("div", op("sub", n, r), d)
        whole = op("round", op("select", other, op("sub", whole, number(r, 1)), whole))
        plain = op("div", n, d)
        odd = op("or", op("eq", d, zero), op("or", op("isinf", plain), op("isnan", plain)))
        return cast(op("select", odd, plain, whole), dtype)

    return pointwise(element, [x, y, rest], dtype)


PRIMS: dict[str, Structural] = {
    "prims.convert_element_type.default": convert,
    "prims.device_put.default": structural.alias,
    "prims.broadcast_in_dim.default": broadcast_in_dim,
    "prims.squeeze.default": squeeze,
    "prims.expand_dims.default": expand_dims,
    "prims.split_dim.default": regrouped,
    "prims.collapse_view.default": regrouped,
    "prims.collapse.default": regrouped,
    "prims.reshape.default": regrouped,
    "prims.view_of.default": structural.alias,
    "prims.clone.default": structural.alias,
    "prims.transpose.default": permute,
    "prims.slice.default": slice_,
    "prims.rev.default": flip,
    "prims.cat.default": cat,
    "prims.iota.default": iota,
    "prims.frexp.default": frexp,
    "prims.sum.default": _reduction("sum"),
    "prims.prod.default": _reduction("prod"),
    "prims.amax.default": _reduction("max"),
    "prims.amin.default": _reduction("min"),
    "prims.var.default": var,
    "prims.scalar_tensor.default": structural.scalar_tensor,
    "prims.copy_to.default": copy,
    "prims.as_strided.default": as_strided,
    "prims.as_strided_scatter.default": as_strided_scatter,
    "as_strided.default": as_strided,
    "as_strided_copy.default": as_strided,
    "as_strided_scatter.default": as_strided_scatter,
    "slice_scatter.default": slice_scatter,
    "copy.default": copy,
    "prims.fmod.default": fmod,
    "fmod.Tensor": fmod,
    "fmod.Scalar": fmod,
    "prims.remainder.default": remainder,
    "remainder.Tensor": remainder,
    "remainder.Scalar": remainder,
    "div.Tensor_mode": divided,
    "div.Scalar_mode": divided,
    "prims.empty_strided.default": empty,
    "prims.empty_permuted.default": empty,
    "empty.memory_format": empty,
    "empty_strided.default": empty,
    "empty_like.default": empty,
    "empty_permuted.default": empty,
    "new_empty.default": empty,
    "new_empty_strided.default": empty,
}
