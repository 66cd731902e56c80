"""`factor` and `distribute`: the distributive law, for sums over indices and sums of two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from kir.dtypes import DType, f8e4m3
from kir.ir import (
    Cast,
    Const,
    Expr,
    Kernel,
    Op,
    Reduce,
    Stmt,
)
from kir.ops import op
from kir.rewrites.base import Effect, Move, Rewrite, free_vars, refuse, replace_stmt
from kir.rewrites.outline import new_name, outlined
from kir.rewrites.places import (
    Place,
    find_place,
    find_valued,
    in_bounds,
    moves,
    never_empty,
    not_empty,
    places,
    put,
)


@dataclass(frozen=True)
class Factor(Rewrite):
    """`factor(def, path = (0), into = name, nth = 0)`: factors and divisors that do not depend on a
    reduction's indices leave it.

    Before::

        o[i: M] = bf16(sum(j: N) f32(bf16(e[i, j] / l[i])) * v[j])

    After `factor(o, into = num)`::

        num[i: M] = sum(j: N) f32(bf16(e[i, j])) * v[j]
        o[i: M] = bf16(num[i] / l[i])

    `path` is the place of the reduction, by default the first that something leaves; `into` gives
    what remains of the reduction a definition of its own; `nth` says which statement, where several
    store to the name. Out of a `sum` all factors and divisors
    leave; through casts between floats too, which then round other values. Out of `max` and `min`
    go constants and signs, out of `all` and `any` what does not depend on the index. Where the
    reduction may have no term at all, the result is guarded: `a * 0` is not 0 for an infinite `a`.
    Refused where nothing leaves, and where what leaves would be read out of bounds.
    """

    name: ClassVar[str] = "factor"
    effect: ClassVar[Effect] = "approximates"
    definition: str
    path: tuple[int, ...] | None = None
    into: str | None = None
    nth: int = 0

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        place, found = self._found(kernel)
        reduction = place.expr
        assert isinstance(reduction, Reduce)
        rest = Reduce(found.reduction, reduction.axes, reduction.where, found.body)
        ahead: tuple[Stmt, ...] = ()
        inner: Expr = rest
        if self.into is not None:
            new_name(kernel, self.into, "")
            probe = Place(place.stmt, place.path, rest, place.reductions)
            ahead, inner = outlined(kernel, probe, self.into)
        new = found.around(inner)
        leaving = (*found.times, *found.over, *found.logic)
        if not never_empty(kernel, place, reduction):
            if not in_bounds(kernel, place.stmt, place.axes, leaving):
                refuse(
                    kernel,
                    "a read in what leaves the reduction is not shown to be in bounds where the "
                    "reduction has no term",
                    node=reduction,
                    hint="say that there is one, such as `where N >= 1`",
                )
            if found.needs_a_term:
                new = self._guarded(kernel, reduction, new)
        return replace_stmt(kernel, place.stmt, (*ahead, put(place.stmt, place.path, new)))

    def _guarded(self, kernel: Kernel, reduction: Reduce, new: Expr) -> Expr:
        """`new` where the reduction has a term, else 0; its conditions must be none."""
        if reduction.where:
            refuse(
                kernel,
                "the reduction is not shown to have a term for all indices: without one it is 0, "
                "and what leaves it may be infinite",
                node=reduction,
            )
        names = {a.name for a in reduction.axes}
        for a in reduction.axes:
            if free_vars(a.extent) & names:
                refuse(kernel, f"the extent of `{a.name}` depends on another index", node=a)
        return op("select", not_empty(reduction.axes), new, Const(0.0, new.dtype))

    def _found(self, kernel: Kernel) -> tuple[Place, _Peeled]:
        stmt = find_valued(kernel, self.definition, self.nth)
        if self.path is not None:
            place = find_place(kernel, stmt, self.path)
            if not isinstance(place.expr, Reduce):
                refuse(kernel, "this is no reduction", node=place.expr)
            found = _peeled(place.expr)
            if found is None:
                refuse(
                    kernel,
                    f"nothing leaves this `{place.expr.name}`: no factor is free of its indices",
                    node=place.expr,
                )
            return place, found
        for place in places(stmt):
            found = _peeled(place.expr) if isinstance(place.expr, Reduce) else None
            if found is not None:
                return place, found
        return refuse(kernel, f"nothing leaves a reduction of `{self.definition}`", node=stmt)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return moves(cls.name, kernel, lambda p: _leaves(p.expr))

    def effect_on(self, kernel: Kernel) -> Effect:
        place, found = self._found(kernel)
        if found.casts:
            return "approximates"
        if found.reduction != "sum":
            return "approximates" if found.times or found.over else "exact"
        return "reassociates" if place.expr.dtype.is_float else "exact"

    def in_ring(self, kernel: Kernel) -> bool:
        found = self._found(kernel)[1]
        return found.reduction == "sum" or not (found.times or found.over)

    def bound(self) -> str:
        return (
            "each term of the sum moves by at most two unit roundoffs of every cast that a factor "
            "passes (2 * 2^-8 of its magnitude for bf16), barring overflow and underflow there; "
            "constants leave `max` and `min` with no error but the sign of a 0"
        )


@dataclass
class _Peeled:
    """A reduction's body without what leaves it. `reduction` is what remains to be computed."""

    reduction: str
    dtype: DType
    body: Expr
    times: list[Expr] = field(default_factory=list)
    over: list[Expr] = field(default_factory=list)
    logic: list[Expr] = field(default_factory=list)
    """Operands of `and` (of `any`) or `or` (of `all`)."""
    negated: bool = False
    casts: bool = False

    @property
    def needs_a_term(self) -> bool:
        """Whether the law fails where there is no term: 0 * inf, 0 / 0."""
        return self.reduction == "sum" and self.dtype.is_float

    def around(self, inner: Expr) -> Expr:
        """What leaves, applied to the rest: the divisors last."""
        result = op("neg", inner) if self.negated else inner
        for factor in self.times:
            result = op("mul", self._typed(factor), result)
        for divisor in self.over:
            result = op("div", result, self._typed(divisor))
        for operand in self.logic:
            result = op("and" if self.reduction == "any" else "or", operand, result)
        return result

    def _typed(self, e: Expr) -> Expr:
        return e if e.dtype == self.dtype else Cast(e, self.dtype)


