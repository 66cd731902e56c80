"""Random numbers: Philox4x32-10 (Salmon et al., SC 2011) of a seed and a counter.

The seed is drawn from torch's default generator for each call, so `torch.manual_seed` decides it;
every element of every operator has counters of its own. The distributions are eager's, the numbers
are not: eager walks one generator from element to element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kir.dtypes import DTYPES, DType, f32, i64
from kir.frontends.torch.dims import Dim, Index
from kir.frontends.torch.orders import order
from kir.frontends.torch.table import Structural, number
from kir.frontends.torch.values import HEAVY, Value, aligned, cast, pointwise
from kir.ir import Const, Expr, const
from kir.ops import op

if TYPE_CHECKING:
    from kir.frontends.torch.lower import Lowering

Uniform = Callable[[int], Expr]
"""Of a number of the draw (0, 1, ...): an f32 on [0, 1)."""


def drawn(
    low: Lowering, shape: Sequence[int], dtype: DType, draws: int,
    element: Callable[[Uniform, Sequence[Index]], Expr],
) -> Value:  # fmt: skip
    """A stored value of which each element is made of `draws` numbers of its own."""
    dims = low.dims(shape)
    for d in dims:
        low.whole(d)
    count = math.prod(shape)
    seed, first = low.random(count * draws)

    def at(indices: Sequence[Index]) -> Expr:
        place: Expr = const(0)
        for d, i in zip(dims, indices, strict=True):
            place = op("add", op("mul", place, const(d.size)), d.joined(i))

        def uniform(k: int) -> Expr:
            return op("rand", seed, op("add", place, const(first + k * count)))

        return cast(element(uniform, indices), dtype)

    return low.keep(Value(dims, dtype, at, HEAVY))


def _normal(uniform: Uniform) -> Expr:
    """Box and Muller (1958), of 1 - u, which is never 0."""
    first = op("sub", Const(1.0, f32), uniform(0))
    radius = op("sqrt", op("mul", Const(-2.0, f32), op("log", first)))
    return op("mul", radius, op("cos", op("mul", Const(2 * math.pi, f32), uniform(1))))


def rand(low: Lowering, *rest: Any, **options: Any) -> Value:
    return drawn(low, low.out.shape, low.out.dtype, 1, lambda u, _: u(0))


def randn(low: Lowering, *rest: Any, **options: Any) -> Value:
    return drawn(low, low.out.shape, low.out.dtype, 2, lambda u, _: _normal(u))


def uniform(low: Lowering, x: Any, low_: float = 0.0, high: float = 1.0, **_: Any) -> Value:
    def element(u: Uniform, _: Sequence[Index]) -> Expr:
        return op("add", op("mul", u(0), Const(high - low_, f32)), Const(float(low_), f32))

    return drawn(low, low.out.shape, low.out.dtype, 1, element)


def normal(low: Lowering, x: Any, mean: float = 0.0, std: float = 1.0, **_: Any) -> Value:
    def element(u: Uniform, _: Sequence[Index]) -> Expr:
        return op("add", op("mul", _normal(u), Const(float(std), f32)), Const(float(mean), f32))

    return drawn(low, low.out.shape, low.out.dtype, 2, element)


def prim_normal(low: Lowering, shape: Any, *, mean: Any, std: Any, **_: Any) -> Value:
    return normal(low, None, mean, std)


def prim_uniform(lowering: Lowering, shape: Any, /, **options: Any) -> Value:
    return uniform(lowering, None, float(options["low"]), float(options["high"]))


def randint(start_at: int) -> Structural:
    """`start_at`: where `low` and `high` are among the arguments; -1: there is no `low`."""

    def whole(low: Lowering, *args: Any, **options: Any) -> Value:
        if start_at < 0:
            begin, end = 0, int(args[-start_at - 1])
        else:
            begin, end = int(args[start_at]), int(args[start_at + 1])

        def element(u: Uniform, _: Sequence[Index]) -> Expr:
            wide = DTYPES["f64"]
            both = op("add", cast(u(0), wide), op("mul", cast(u(1), wide), Const(2.0**-24, wide)))
            scaled = cast(op("floor", op("mul", both, Const(float(end - begin), wide))), i64)
            return op("add", op("min", scaled, const(end - begin - 1)), const(begin))

        return drawn(low, low.out.shape, low.out.dtype, 2, element)

    return whole


def bernoulli(low: Lowering, x: Value, p: Any = None, **_: Any) -> Value:
    """1 with the probability that the element says, or `p`."""
    if p is not None:
        chance = Const(float(p), f32)
        return drawn(low, low.out.shape, low.out.dtype, 1, lambda u, _: op("lt", u(0), chance))
    numbers = drawn(low, x.shape, f32, 1, lambda u, _: u(0))
    dtype = low.out.dtype
    return pointwise(lambda u, e: cast(op("lt", u, cast(e, f32)), dtype), [numbers, x], dtype)


def _inverse(
    name: Callable[[Expr, Sequence[float]], Expr], defaults: Sequence[float]
) -> Structural:
    """A distribution by the inverse of its cumulative function, of u on (0, 1]."""

    def made(low: Lowering, x: Value, *given: Any, **_: Any) -> Value:
        numbers = [float(v) for v in given if isinstance(v, int | float)]
        full = [*numbers, *defaults[len(numbers) :]]

        def element(u: Uniform, _: Sequence[Index]) -> Expr:
            return name(op("sub", Const(1.0, f32), u(0)), full)

        return drawn(low, low.out.shape, low.out.dtype, 1, element)

    return made


def _exponential(u: Expr, given: Sequence[float]) -> Expr:
    return op("div", op("neg", op("log", u)), number(u, given[0]))


def _geometric(u: Expr, given: Sequence[float]) -> Expr:
    tries = op("ceil", op("div", op("log", u), number(u, math.log1p(-given[0]))))
    return op("max", tries, number(u, 1))


def _cauchy(u: Expr, given: Sequence[float]) -> Expr:
    angle = op("mul", op("sub", u, number(u, 0.5)), number(u, math.pi))
    return op("add", op("mul", op("tan", angle), number(u, given[1])), number(u, given[0]))


def log_normal(low: Lowering, x: Value, mean: float = 1.0, std: float = 2.0, **_: Any) -> Value:
    def element(u: Uniform, _: Sequence[Index]) -> Expr:
        return op("exp", op("add", op("mul", _normal(u), Const(std, f32)), Const(mean, f32)))

    return drawn(low, low.out.shape, low.out.dtype, 2, element)


def native_dropout(
    low: Lowering, x: Value, p: float, train: bool | None = True
) -> tuple[Value, Value]:
    """x / (1 - p) with the probability 1 - p, else 0; and which are kept."""
    dtype, bools = x.dtype, low.outs[1].dtype
    if train is False or p == 0:
        return x, Value(low.dims(x.shape), bools, lambda _: Const(True, bools))
    mask = drawn(low, x.shape, bools, 1, lambda u, _: op("ge", u(0), Const(float(p), f32)))
    scale = 1 / (1 - p) if p < 1 else 0.0

    def element(e: Expr, kept: Expr) -> Expr:
        wide = cast(e, f32) if dtype.bits < 32 else e
        return cast(
            op("select", kept, op("mul", wide, number(wide, scale)), number(wide, 0)), dtype
        )

    return pointwise(element, [x, mask], dtype), mask


def rrelu(
    low: Lowering, x: Value, noise: Value, lower: float = 1 / 8, upper: float = 1 / 3,
    training: bool = False, **_: Any,
) -> tuple[Value, Value]:  # fmt: skip
    """A slope for each element that is at most 0, drawn in training, else the middle one; and the
    slopes."""
    dtype = x.dtype
    wide = f32 if dtype.bits < 32 else dtype

    def bent(e: Expr, slope: Expr) -> Expr:
        full = cast(e, wide)
        return cast(
            op("select", op("gt", full, number(full, 0)), full, op("mul", full, slope)), dtype
        )

    if not training:
        middle = Const((lower + upper) / 2, wide)
        return pointwise(lambda e: bent(e, middle), [x], dtype), noise

    def element(u: Uniform, _: Sequence[Index]) -> Expr:
        return op("add", op("mul", u(0), Const(upper - lower, f32)), Const(float(lower), f32))

    slopes = drawn(low, x.shape, dtype, 1, element)
    kept = pointwise(lambda e, s: op("select", op("gt", e, number(e, 0)), number(s, 1), s),
                     [x, slopes], dtype)  # fmt: skip
    return pointwise(lambda e, s: bent(e, cast(s, wide)), [x, slopes], dtype), kept


def randperm(low: Lowering, n: int, **_: Any) -> Value:
    """The order of n numbers."""
    dtype = low.out.dtype
    if n == 0:
        return Value(low.dims([0]), dtype, lambda _: Const(0, dtype))
    found = order(low, drawn(low, [n], f32, 1, lambda u, _: u(0)), 0, False)
    return pointwise(lambda e: cast(e, dtype), [found], dtype)


def multinomial(low: Lowering, x: Value, count: int, replacement: bool = False, **_: Any) -> Value:
    """Without replacement: the greatest of log(u) / p (Efraimidis and Spirakis, 2006). With it:
    where the running sum passes u."""
    from kir.frontends.torch.orders import searchsorted
    from kir.frontends.torch.scatters import scanned
    from kir.frontends.torch.values import sliced

    axis = len(x.dims) - 1
    if not replacement:
        numbers = drawn(low, x.shape, f32, 1, lambda u, _: op("sub", Const(1.0, f32), u(0)))

        def key(u: Expr, p: Expr) -> Expr:
            p = cast(p, f32)
            found = op("div", op("log", u), p)
            return op("select", op("gt", p, number(p, 0)), found, number(p, -math.inf))

        keys = low.keep(pointwise(key, [numbers, x], f32))
        return sliced(order(low, keys, axis, True), axis, 0, 1, count)
    wide = pointwise(lambda e: cast(e, f32), [x], f32)
    sums = scanned(low, wide, axis, f32, Const(0.0, f32), lambda past, e, _: op("add", past, e))
    size = x.dims[axis].size
    total = sliced(sums, axis, size - 1, 1, 1)
    numbers = drawn(low, low.out.shape, f32, 1, lambda u, _: u(0))

    def scaled(indices: Sequence[Index]) -> Expr:
        own: list[Dim] = list(numbers.dims)
        return op("mul", numbers.at(indices), total.at(aligned(total, own, indices)))

    places = low.keep(Value(numbers.dims, f32, scaled, HEAVY))
    for a, b in zip(sums.dims[:-1], places.dims, strict=False):
        low.walk_together(a, b)
    found = searchsorted(low, sums, places, right=True)
    return pointwise(lambda e: op("min", e, const(size - 1)), [found], i64)


RANDOMS: dict[str, Structural] = {
    "rand.default": rand,
    "rand_like.default": rand,
    "randn.default": randn,
    "randn_like.default": randn,
    "randint.default": randint(-1),
    "randint.low": randint(0),
    "randint_like.default": randint(-2),
    "randint_like.low_dtype": randint(1),
    "bernoulli.default": bernoulli,
    "bernoulli.p": bernoulli,
    "uniform.default": uniform,
    "normal_functional.default": normal,
    "prims.normal.default": prim_normal,
    "prims._uniform_helper.default": prim_uniform,
    "exponential.default": _inverse(_exponential, (1.0,)),
    "geometric.default": _inverse(_geometric, (0.5,)),
    "cauchy.default": _inverse(_cauchy, (0.0, 1.0)),
    "log_normal.default": log_normal,
    "native_dropout.default": native_dropout,
    "randperm.default": randperm,
    "rrelu_with_noise_functional.default": rrelu,
    "multinomial.default": multinomial,
}
