"""Loops of one block become one: `fuse`, `merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Expr,
    Kernel,
    Loop,
    Stmt,
    Var,
    substitute,
)
from kir.rewrites.base import (
    Block,
    Effect,
    Rewrite,
    edit_block,
    find_loop,
    guarded,
    refuse,
)
from kir.rewrites.legality import (
    conflict,
    fusion_conflict,
    stored_in,
)
from kir.simplify import simplify


@dataclass(frozen=True)
class Fuse(Rewrite):
    """`fuse(i, j)`: two loops of one block, equal in extent and kind, become one, called `i`.

    Before::

        for i: M { a[i] = x[i] }
        for j: M { y[j] = a[j] }

    After::

        for i: M {
          a[i] = x[i]
          y[i] = a[i]
        }

    Statements between them move before or behind where they are independent. Masks that differ
    become guards. Refused where an iteration of `j` needs a later one of `i`.
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = "exact"
    loop: str
    second: str

    def edit(self, kernel: Kernel) -> Kernel:
        a, b = find_loop(kernel, self.loop), find_loop(kernel, self.second)
        if a is b or a.kind != b.kind:
            what = "the same loop" if a is b else "of different kinds; `bind` them alike first"
            refuse(kernel, f"`{self.loop}` and `{self.second}` are {what}", node=b)
        if simplify(a.axis.extent) != simplify(b.axis.extent):
            refuse(kernel, "the extents of the two loops differ", node=b)

        def edit(block: Block, k: int) -> Sequence[Stmt]:
            at = next((n for n, s in enumerate(block) if s is b), None)
            if at is None or at < k:
                refuse(
                    kernel,
                    f"`{self.second}` does not follow `{self.loop}` in its block",
                    node=b,
                    hint="loops around them are fused first",
                )
            found = fusion_conflict(kernel, a, b)
            if found:
                refuse(kernel, f"`{self.second}` must wait for `{self.loop}`: {found}", node=b)
            before, after = self._moved(kernel, a, b, block[k + 1 : at])
            return (*block[:k], *before, self._joined(a, b), *after, *block[at + 1 :])

        return edit_block(kernel, a, edit)

    def _moved(self, kernel: Kernel, a: Loop, b: Loop, between: Block) -> tuple[Block, Block]:
        before: list[Stmt] = []
        after: list[Stmt] = []
        for s in between:
            blocked = conflict((s,), (a, *after)) or conflict((a, *after), (s,))
            if not blocked:
                before.append(s)
            else:
                stays = conflict((s,), (b,)) or conflict((b,), (s,))
                if stays:
                    refuse(kernel, f"this stands between the two loops: {stays}", node=s)
                after.append(s)
        return tuple(before), tuple(after)

    def _joined(self, a: Loop, b: Loop) -> Loop:
        here: dict[str, Expr] = {b.axis.name: Var(a.axis.name)}
        where = tuple(substitute(c, here) for c in b.where)
        body = tuple(substitute(s, here) for s in b.body)
        hints = tuple(dict((*b.hints, *a.hints)).items())
        if where == a.where and not stored_in(where, a.body):
            return replace(a, body=a.body + body, hints=hints)
        both = (*guarded(a.where, a.body), *guarded(where, body))
        return replace(a, where=(), body=both, hints=hints)
