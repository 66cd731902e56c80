"""Random typed expressions: everything that may stand on the right of an `=`.

All randomness comes from one `random.Random`, whose draws of `random()` alone are the same on every
machine and Python, so that a seed names a kernel for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from kir.dtypes import DTYPES, NARROW_FLOATS, DType, bool_, f8e4m3, f32, i32, u64
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    Axis,
    Bitcast,
    Cast,
    Const,
    Expr,
    Param,
    Read,
    Reduce,
    Var,
    const,
    walk,
)
from kir.ops import OPS, op

T = TypeVar("T")
PLAIN = ("add", "sub", "mul", "max", "min")
"""What most arithmetic is made of."""
LOGIC = ("and", "or", "not", "eq", "ne")
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
FLOAT_OPS = tuple(n for n, d in OPS.items() if d.rule == "same" and "float" in d.kinds)
INTEGER_OPS = tuple(n for n, d in OPS.items() if d.rule in ("same", "shift") and "int" in d.kinds)
FLOAT_CONSTANTS = (0.0, 1.0, 2.0, 0.5, -1.0, 0.25, -0.5, 3.0, -0.0)
INTEGER_CONSTANTS = (0, 1, 2, 3, 5, 7)
AXES: tuple[str, ...] = (*"ijklrsuvwz", *(f"q{n}" for n in range(20)))


class Dice:
    """Choices by `random.Random.random`, the one method whose stream Python promises to keep."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def chance(self, percent: float) -> bool:
        return self.rng.random() * 100 < percent

    def below(self, n: int) -> int:
        return int(self.rng.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        at = self.rng.random() * sum(w for _, w in options)
        for option, weight in options:
            at -= weight
            if at < 0:
                return option
        return options[-1][0]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


@dataclass(frozen=True)
class Index:
    """An index that may be used here: any expression, and the extents it stays below."""

    expr: Expr
    fits: frozenset[Expr]


Scope = tuple[Index, ...]


def axis_index(axis: Axis, *also: Expr) -> Index:
    return Index(Var(axis.name), frozenset((axis.extent, *also)))


@dataclass
class Expressions(Dice):
    """Makes expressions over the tensors it knows; `palette` are the dtypes it mixes."""

    rng: random.Random
    palette: Sequence[DType]
    extents: Sequence[Expr]
    """What a reduction may run over."""
    tensors: dict[str, Param] = field(default_factory=dict)
    inputs: dict[str, Param] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    """Names that an axis may not have, beside those of tensors."""
    wild: float = 12.0
    """Percent of function calls whose argument may leave the function's domain."""

    def dtype(self) -> DType:
        return self.pick(self.palette)

    def number(self) -> DType:
        found = self.dtype()
        return f32 if found.is_bool else found

    # --- leaves ------------------------------------------------------------------------------

    def constant(self, dtype: DType) -> Expr:
        if dtype.is_bool:
            return Const(self.chance(50), dtype)
        if dtype.is_float:
            if self.chance(1) and dtype != f8e4m3:
                return Const(self.pick((float("inf"), float("nan"), float("-inf"))), dtype)
            return Const(self.pick(FLOAT_CONSTANTS), dtype)
        low, high = dtype.limits()
        if self.chance(4):
            return Const(self.pick((low, high)), dtype)
        return Const(self.pick(INTEGER_CONSTANTS) * (-1 if low and self.chance(20) else 1), dtype)

    def convert(self, expr: Expr, dtype: DType) -> Expr:
        return expr if expr.dtype == dtype else Cast(expr, dtype)

    def leaf(self, dtype: DType, scope: Scope) -> Expr:
        choice = self.below(12)
        if choice == 0 and scope and not dtype.is_bool:
            return self.convert(self.pick(scope).expr, dtype)
        if choice <= 2 or not self.tensors:
            return self.constant(dtype)
        if choice == 3 and self.chance(30) and self.extents:
            return self.convert(self.pick(self.extents), dtype)
        known = list(self.tensors.values())
        exact = [p for p in known if p.type == dtype]
        fitting = [p for p in exact or known if self._reads(p, scope)]
        if not fitting or self.chance(10):
            fitting = exact or known
        tensor = self.pick(fitting)
        return self.convert(self.read(tensor, scope), dtype)

    def _reads(self, p: Param, scope: Scope) -> bool:
        return all(isinstance(e, Const) or any(e in s.fits for s in scope) for e in p.shape)

    def read(self, p: Param, scope: Scope, padded: float = 8) -> Expr:
        """A read of `p` by indices in scope, with a fill wherever one might be outside."""
        sure = True
        indices: list[Expr] = []
        for extent in p.shape:
            found = [s.expr for s in scope if extent in s.fits]
            if found and not self.chance(padded):
                index = self.pick(found)
                if self.chance(6):  # from the far end
                    index = op("sub", op("sub", extent, const(1)), index)
            elif isinstance(extent, Const) and int(extent.value) > 0 and self.chance(80):
                index = const(self.below(int(extent.value)))
            else:
                sure = False
                index = self.anywhere(scope)
            indices.append(index)
        fill = None if sure else self.fill(p.type, scope)
        return Read(p.name, tuple(indices), p.type, fill)

    def anywhere(self, scope: Scope) -> Expr:
        """An affine index that may be out of bounds."""
        if not scope:
            return const(self.below(3))
        base = self.pick(scope).expr
        if self.chance(15):
            base = op("mul", base, const(2))
        elif self.chance(15):
            base = op("add", base, self.pick(scope).expr)
        elif self.chance(8):
            base = op("floordiv", base, const(2))
        shift = self.below(5) - 2
        if shift == 0:
            return base
        return op("add", base, const(shift)) if shift > 0 else op("sub", base, const(-shift))

    def fill(self, dtype: DType, scope: Scope) -> Expr:
        if self.chance(75):
            return self.constant(dtype)
        simple = [p for p in self.tensors.values() if p.type == dtype and self._reads(p, scope)]
        return self.read(self.pick(simple), scope, 0) if simple else self.constant(dtype)

    # --- operators ---------------------------------------------------------------------------

    def expr(self, dtype: DType, scope: Scope, depth: int) -> Expr:
        if depth <= 0:
            return self.leaf(dtype, scope)
        kind = self.weighted(
            [
                ("leaf", 20),
                ("op", 52),
                ("select", 7),
                ("cast", 8),
                ("bitcast", 3),
                ("reduce", 7),
                ("random", 2),
            ]
        )
        if kind == "select":
            parts = (self.expr(t, scope, depth - 1) for t in (bool_, dtype, dtype))
            return op("select", *parts)
        if kind == "cast":
            return self.cast(dtype, scope, depth)
        if kind == "bitcast":
            same = [t for t in DTYPES.values() if t.bits == dtype.bits and t != dtype]
            if not dtype.is_bool and same:
                other = self.pick([t for t in same if not t.is_bool])
                if other.is_integer or self.chance(30):
                    return Bitcast(self.expr(other, scope, depth - 1), dtype)
        if kind == "reduce" and depth >= 2 and len(scope) < 4:
            return self.convert(self.reduction(scope, depth - 1, dtype), dtype)
        if kind == "random":
            return self.convert(self.random(scope), dtype)
        if kind == "leaf":
            return self.leaf(dtype, scope)
        return self.operation(dtype, scope, depth)

    def cast(self, dtype: DType, scope: Scope, depth: int) -> Expr:
        """From another dtype; few from floats to integers, which rounding leaves undecided."""
        other = self.dtype()
        if other.is_float and not dtype.is_float and not self.chance(25):
            other = i32
        return self.convert(self.expr(other, scope, depth - 1), dtype)

    def random(self, scope: Scope) -> Expr:
        self.inputs.setdefault("seed", Param("seed", u64, ()))
        counter: Expr = const(self.below(4))
        for index in scope:
            counter = op("add", op("mul", counter, const(7)), index.expr)
        return op(self.pick(("rand", "philox")), Read("seed", (), u64), counter)

    def operation(self, dtype: DType, scope: Scope, depth: int) -> Expr:
        if dtype.is_bool:
            return self.condition(scope, depth)
        table = FLOAT_OPS if dtype.is_float else INTEGER_OPS
        name = self.pick(PLAIN) if self.chance(45) else self.pick(table)
        args = [self.expr(dtype, scope, depth - 1) for _ in range(OPS[name].arity)]
        if OPS[name].rule == "shift" and self.chance(70):
            args[1] = Const(self.pick((0, 1, 2, 3, dtype.bits - 1, dtype.bits)), dtype)
        if name in TAMED and not self.chance(self.wild):
            args = [tame(a) for tame, a in zip(TAMED[name], args, strict=True)]
        return op(name, *args)

    def condition(self, scope: Scope, depth: int) -> Expr:
        choice = self.below(10)
        if choice < 2 and scope:
            left, right = self.pick(scope).expr, self.pick((*(s.expr for s in scope), const(1)))
            return op(self.pick(COMPARE), left, right)
        if choice < 4:
            name = self.pick(LOGIC)
            return op(name, *(self.expr(bool_, scope, depth - 1) for _ in range(OPS[name].arity)))
        dtype = self.number()
        if choice == 4:
            floating = dtype if dtype.is_float else f32
            return op(self.pick(("isnan", "isinf")), self.expr(floating, scope, depth - 1))
        name = self.pick(COMPARE)
        return op(name, *(self.expr(dtype, scope, depth - 1) for _ in range(2)))

    # --- reductions --------------------------------------------------------------------------

    def name(self, scope: Scope, taken: Sequence[str] = ()) -> str:
        """A name for an axis that nothing in scope has."""
        used = {n.name for s in scope for n in walk(s.expr) if isinstance(n, Var)}
        used |= {*taken, *self.tensors, *self.inputs, *self.names}
        return next(n for n in AXES if n not in used)

    def axis(self, scope: Scope, taken: Sequence[str] = ()) -> tuple[Axis, Index]:
        """A new axis: over a dim, a small constant, or as far as an outer index."""
        name = self.name(scope, taken)
        if scope and self.chance(12):
            outer = self.pick(scope)
            more = self.chance(60)
            extent = op("add", outer.expr, const(1)) if more else outer.expr
            axis = Axis(name, extent)
            return axis, axis_index(axis, *outer.fits)
        extent = const(self.pick((2, 3, 4))) if self.chance(15) else self.pick(self.extents)
        axis = Axis(name, extent)
        return axis, axis_index(axis)

    def reduction(self, scope: Scope, depth: int, near: DType | None = None) -> Reduce:
        """A reduction of any kind; `near` is the dtype that it had best have."""
        if self.chance(12):
            return self.argument(scope, depth)
        axes: list[Axis] = []
        inner = scope
        for _ in range(1 if self.chance(75) else 2):
            axis, index = self.axis(inner)
            axes.append(axis)
            inner = (*inner, index)
        names = tuple(REDUCTIONS)
        name = "sum" if self.chance(35) else self.pick(names)
        dtype = near if near is not None and self.chance(70) else self.number()
        if name in ("all", "any"):
            dtype = bool_
        elif dtype.is_bool:
            dtype = f32
        body = self.product(dtype, inner) if self.chance(30) else self.expr(dtype, inner, depth)
        if name == "prod" and dtype.is_float and self.chance(80):
            body = op("max", op("min", body, Const(1.5, dtype)), Const(-1.5, dtype))
        if dtype in NARROW_FLOATS and name in ("sum", "prod") and not self.chance(20):
            body = Cast(body, f32)
        where = (self.condition(inner, 1),) if self.chance(25) else ()
        return Reduce(name, tuple(axes), where, body)

    def product(self, dtype: DType, scope: Scope) -> Expr:
        """A product of two reads, as in a matrix product; bools are conjoined."""
        parts = [self.leaf(dtype, scope) for _ in range(2)]
        return op("and" if dtype.is_bool else "mul", *parts)

    def argument(self, scope: Scope, depth: int) -> Reduce:
        axis, index = self.axis(scope)
        inner = (*scope, index)
        where = (self.condition(inner, 1),) if self.chance(30) else ()
        body = self.expr(self.number(), inner, depth)
        return Reduce(self.pick(tuple(ARG_REDUCTIONS)), (axis,), where, body)


# --- arguments within the domain of a function, most of the time ----------------------------------


def _away_from_zero(x: Expr) -> Expr:
    return op("add", op("abs", x), Const(0.5, x.dtype))


def _clamp(limit: float) -> Callable[[Expr], Expr]:
    def go(x: Expr) -> Expr:
        return op("max", op("min", x, Const(limit, x.dtype)), Const(-limit, x.dtype))

    return go


def _magnitude(x: Expr) -> Expr:
    return op("abs", x)


def _as_is(x: Expr) -> Expr:
    return x


TAMED: dict[str, tuple[Callable[[Expr], Expr], ...]] = {
    "div": (_as_is, _away_from_zero),
    "exp": (_clamp(3.0),),
    "exp2": (_clamp(3.0),),
    "expm1": (_clamp(3.0),),
    "sinh": (_clamp(2.0),),
    "cosh": (_clamp(2.0),),
    "tan": (_clamp(1.0),),
    "asin": (_clamp(0.75),),
    "acos": (_clamp(0.75),),
    "log": (_away_from_zero,),
    "log2": (_away_from_zero,),
    "rsqrt": (_away_from_zero,),
    "recip": (_away_from_zero,),
    "log1p": (_magnitude,),
    "sqrt": (_magnitude,),
    "pow": (_away_from_zero, _clamp(2.0)),
}
"""What is done to each argument of a function so that it has a finite value."""
