"""`split`: one loop becomes two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.algebra import FREE, Interval
from kir.ir import Axis, Const, Define, Expr, Kernel, Loop, Op, Read, Var, const, substitute, walk
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Choice,
    Effect,
    Move,
    Rewrite,
    Whole,
    buffers_of,
    copy_with_fresh_names,
    extent_of,
    find_loop,
    fresh,
    guarded,
    loops_of,
    names_in,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.rewrites.legality import stored_in
from kir.simplify import interval, linear, simplify

TAILS = ("mask", "guard", "peel")


@dataclass(frozen=True)
class Split(Rewrite):
    """`split(i, factor, outer = name, inner = name, tail = mask)`: one loop becomes two.

    Before::

        for i: N { y[i] = x[i] }

    After `split(i, 8)`::

        for i_o: cdiv(N, 8) {
          for i: 8 where i_o*8 + i < N { y[i_o*8 + i] = x[i_o*8 + i] }
        }

    After `split(i, 8, tail = guard)`::

        for i_o: cdiv(N, 8) {
          for i: 8 { if i_o*8 + i < N { y[i_o*8 + i] = x[i_o*8 + i] } }
        }

    After `split(i, 8, tail = peel)`::

        for i_o: N // 8 {
          for i: 8 { y[i_o*8 + i] = x[i_o*8 + i] }
        }
        for i_2: 8 where N // 8 * 8 + i_2 < N { y[N // 8 * 8 + i_2] = x[N // 8 * 8 + i_2] }

    Mask, guard and the peeled rest are left out where the factor provably divides the extent.
    All loops are of the old one's kind; its hints stay on the outer one and on the rest. Refused
    where a definition recurs over `i`; a rest cannot be peeled where not one full tile is sure to
    fit a constant extent, or the extent may be negative.
    """

    name: ClassVar[str] = "split"
    effect: ClassVar[Effect] = "exact"
    loop: str
    factor: int
    outer: str | None = None
    inner: str | None = None
    tail: str = "mask"

    def edit(self, kernel: Kernel) -> Kernel:
        return self.split(kernel)[0]

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return self.split(before)[1]

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop by every factor (a rest is peeled from a constant extent by factors up to
        it); the names at their defaults."""
        for loop in loops_of(kernel.body):
            extent = extent_of(loop)
            fixed = (("loop", loop.axis.name),)
            factors = Whole(1, None, _tries(extent))
            yield Move("split", fixed, (("factor", factors), ("tail", Choice(("mask", "guard")))))
            factors = Whole(1, extent or None, _tries(extent))
            yield Move("split", (*fixed, ("tail", "peel")), (("factor", factors),))

    def split(self, kernel: Kernel) -> tuple[Kernel, dict[str, tuple[str, ...]]]:
        """The kernel after, and what the names that change become."""
        loop = find_loop(kernel, self.loop)
        self._check(kernel, loop)
        used = names_in(kernel) - {self.loop}
        for chosen in (self.outer, self.inner):
            if chosen is not None and chosen in used:
                refuse(kernel, f"the name `{chosen}` is taken", node=loop)
        inner = self.inner or self.loop
        used.add(inner)
        outer = self.outer or fresh(f"{self.loop}_o", used)
        if outer == inner:
            refuse(kernel, "the two loops cannot have one name", node=loop)
        used.add(outer)
        names: dict[str, tuple[str, ...]] = {self.loop: (inner, outer)}
        extent = loop.axis.extent
        exact = divides(kernel, extent, self.factor)
        index = op("add", op("mul", Var(outer), const(self.factor)), Var(inner))
        bound = () if exact or self.tail == "peel" else (op("lt", index, extent),)
        below = _tile(loop, Axis(inner, const(self.factor)), index, bound, self.tail == "guard")
        below = replace(below, hints=())
        tiles = op("floordiv" if self.tail == "peel" else "cdiv", extent, const(self.factor))
        axis = Axis(outer, tiles, span=loop.axis.span)
        made = [Loop(loop.kind, axis, (), (below,), loop.hints, span=loop.span)]
        if self.tail == "peel" and not exact:
            rest = self._rest(loop, used)
            made.append(rest)
            names |= copied_names(loop.body, rest.body)
            names[self.loop] = (inner, outer, rest.axis.name)
        return replace_stmt(kernel, loop, made), names

    def _check(self, kernel: Kernel, loop: Loop) -> None:
        if self.factor < 1:
            refuse(kernel, f"a loop cannot be split by {self.factor}", node=loop)
        if self.tail not in TAILS:
            refuse(kernel, f"`{self.tail}` is no tail of a split", hint=", ".join(TAILS))
        if any(isinstance(n, Define) and Var(self.loop) in n.dims for n in walk(loop)):
            require_loops(kernel, (loop,))  # a recurrence is defined over this very index
        if divides(kernel, loop.axis.extent, self.factor):
            return
        if stored_in((loop.axis.extent,), (loop,)):
            message = f"the extent of `{self.loop}` is read from what its body stores"
            refuse(kernel, message, node=loop)
        if self.tail != "peel":
            return
        extent = extent_of(loop)
        if extent is not None and extent < self.factor:
            message = f"no full tile of {self.factor} fits the extent {extent} of `{self.loop}`"
            refuse(kernel, message, node=loop, hint="a smaller factor, or `tail = mask`")
        if may_be_negative(kernel, loop):
            message = f"the extent of `{self.loop}` may be negative, and then has no rest"
            refuse(kernel, message, node=loop, hint="`tail = mask`")

    def _rest(self, loop: Loop, used: set[str]) -> Loop:
        """The loop over what the full tiles leave; `used` grows by the names in it."""
        extent, size = loop.axis.extent, const(self.factor)
        name = fresh(loop.axis.name, used)
        index = op("add", op("mul", op("floordiv", extent, size), size), Var(name))
        bound: tuple[Expr, ...] = (op("lt", index, extent),)
        if isinstance(extent, Const):
            bound, size = (), const(int(extent.value) % self.factor)
        copied = replace(loop, body=copy_with_fresh_names(loop.body, used))
        return _tile(copied, Axis(name, size), index, bound, False)