def _leaves(e: Expr) -> bool:
    return isinstance(e, Reduce) and _peeled(e) is not None


def _peeled(reduction: Reduce) -> _Peeled | None:
    """What leaves a reduction; None where nothing does."""
    bound = {a.name for a in reduction.axes}
    body = reduction.body
    if reduction.name == "sum" and body.dtype.is_float | body.dtype.is_integer:
        return _out_of_sum(reduction, bound)
    if reduction.name in ("max", "min") and body.dtype.is_float and body.dtype != f8e4m3:
        return _out_of_extremum(reduction)
    if reduction.name in ("any", "all"):
        return _out_of_logic(reduction, bound)
    return None


def _out_of_sum(reduction: Reduce, bound: set[str]) -> _Peeled | None:
    found = _Peeled("sum", reduction.dtype, reduction.body)
    body = reduction.body
    if isinstance(body, Const):
        return None
    if not free_vars(body) & bound:
        one = Const(1.0 if body.dtype.is_float else 1, body.dtype)
        found.body, found.times = one, [body]
        return found
    found.body = _peel(body, bound, found, False)
    return found if found.times or found.over else None


def _peel(e: Expr, bound: set[str], found: _Peeled, inverse: bool) -> Expr:
    """`e` without the factors that do not use `bound`: these go to `found`, under a division
    (`inverse`) the other way round. `e` itself uses `bound`."""
    times, over = (found.over, found.times) if inverse else (found.times, found.over)
    if isinstance(e, Op) and e.name == "mul":
        a, b = e.args
        if not free_vars(a) & bound:
            times.append(a)
            return _peel(b, bound, found, inverse)
        if not free_vars(b) & bound:
            times.append(b)
            return _peel(a, bound, found, inverse)
        return _same(e, _peel(a, bound, found, inverse), _peel(b, bound, found, inverse))
    if isinstance(e, Op) and e.name == "div":
        a, b = e.args
        if not free_vars(b) & bound:
            over.append(b)
            return _peel(a, bound, found, inverse)
        if free_vars(a) & bound:
            return _same(e, _peel(a, bound, found, inverse), _peel(b, bound, found, not inverse))
        one: Expr = Const(1.0, e.dtype)
        if a == one:
            one = a
        else:
            times.append(a)
        return _same(e, one, _peel(b, bound, found, not inverse))
    if isinstance(e, Op) and e.name == "neg":
        return _same(e, _peel(e.args[0], bound, found, inverse))
    if isinstance(e, Cast) and e.dtype.is_float and e.value.dtype.is_float:
        before = len(found.times) + len(found.over)
        value = _peel(e.value, bound, found, inverse)
        if len(found.times) + len(found.over) == before:
            return e
        found.casts = True
        return Cast(value, e.dtype)
    return e


def _same(e: Op, *args: Expr) -> Expr:
    return e if all(a is b for a, b in zip(e.args, args, strict=True)) else op(e.name, *args)


def _out_of_extremum(reduction: Reduce) -> _Peeled | None:
    """Constants and signs: multiplication by what is positive is monotone, rounding included."""
    other = {"max": "min", "min": "max"}
    found = _Peeled(reduction.name, reduction.dtype, reduction.body)
    body = reduction.body
    while isinstance(body, Op):
        if body.name == "neg":
            body, found.negated = body.args[0], not found.negated
            continue
        if body.name not in ("mul", "div"):
            break
        a, b = body.args
        if body.name == "mul" and isinstance(a, Const):
            a, b = b, a
        if not isinstance(b, Const) or not math.isfinite(b.value) or b.value <= 0:
            break
        (found.times if body.name == "mul" else found.over).append(b)
        body = a
    if body is reduction.body:
        return None
    found.times.reverse()
    found.body = body
    found.reduction = other[reduction.name] if found.negated else reduction.name
    return found


def _out_of_logic(reduction: Reduce, bound: set[str]) -> _Peeled | None:
    wanted = "and" if reduction.name == "any" else "or"
    found = _Peeled(reduction.name, reduction.dtype, reduction.body)

    def go(e: Expr) -> Expr | None:
        """What of `e` depends on the indices; None where nothing does."""
        if not free_vars(e) & bound:
            found.logic.append(e)
            return None
        if not (isinstance(e, Op) and e.name == wanted):
            return e
        kept = [k for k in map(go, e.args) if k is not None]
        return op(wanted, *kept) if len(kept) == 2 else kept[0]

    rest = go(reduction.body)
    if rest is None or not found.logic:
        return None
    found.body = rest
    return found
