"""`split`: one loop becomes two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from kir.ir import (
    Axis,
    Const,
    Define,
    Expr,
    Kernel,
    Loop,
    Op,
    Read,
    Var,
    const,
    substitute,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Effect,
    Rewrite,
    find_loop,
    fresh,
    guarded,
    names_in,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.simplify import linear, simplify


@dataclass(frozen=True)
class Split(Rewrite):
    """`split(i, factor, outer = name, inner = name)`: one loop becomes two.

    Before::

        for i: N { y[i] = x[i] }

    After `split(i, 8)`::

        for i_o: cdiv(N, 8) {
          for i: 8 where i_o*8 + i < N { y[i_o*8 + i] = x[i_o*8 + i] }
        }

    The mask is left out where the factor provably divides the extent. Both loops are of the
    old one's kind; its hints stay on the outer one.
    """

    name: ClassVar[str] = "split"
    effect: ClassVar[Effect] = "exact"
    loop: str
    factor: int
    outer: str | None = None
    inner: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if self.factor < 1:
            refuse(kernel, f"a loop cannot be split by {self.factor}", node=loop)
        if any(isinstance(n, Define) and Var(self.loop) in n.dims for n in walk(loop)):
            require_loops(kernel, (loop,))  # a recurrence is defined over this very index
        used = names_in(kernel) - {self.loop}
        for chosen in (self.outer, self.inner):
            if chosen is not None and chosen in used:
                refuse(kernel, f"the name `{chosen}` is taken", node=loop)
        inner = self.inner or self.loop
        used.add(inner)
        outer = self.outer or fresh(f"{self.loop}_o", used)
        if outer == inner:
            refuse(kernel, "the two loops cannot have one name", node=loop)
        extent = loop.axis.extent
        index = op("add", op("mul", Var(outer), const(self.factor)), Var(inner))
        mask = () if divides(kernel, extent, self.factor) else (op("lt", index, extent),)
        here: dict[str, Expr] = {self.loop: index}
        where = tuple(substitute(c, here) for c in loop.where)
        body = tuple(substitute(s, here) for s in loop.body)
        if mask and reads_tensors(where):  # these reads may be in bounds under the mask only
            where, body = (), guarded(where, body)
        below = Loop(loop.kind, Axis(inner, const(self.factor)), mask + where, body, span=loop.span)
        axis = Axis(outer, op("cdiv", extent, const(self.factor)), span=loop.axis.span)
        above = Loop(loop.kind, axis, (), (below,), loop.hints, span=loop.span)
        return replace_stmt(kernel, loop, (above,))


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