def _tile(loop: Loop, axis: Axis, index: Expr, bound: tuple[Expr, ...], guard: bool) -> Loop:
    """`loop` over `axis`, its old index being `index`, in range where `bound` holds."""
    here: dict[str, Expr] = {loop.axis.name: index}
    where = tuple(substitute(c, here) for c in loop.where)
    body = tuple(substitute(s, here) for s in loop.body)
    if bound and (guard or reads_tensors(where)):  # these may be in bounds under `bound` only
        where, body = (), guarded(where, body)
    if guard:
        bound, body = (), guarded(bound, body)
    return replace(loop, axis=axis, where=bound + where, body=body)


def copied_names(*copies: Block) -> dict[str, tuple[str, ...]]:
    """The names of loops and buffers in the first of some copies of a block, each with what it is
    called in all of them."""
    found: dict[str, tuple[str, ...]] = {}
    for loops in zip(*(loops_of(c) for c in copies), strict=True):
        found[loops[0].axis.name] = tuple(x.axis.name for x in loops)
    for buffers in zip(*(buffers_of(c) for c in copies), strict=True):
        found[buffers[0].name] = tuple(b.name for b in buffers)
    return found


def _tries(extent: int | None) -> tuple[int, ...]:
    """Factors worth trying, most promising first."""
    usual = (64, 32, 128, 16, 8, 4, 256)
    if extent is None:
        return usual
    return tuple(f for f in usual if f < extent) or (max(extent // 2, 1),)


def may_be_negative(kernel: Kernel, loop: Loop) -> bool:
    """Whether the extent of a loop is not shown to be at least 0."""
    free: dict[str, Interval] = {d.name: FREE for d in kernel.dims if d.default is not None}
    low = interval(loop.axis.extent, free)[0]
    if low is not None and low >= 0:
        return False
    from kir.analysis import model_of  # integer sets: not needed by most rewrites
    from kir.analysis.cover import at_least_zero
    from kir.analysis.depend import resolve

    model = model_of(kernel)
    return not at_least_zero(model, loop.axis.extent, resolve(model, loop)[1])


def reads_tensors(conditions: Iterable[Expr]) -> bool:
    return any(isinstance(n, Read) for c in conditions for n in walk(c))


def divides(kernel: Kernel, extent: Expr, factor: int) -> bool:
    """Whether `factor` divides `extent` by its form or by a constraint `N % c == 0`."""
    form = linear(simplify(extent))
    if form.constant % factor:
        return False
    known = dict[Expr, int]()
    for c in kernel.constraints:
        match c:
            case Op("eq", (Op("mod", (value, Const(modulus))), Const(0))) if int(modulus) > 0:
                known[value] = max(known.get(value, 1), int(modulus))
    return known.get(extent, 1) % factor == 0 or all(
        (c * known.get(atom, 1)) % factor == 0 for atom, c in form.terms.items()
    )
