"""`distribute`, `join`, `regroup`: products and sums of sums, and sums inside of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    REDUCTIONS,
    Axis,
    Const,
    Expr,
    Kernel,
    Node,
    Op,
    Read,
    Reduce,
    Var,
    children,
    transform,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Effect,
    Move,
    Rewrite,
    free_vars,
    fresh,
    names_in,
    refuse,
)
from kir.rewrites.places import (
    Path,
    Place,
    find_place,
    find_valued,
    in_bounds,
    moves,
    never_empty,
    not_empty,
    places,
    replace_at,
)

EXCHANGED = ("sum", "prod", "max", "min", "all", "any")
"""Reductions of which two nested ones may change places."""


@dataclass(frozen=True)
class Distribute(Rewrite):
    """`distribute(def, path = (0), nth = 0)`: a product goes into a sum, a sum of sums apart.

    Before::

        y[i: M] = a[i] * (sum(j: N) x[i, j] + z[j])

    After `distribute(y)`, once, twice, and three times::

        y[i: M] = sum(j: N) a[i] * (x[i, j] + z[j])
        y[i: M] = sum(j: N) a[i] * x[i, j] + a[i] * z[j]
        y[i: M] = (sum(j: N) a[i] * x[i, j]) + (sum(j: N) a[i] * z[j])

    At `path`, by default the first place that has one of these forms: `a * sum(..)`,
    `sum(..) / a`, `-sum(..)`, `sum(..) x + y`, `a * (b + c)`, `(a + b) / c`, `-(a + b)`, and these
    with `-` for `+`. Refused where there is none.
    """

    name: ClassVar[str] = "distribute"
    effect: ClassVar[Effect] = "reassociates"
    definition: str
    path: tuple[int, ...] | None = None
    nth: int = 0

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        place = self._place(kernel)
        new = _distributed(place.expr, names_in(kernel))
        if new is None:
            refuse(kernel, "here is no product of a sum, and no sum of sums", node=place.expr)
        return replace_at(kernel, place, new)

    def _place(self, kernel: Kernel) -> Place:
        stmt = find_valued(kernel, self.definition, self.nth)
        if self.path is not None:
            place = find_place(kernel, stmt, self.path)
            if place.fixed:
                refuse(kernel, "an index or a condition stays as it is", node=place.expr)
            return place
        for found in places(stmt):
            if not found.fixed and _distributed(found.expr, set()) is not None:
                return found
        return refuse(kernel, f"there is nothing to distribute in `{self.definition}`", node=stmt)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return moves(
            cls.name, kernel, lambda p: not p.fixed and _distributed(p.expr, set()) is not None
        )

    def effect_on(self, kernel: Kernel) -> Effect:
        return "reassociates" if self._place(kernel).expr.dtype.is_float else "exact"


def _distributed(e: Expr, used: set[str]) -> Expr | None:
    """One step of the distributive law at the root of `e`; None where it has no such form."""
    if isinstance(e, Reduce):
        if e.name != "sum" or not _is_sum(e.body):
            return None
        assert isinstance(e.body, Op)
        left, right = (replace(e, body=x) for x in e.body.args)
        return op(e.body.name, left, right)
    if not isinstance(e, Op):
        return None
    if e.name == "neg":
        return _into(e.args[0], lambda x: op("neg", x), (), used)
    if e.name == "div":
        a, b = e.args
        return _into(a, lambda x: op("div", x, b), (b,), used)
    if e.name == "mul":
        a, b = e.args
        return _into(b, lambda x: op("mul", a, x), (a,), used) or _into(
            a, lambda x: op("mul", x, b), (b,), used
        )
    return None


def _is_sum(e: Expr) -> bool:
    return isinstance(e, Op) and e.name in ("add", "sub")


def _into(
    e: Expr, apply: Callable[[Expr], Expr], others: Sequence[Expr], used: set[str]
) -> Expr | None:
    if isinstance(e, Reduce) and e.name == "sum":
        inner = _apart(e, others, used)
        return replace(inner, body=apply(inner.body))
    if _is_sum(e):
        assert isinstance(e, Op)
        return op(e.name, apply(e.args[0]), apply(e.args[1]))
    return None


def _apart(e: Reduce, others: Sequence[Expr], used: set[str]) -> Reduce:
    """The reduction with new names for those of its indices that `others` bind inside."""
    bound = {a.name for o in others for n in walk(o) if isinstance(n, Reduce) for a in n.axes}
    taken = {a.name: fresh(a.name, used | bound) for a in e.axes if a.name in bound}
    if not taken:
        return e

    return _renamed(e, taken)


def _renamed(e: Reduce, names: Mapping[str, str]) -> Reduce:
    """The reduction with other names for indices."""

    def visit(n: Node) -> Node | None:
        if isinstance(n, Axis | Var) and n.name in names:
            return replace(n, name=names[n.name])
        return None

    return transform(e, visit)


@dataclass(frozen=True)
class Join(Rewrite):
    """`join(def, path = (0), nth = 0)`: two sums over equal ranges become one.

    Before::

        y[i: M] = (sum(j: N) x[i, j]) + (sum(k: N) z[k])

    After `join(y)`::

        y[i: M] = sum(j: N) x[i, j] + z[j]

    Of two sums their sum or difference, of two `max` the `max`, and so for `prod`, `min`, `all`
    and `any`. At `path`, by default the first place; `distribute` undoes it. Refused where ranges
    or conditions differ.
    """

    name: ClassVar[str] = "join"
    effect: ClassVar[Effect] = "reassociates"
    definition: str
    path: tuple[int, ...] | None = None
    nth: int = 0

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        place = self._place(kernel)
        new = _joined(place.expr)
        if new is None:
            refuse(kernel, "here are no two sums over equal ranges", node=place.expr)
        return replace_at(kernel, place, new)

    def _place(self, kernel: Kernel) -> Place:
        stmt = find_valued(kernel, self.definition, self.nth)
        if self.path is not None:
            return find_place(kernel, stmt, self.path)
        for found in places(stmt):
            if _joined(found.expr) is not None:
                return found
        return refuse(kernel, f"there is nothing to join in `{self.definition}`", node=stmt)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return moves(cls.name, kernel, lambda p: _joined(p.expr) is not None)

    def effect_on(self, kernel: Kernel) -> Effect:
        e = self._place(kernel).expr
        ordered = isinstance(e, Op) and e.name not in ("add", "sub", "mul")
        return "exact" if ordered or not e.dtype.is_float else "reassociates"


def _joined(e: Expr) -> Expr | None:
    """Two reductions by the op that joins them, as one; None where `e` is no such thing."""
    if not isinstance(e, Op) or len(e.args) != 2:
        return None
    a, b = e.args
    if not (isinstance(a, Reduce) and isinstance(b, Reduce) and a.name == b.name):
        return None
    if REDUCTIONS.get(a.name) != ("add" if e.name == "sub" else e.name):
        return None
    if len(a.axes) != len(b.axes):
        return None
    bound = {x.name for n in walk(a.body) if isinstance(n, Reduce) for x in n.axes}
    if bound & {x.name for x in a.axes}:
        return None
    b = _renamed(b, {y.name: x.name for x, y in zip(a.axes, b.axes, strict=True)})
    if b.axes != a.axes or b.where != a.where:
        return None
    return replace(a, body=op(e.name, a.body, b.body))


@dataclass(frozen=True)
class Regroup(Rewrite):
    """`regroup(def, path, nth = 0)`: a sum inside a sum changes places with it; each factor goes
    as far out as its indices let it.

    Before::

        y[i: M, l: L] = sum(k: K) (sum(j: N) x[i, j] * w[j, k]) * z[k, l]

    After `regroup(y, (1, 0))`, the product of matrices associated the other way::

        y[i: M, l: L] = sum(j: N) x[i, j] * (sum(k: K) w[j, k] * z[k, l])

    `path` is the place of the inner sum. Between both sums stand products only; without any, the
    two just change places, as two of `max`, `min`, `prod`, `all` or `any` do too. Refused where
    the extents of one depend on the indices of the other.
    """

    name: ClassVar[str] = "regroup"
    effect: ClassVar[Effect] = "reassociates"
    definition: str
    path: tuple[int, ...]
    nth: int = 0

    def edit(self, kernel: Kernel) -> Kernel:
        stmt = find_valued(kernel, self.definition, self.nth)
        inner = find_place(kernel, stmt, self.path)
        nest = _nest(inner)
        if isinstance(nest, str):
            refuse(kernel, nest, node=inner.expr)
        own, others = _names(nest.inner.axes), _names(nest.outer.axes)
        for axes, names in ((nest.inner.axes, others), (nest.outer.axes, own)):
            for a in axes:
                if free_vars(a.extent) & names:
                    which = min(free_vars(a.extent) & names)
                    refuse(kernel, f"the extent of `{a.name}` depends on `{which}`", node=a)
        for c in nest.inner.where:
            if any(isinstance(n, Read) for n in walk(c)):
                refuse(kernel, "this condition reads a tensor, and cannot be moved", node=c)
        outside = find_place(kernel, stmt, nest.path)
        nest = _nest(inner, names_in(kernel))
        assert isinstance(nest, _Nest)
        return replace_at(kernel, outside, self._exchanged(kernel, outside, nest))

    def _exchanged(self, kernel: Kernel, outside: Place, nest: _Nest) -> Expr:
        outer, inner = nest.outer, nest.inner
        names = _names(outer.axes)
        stay = [f for f in nest.factors if outer.name != "sum" or free_vars(f) & names]
        leave = [f for f in nest.factors if outer.name == "sum" and not free_vars(f) & names]
        dtype = inner.body.dtype
        one = Const(1.0 if dtype.is_float else 1, dtype)
        first = tuple(c for c in inner.where if not free_vars(c) & names)
        rest = tuple(c for c in inner.where if free_vars(c) & names)
        body = Reduce(outer.name, outer.axes, (*outer.where, *rest), _product(stay) or one)
        made = Reduce(outer.name, inner.axes, first, _product([*leave, body]) or one)
        if not leave:
            return made
        scope = replace(outside, reductions=(*outside.reductions, made))
        if never_empty(kernel, scope, body):
            return made
        if not in_bounds(kernel, outside.stmt, scope.axes, leave):
            refuse(
                kernel,
                "a factor that goes out is not shown to be in bounds where the sum has no term",
                node=outer,
            )
        if not dtype.is_float:
            return made
        if body.where or any(free_vars(a.extent) & _names(scope.axes) for a in outer.axes):
            refuse(
                kernel,
                "this sum is not shown to have a term: without one it is 0, and a factor that "
                "goes out may be infinite",
                node=outer,
            )
        return op("select", not_empty(outer.axes), made, Const(0.0, dtype))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return moves(
            cls.name, kernel, lambda p: isinstance(p.expr, Reduce) and not isinstance(_nest(p), str)
        )

    def effect_on(self, kernel: Kernel) -> Effect:
        place = find_place(kernel, find_valued(kernel, self.definition, self.nth), self.path)
        nest = _nest(place)
        order_free = isinstance(nest, _Nest) and nest.inner.name not in ("sum", "prod")
        return "exact" if order_free or not place.expr.dtype.is_float else "reassociates"


@dataclass(frozen=True)
class _Nest:
    """`outer` (at `path`) over a product of `factors` with `inner` among them."""

    outer: Reduce
    path: Path
    inner: Reduce
    factors: tuple[Expr, ...]


def _nest(inner: Place, used: set[str] | None = None) -> _Nest | str:
    """The two sums that `inner` stands for, or why it is none. With the names in `used`, the
    indices of the inner one get new names where another factor binds them too."""
    e = inner.expr
    if not isinstance(e, Reduce) or e.name not in EXCHANGED:
        return "this is no sum"
    if inner.fixed or not inner.reductions:
        return f"there is no `{e.name}` around this one"
    outer = inner.reductions[-1]
    if outer.name != e.name:
        return f"the reduction around this `{e.name}` is a `{outer.name}`"
    if outer.body is e:
        return _Nest(outer, _path_up(inner, outer), e, tuple(_flat(e.body, e.name)))
    if e.name != "sum":
        return f"between the two stands more than the `{e.name}`"
    factors = list(_flat(outer.body, "sum"))
    if not any(f is e for f in factors):
        return "between the two sums stand products only, and here is more"
    others = [f for f in factors if f is not e]
    own = e if used is None else _apart(e, others, used)
    product = [x for f in factors for x in (_flat(own.body, "sum") if f is e else (f,))]
    return _Nest(outer, _path_up(inner, outer), own, tuple(product))


def _path_up(inner: Place, outer: Reduce) -> Path:
    """The path of the innermost reduction around `inner`."""
    node: Node = inner.stmt.value
    found: Path = ()
    for depth, number in enumerate(inner.path):
        if node is outer:
            found = inner.path[:depth]
        node = list(children(node))[number]
    return found


def _flat(e: Expr, name: str) -> Iterator[Expr]:
    """The factors of a product, in the order of the text; other reductions have one."""
    if name == "sum" and isinstance(e, Op) and e.name == "mul":
        for a in e.args:
            yield from _flat(a, name)
    else:
        yield e


def _product(factors: Sequence[Expr]) -> Expr | None:
    made: Expr | None = None
    for f in factors:
        made = f if made is None else op("mul", made, f)
    return made


def _names(axes: Sequence[Axis]) -> set[str]:
    return {a.name for a in axes}
