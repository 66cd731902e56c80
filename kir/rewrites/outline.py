"""`outline` and `hoist`: a part of a definition becomes a definition of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    Kernel,
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
    refuse,
)
from kir.rewrites.places import (
    Place,
    find_place,
    find_valued,
    in_bounds,
    name_of,
    places,
    replace_at,
    valued,
)
from kir.syntax.scope import RESERVED


@dataclass(frozen=True)
class Outline(Rewrite):
    """`outline(def, path, into)`: the part at `path` becomes a definition `into` of its own, over
    just the indices that it uses; those of the reductions around it become axes too.

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
        return (_move(cls.name, place, nth) for place, nth in _parts(kernel))


@dataclass(frozen=True)
class Hoist(Rewrite):
    """`hoist(def, path, into)`: a part that does not depend on some index is computed once for
    all values of that index.

    Before::

        y[i: M, j: N] = x[i, j] * rsqrt(v[i])

    After `hoist(y, (1,), r)`::

        r[i: M] = rsqrt(v[i])
        y[i: M, j: N] = x[i, j] * r[i]

    It is `outline`, refused where the part uses every index that is in scope: there is nothing to
    save then.
    """

    name: ClassVar[str] = "hoist"
    effect: ClassVar[Effect] = "exact"
    definition: str
    path: tuple[int, ...]
    into: str | None = None
    nth: int = 0

    def edit(self, kernel: Kernel) -> Kernel:
        place = find_place(kernel, find_valued(kernel, self.definition, self.nth), self.path)
        if not _invariant(place):
            refuse(
                kernel,
                f"this uses every index in scope{_listed(place.axes)}",
                node=place.expr,
                hint="`outline` gives it a name all the same",
            )
        ahead, read = outlined(kernel, place, self.into)
        return replace_at(kernel, place, read, ahead)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        return (_move(cls.name, p, nth) for p, nth in _parts(kernel) if _invariant(p))


def _invariant(place: Place) -> bool:
    used = free_vars(place.expr)
    return any(a.name not in used for a in place.axes)


def _listed(axes: tuple[Axis, ...]) -> str:
    names = ", ".join(f"`{a.name}`" for a in axes)
    return f": {names}" if names else ", and there is none"


def _parts(kernel: Kernel) -> Iterator[tuple[Place, int]]:
    """The places worth a name: more than a literal, an index or a read."""
    for stmt, nth in valued(kernel):
        for place in places(stmt):
            if place.path and not place.fixed and not _trivial(place.expr):
                yield place, nth


def _move(name: str, place: Place, nth: int) -> Move:
    chosen = (("nth", nth),) if nth else ()
    return Move(name, (("definition", name_of(place.stmt)), ("path", place.path), *chosen))


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
    if isinstance(place.stmt, Define):
        return _definition(kernel, place, name)
    return _register(kernel, place, name)


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


def _register(kernel: Kernel, place: Place, name: str) -> tuple[Block, Expr]:
    """A value in `reg` ahead of a store: all loops around stay around."""
    e = place.expr
    for n in (*place.reductions, *walk(e)):
        if isinstance(n, Reduce):
            refuse(kernel, "a reduction is not in loops yet", node=n, hint="`loops()` makes loops")
    made = Buffer(name, e.dtype, (), "reg")
    return (made, Store(name, (), e)), Read(name, (), e.dtype)
