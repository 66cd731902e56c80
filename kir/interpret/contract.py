"""Sums of products: recognised once here, contracted by matrix products of f64.

A domain that can work on whole contractions (`Domain.contracts`) never sees the single products:
it gets the two factors, each over the axes that it depends on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kir.dtypes import DType
from kir.interpret.domain import Array
from kir.ir import Axis, Cast, Expr, Op, Reduce, Var, children


@dataclass(frozen=True)
class Product:
    """`left * right`, rounded to `made`; `names` are the indices that each depends on, and those
    that the sum's conditions and extents do."""

    left: Expr
    right: Expr
    made: DType
    names: tuple[frozenset[str], frozenset[str], frozenset[str]]


def product(e: Reduce) -> Product | None:
    """The body of a sum of products of floats, neither factor of which depends on all that the
    other does; None for any other reduction, where nothing would be gained."""
    found = factors(e.body) if e.name == "sum" else None
    if found is None:
        return None
    left, right, made = found
    own = frozenset(a.name for a in e.axes)
    named = [free(left), free(right)]
    mask = frozenset[str]().union(*map(free, e.where), *(free(a.extent) for a in e.axes))
    if not any(mask <= n | own for n in named):
        named[0] |= mask
    if named[0] <= named[1] or named[1] <= named[0]:
        return None
    return Product(left, right, made, (named[0], named[1], mask))


def factors(body: Expr) -> tuple[Expr, Expr, DType] | None:
    """The factors of a product of floats, and the type it is rounded to; exact casts of the product
    are looked through. None for what is no product."""
    while isinstance(body, Cast) and widens(body.value.dtype, body.type):
        body = body.value
    if not isinstance(body, Op) or body.name != "mul" or not body.type.is_float:
        return None
    left, right = body.args
    return left, right, body.type


def widens(source: DType, dtype: DType) -> bool:
    """Whether a cast of floats is exact, whatever its operand."""
    return source.is_float and source.mantissa <= dtype.mantissa and source.bits < dtype.bits


def free(e: Expr) -> frozenset[str]:
    """The index variables that an expression depends on by name."""
    if isinstance(e, Var):
        return frozenset((e.name,))
    below = (c.extent if isinstance(c, Axis) else c for c in children(e))
    found = frozenset[str]().union(*(free(c) for c in below if isinstance(c, Expr)))
    return found - {a.name for a in e.axes} if isinstance(e, Reduce) else found


def contract(a: Array, b: Array, lead: tuple[int, ...]) -> Array:
    """The sum of `a * b` over their first axes, which have sizes `lead`, as a matrix product.

    Both are f64 arrays with the same axes, each of size 1 where nothing depends on it.
    """
    summed = range(len(lead))
    times = math.prod(n for k, n in enumerate(lead) if a.shape[k] == b.shape[k] == 1)
    a, b = (
        x.sum(axis=tuple(k for k in summed if x.shape[k] > y.shape[k]), keepdims=True)
        for x, y in ((a, b), (b, a))
    )
    shape = np.broadcast_shapes(a.shape, b.shape)
    inner = [k for k in summed if shape[k] > 1]
    kept = [k for k in range(len(lead), len(shape)) if shape[k] > 1]
    both = [k for k in kept if a.shape[k] == b.shape[k]]
    rows = [k for k in kept if a.shape[k] > b.shape[k]]
    columns = [k for k in kept if a.shape[k] < b.shape[k]]
    order = both + rows + columns
    found = _stacked(a, both, rows, inner) @ _stacked(b, both, inner, columns)
    whole = found.reshape([shape[k] for k in order]).transpose(np.argsort(order))
    return np.asarray(whole.reshape(shape[len(lead) :]) * float(times))


def _stacked(x: Array, *groups: list[int]) -> Array:
    """`x` with each group of axes joined; all others have size 1."""
    order = [k for g in groups for k in g]
    rest = [k for k in range(x.ndim) if k not in order]
    return x.transpose(order + rest).reshape([math.prod(x.shape[k] for k in g) for g in groups])


def significand(v: Array) -> tuple[int, int]:
    """Of finite f64 numbers, the most bits that one has from its first 1 to its last, and an
    exponent of 2 that all of them are multiples of."""
    bits = np.ascontiguousarray(v).view(np.int64)
    fraction, exponent = bits & ((1 << 52) - 1), (bits >> 52) & 0x7FF
    normal = exponent > 0
    if not (normal | (fraction == 0)).all():
        return 53, -1074
    joined = int(np.bitwise_or.reduce(fraction, axis=None))
    width = 53 - ((joined & -joined).bit_length() - 1) if joined else 1
    least = int(exponent.min(initial=0x7FF, where=normal)) - 1023
    return width, least - width + 1
