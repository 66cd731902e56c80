"""`unswitch`: a condition that a loop does not change is asked once, around the loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Expr, If, Kernel, Loop
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    find_loop,
    guarded,
    loops_of,
    refuse,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.rewrites.legality import stored_in
from kir.rewrites.places import in_bounds


@dataclass(frozen=True)
class Unswitch(Rewrite):
    """`unswitch(i)`: conditions that are the same in every iteration leave the loop `i`.

    Before::

        for b: N {
          for i: 64 where i <= n[b], chosen[b] { y[b] += x[b, i] }
        }

    After `unswitch(i)`::

        for b: N {
          if chosen[b] {
            for i: 64 where i <= n[b] { y[b] += x[b, i] }
          }
        }

    It takes the conditions of the loop's mask, and that of an `if` which is all of its body. So
    a block of work that nobody wants is skipped, rather than masked element by element. Refused
    where no condition can leave: all use the index or read what the loop stores, or would be read
    out of bounds where the loop has no iteration.
    """

    name: ClassVar[str] = "unswitch"
    effect: ClassVar[Effect] = "exact"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        found = _conditions(loop)
        leaving, rest, body = _parted(loop)
        if not leaving:
            message = f"no condition in `{self.loop}` stays the same for all its iterations"
            if not found:
                message = f"`{self.loop}` has no mask, and its body is no guard"
            refuse(kernel, message, node=found[0] if found else loop)
        for c in leaving:
            if not in_bounds(kernel, loop, (), (c,)):
                refuse(
                    kernel,
                    "a read in this condition is not shown to be in bounds outside of the loop",
                    node=c,
                )
        return replace_stmt(kernel, loop, guarded(leaving, (replace(loop, where=rest, body=body),)))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop that some condition could leave."""
        for loop in loops_of(kernel.body):
            if _parted(loop)[0]:
                yield Move(cls.name, (("loop", loop.axis.name),))


def _conditions(loop: Loop) -> tuple[Expr, ...]:
    """The mask, and the condition of a guard that is the whole body."""
    (first, *others) = loop.body or (None,)
    return (*loop.where, *([first.condition] if isinstance(first, If) and not others else []))


def _parted(loop: Loop) -> tuple[tuple[Expr, ...], tuple[Expr, ...], Block]:
    """The conditions that may leave, the rest of the mask, and what the body then is."""

    def fixed(c: Expr) -> bool:
        return loop.axis.name not in var_names(c) and not stored_in((c,), loop.body)

    leaving = tuple(c for c in loop.where if fixed(c))
    rest = tuple(c for c in loop.where if not fixed(c))
    body = loop.body
    while len(body) == 1 and isinstance(body[0], If) and fixed(body[0].condition):
        leaving, body = (*leaving, body[0].condition), body[0].body
    return leaving, rest, body


__all__ = ["Unswitch"]
