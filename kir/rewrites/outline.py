"""`outline` and `hoist`: a part of a definition becomes a definition of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    Kernel,
    Loop,
    Read,
    Reduce,
    Store,
    Var,
    walk,
)
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    free_vars,
    fresh,
    names_in,
    path_to,
    refuse,
    replace_stmt,
    statements,
)
from kir.rewrites.legality import check_around
from kir.rewrites.places import (
    Place,
    find_place,
    find_valued,
    in_bounds,
    moves,
    replace_at,
)
from kir.syntax.scope import RESERVED


@dataclass(frozen=True)
class Outline(Rewrite):
    """`outline(def, path, into = name, nth = 0)`: the part at `path` becomes a definition of its
    own, over just the indices that it uses; those of the reductions around it become axes too.

    Before::

        y[i: M] = sum(j: N) exp(x[i, j] - m[i])

    After `outline(y, (1,), e)` (child 1 of the sum is its body)::

        e[i: M, j: N] = exp(x[i, j] - m[i])
        y[i: M] = sum(j: N) e[i, j]

    In a statement of a loop it becomes a value in `reg` right before the statement; `nth` says
    which statement, where several store to the name. Refused where the part is a constant or a
    bare read, where an extent depends on another index, and where the part would be computed for
    indices for which its reads are not shown to be in bounds.
    """

    name: ClassVar[str] = "outline"
    effect: ClassVar[Effect] = "exact"
    definition: str
    path: tuple[int, ...]
    into: str | None = None
    nth: int = 0

    def edit(self, kernel: Kernel) -> Kernel:
        place = find_place(kernel, find_valued(kernel, self.definition, self.nth), self.path)
        ahead, read = outlined(kernel, place, self.into)
        return replace_at(kernel, place, read, ahead)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return moves(cls.name, kernel, _worth)


@dataclass(frozen=True)
class Hoist(Rewrite):
    """`hoist(def, path, into = name, nth = 0)`: a part that does not depend on some index is
    computed once for all values of that index.

    Before::

        y[i: M, j: N] = x[i, j] * rsqrt(v[i])

    After `hoist(y, (1,), r)`::

        r[i: M] = rsqrt(v[i])
        y[i: M, j: N] = x[i, j] * r[i]

    And in loops, where it leaves all loops that it does not depend on, but for a `grid`::

        for i: M {
          buffer r: f32 in reg
          r = rsqrt(v[i])
          for j: N { y[i, j] = x[i, j] * r }
        }

    It is `outline`, refused where that saves nothing: the part uses every index in scope, or in
    loops the innermost one, or reads what the loop stores.
    """

    name: ClassVar[str] = "hoist"
    effect: ClassVar[Effect] = "exact"
    definition: str
    path: tuple[int, ...]
    into: str | None = None
    nth: int = 0

    def edit(self, kernel: Kernel) -> Kernel:
        place = find_place(kernel, find_valued(kernel, self.definition, self.nth), self.path)
        ahead, read = outlined(kernel, place, self.into)
        left = _left(kernel, place)
        if not left and not _invariant(place):
            why = _reason(kernel, place)
            refuse(kernel, why, node=place.expr, hint="`outline` gives it a name where it is")
        if not left:
            return replace_at(kernel, place, read, ahead)
        used = free_vars(place.expr)
        axes = tuple(a for a in place.axes if a.name in used)
        for outermost in reversed(left):
            if in_bounds(kernel, outermost, axes, (place.expr,)):
                break
        else:
            name = left[0].axis.name
            refuse(
                kernel,
                f"a read is not shown to be in bounds where no iteration of `{name}` runs",
                node=place.expr,
            )
        alone = replace_at(replace(kernel, body=(outermost,)), place, read)
        made = replace_stmt(kernel, outermost, (*ahead, *alone.body))
        reads = {n.tensor for n in walk(place.expr) if isinstance(n, Read)}
        check_around(kernel, made, outermost, reads)
        return made

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        def fits(p: Place) -> bool:
            return _worth(p) and (_invariant(p) or bool(_left(kernel, p)))

        return moves(cls.name, kernel, fits)


def _left(kernel: Kernel, place: Place) -> list[Loop]:
    """The loops that the part can leave, innermost first: it neither uses their indices nor reads
    what is stored or declared in them."""
    used = free_vars(place.expr)
    extents = tuple(a.extent for a in place.axes if a.name in used)
    used |= {name for e in extents for name in free_vars(e)}
    reads = {n.tensor for e in (place.expr, *extents) for n in walk(e) if isinstance(n, Read)}
    found: list[Loop] = []
    for around in reversed(path_to(kernel.body, place.stmt) or ()):
        if not isinstance(around, Loop):
            continue
        made = {
            s.target if isinstance(s, Store) else s.name
            for s in statements(around.body)
            if isinstance(s, Store | Buffer | Define)
        }
        if around.kind == "grid" or around.axis.name in used or made & reads:
            break
        found.append(around)
    return found


def _reason(kernel: Kernel, place: Place) -> str:
    around = [x for x in path_to(kernel.body, place.stmt) or () if isinstance(x, Loop)]
    if isinstance(place.stmt, Define) or not around:
        return f"this uses every index in scope{_listed(place.axes)}"
    name = around[-1].axis.name
    if name in free_vars(place.expr):
        return f"this uses the index `{name}` of the innermost loop"
    if any(name in free_vars(a.extent) for a in place.axes):
        return f"an index here ends where the index `{name}` of the innermost loop says"
    if around[-1].kind == "grid":
        return f"the loop `{name}` around this is a grid"
    return f"this reads what the loop `{name}` stores"


def _invariant(place: Place) -> bool:
    used = free_vars(place.expr)
    return any(a.name not in used for a in place.axes)


def _listed(axes: tuple[Axis, ...]) -> str:
    names = ", ".join(f"`{a.name}`" for a in axes)
    return f": {names}" if names else ", and there is none"


def _worth(place: Place) -> bool:
    """Whether the place is worth a name: more than a literal, an index or a read."""
    return bool(place.path) and not place.fixed and not _trivial(place.expr)


def _trivial(e: Expr) -> bool:
    return isinstance(e, Const | Var) or (isinstance(e, Read) and e.fill is None)


def outlined(kernel: Kernel, place: Place, into: str | None) -> tuple[Block, Expr]:
    """The statements that compute the part at `place` under the name `into` (by default a new
    one), and the read that takes its place. RewriteError where that cannot be."""
    e = place.expr
    name = new_name(kernel, into, "t")
    if _trivial(e):
        refuse(kernel, "a literal, an index or a read needs no name", node=e)
    if place.fixed:
        refuse(kernel, "an index or a condition of a reduction stays as it is", node=e)
    reduces = place.reductions or any(isinstance(n, Reduce) for n in walk(e))
    if isinstance(place.stmt, Define) or reduces:
        return _definition(kernel, place, name)
    made = Buffer(name, e.dtype, (), "reg")
    return (made, Store(name, (), e)), Read(name, (), e.dtype)


def new_name(kernel: Kernel, wanted: str | None, base: str) -> str:
    """`wanted`, refused where it is taken or a word of the language; or a new name."""
    used = names_in(kernel)
    if wanted is None:
        return fresh(base, used)
    if wanted in used:
        refuse(kernel, f"`{wanted}` is taken", hint=f"`{fresh(wanted, used)}` is free")
    if wanted in RESERVED:
        refuse(kernel, f"`{wanted}` is a word of the language", hint=f"call it `{wanted}_`")
    return wanted


def _definition(kernel: Kernel, place: Place, name: str) -> tuple[Block, Expr]:
    e, stmt = place.expr, place.stmt
    used = free_vars(e)
    axes = tuple(a for a in place.axes if a.name in used)
    indices = {a.name for a in place.axes}
    for a in axes:
        others = free_vars(a.extent) & indices
        if others:
            refuse(
                kernel,
                f"the extent of `{a.name}` depends on `{min(others)}`, and a definition has the "
                "shape of a box",
                node=a,
            )
    grows = len(axes) < len(place.axes) or any(r.where for r in place.reductions)
    if grows and not in_bounds(kernel, stmt, axes, (e,)):
        more = ", ".join(f"`{a.name}`" for a in axes)
        when = f"for all {more}" if more else "once, whatever the indices"
        refuse(
            kernel,
            f"a read is not shown to be in bounds where this is computed {when}",
            node=e,
        )
    read = Read(name, tuple(Var(a.name) for a in axes), e.dtype)
    return (Define(name, axes, e),), read
